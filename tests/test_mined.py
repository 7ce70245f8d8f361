import numpy as np
import pytest

from analyticup.augmentation.neighbours import Neighbours
from analyticup.augmentation.translators.mined import (
    MinedTranslator,
    length_ratio,
    numbers,
    ratio_margin,
    weighted_length,
)
from analyticup.settings.schema import MinedSettings

pytestmark = pytest.mark.arithmetic


class PlaneEmbedder:
    """Unit vectors by text: close in meaning = close in angle (degrees)."""

    identity = "plane"

    def __init__(self, angles):
        self.angles = angles

    def queries(self, texts):
        return np.array([self._vector(text) for text in texts], dtype=np.float32).reshape(len(texts), 3)

    passages = queries

    def _vector(self, text):
        angle = np.radians(self.angles[text])
        return [np.cos(angle), np.sin(angle), 0.0]


LOOSE = MinedSettings(k=2, margin=1.0, min_similarity=0.9, min_words=2)


def found(mined, texts, language="de"):
    return [translation.text for translation in mined.translate(texts, language)]


ANGLES = {
    "red dress": 0,
    "rotes kleid": 1,
    "blue shoes": 40,
    "blaue schuhe": 42,
    "green hat": 80,
    "gelber hut": 110,
}


def miner(pool, angles=ANGLES, settings=LOOSE):
    return MinedTranslator({"de": pool}, PlaneEmbedder(angles), settings)


def test_mined_pairs_are_translations_in_the_order_of_the_texts():
    mined = miner(["gelber hut", "blaue schuhe", "rotes kleid"])
    texts = ["blue shoes", "green hat", "red dress", "blue shoes"]
    assert found(mined, texts) == ["blaue schuhe", None, "rotes kleid", "blaue schuhe"]
    assert found(mined, texts[::-1]) == ["blaue schuhe", "rotes kleid", None, "blaue schuhe"]
    table = mined.pairs("de")
    assert table["margin"].is_monotonic_decreasing
    table = table.set_index("source")
    assert table["verdict"].to_dict() == {
        "green hat": "low similarity",
        "red dress": "kept",
        "blue shoes": "kept",
    }
    assert table.loc["red dress", "target"] == "rotes kleid"
    assert table.loc["red dress", "cosine"] == pytest.approx(np.cos(np.radians(1)), abs=1e-6)


def test_the_margin_is_that_of_artetxe_and_schwenk():
    left = np.array([[1, 0], [0.6, 0.8]], dtype=np.float32)
    right = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    # cos: [1, .8, 0] and [.6, .96, .8]; mean of the 2 neighbours: left .9, .88; right .8, .88, .4
    (first, second) = ratio_margin(Neighbours(left), Neighbours(right), k=2)
    assert (first[0], first[3]) == (0, True) and (second[0], second[3]) == (2, True)
    assert first[1:3] == pytest.approx((1.0, 1.0 / ((0.9 + 0.8) / 2)))
    assert second[1:3] == pytest.approx((0.8, 0.8 / ((0.88 + 0.4) / 2)))


def test_k_larger_than_either_side_is_clipped():
    assert found(miner(["rotes kleid"], settings=LOOSE.replace(k=50)), ["red dress"]) == ["rotes kleid"]


def test_a_partner_belongs_to_its_best_text_alone():
    angles = ANGLES | {"red robe": 3}
    mined = miner(["rotes kleid", "blaue schuhe"], angles, LOOSE.replace(margin=0.9))
    assert found(mined, ["red dress", "red robe"]) == ["rotes kleid", None]
    assert mined.pairs("de")["verdict"].tolist() == ["kept", "not mutual best"]


@pytest.mark.parametrize(
    ("text", "partner", "verdict"),
    [
        ("red dress", "RED  dress", "same text"),
        ("dress", "rotes kleid", "too short"),
        ("red dress", "kleid", "too short"),
        ("ドレス", "rotes kleid", "too short"),
        ("赤いドレス", "rotes kleid", "kept"),
        ("a54 s23 case", "a54 s23 hülle", "mostly codes"),
        ("dress size 38", "kleid größe 40", "other numbers"),
        ("dress size 038", "kleid größe ٣٨", "kept"),
        ("red dress", "rotes kleid mit spitze und schleife", "other length"),
        ("red dress", "rotes kleid mit spitze fürs", "kept"),
        ("赤いドレス用ハンガー", "kleiderbügel für kleider in rot mit samt", "kept"),
        ("한국 전통 의상 여성", "traditionelle kleidung aus korea für damen", "kept"),
        ("león dress", "dress leon fr", "no word of its own"),
        ("red dress", "rotes kleid", "kept"),
    ],
)
def test_what_only_looks_like_a_translation_is_refused(text, partner, verdict):
    angles = {text: 0, partner: 1, "far away": 90, "weit weg": 91}
    mined = miner([partner, "weit weg"], angles)
    translation = found(mined, [text, "far away"])[0]
    table = mined.pairs("de")
    assert table.loc[table["source"] == text, "verdict"].item() == verdict
    assert translation == (partner if verdict == "kept" else None)


def test_a_translation_tells_its_margin_and_a_refusal_its_rule():
    mined = miner(["rotes kleid", "blaue schuhe"])
    kept, refused = mined.translate(["red dress", "green hat"], "de")
    assert kept.refused == "" and kept.score == mined.pairs("de").set_index("source").loc["red dress", "margin"]
    assert (refused.text, refused.refused) == (None, "low similarity")
    assert mined.translate(["red dress"], "pl")[0].refused == "no query to find"


def test_numbers_and_lengths_are_compared_as_the_settings_say():
    pool, angles = ["kleid größe 40", "ja"], {"dress size 38": 0, "kleid größe 40": 1, "ja": 90}
    assert found(miner(pool, angles), ["dress size 38"]) == [None]
    assert found(miner(pool, angles, LOOSE.replace(same_numbers=False)), ["dress size 38"]) == ["kleid größe 40"]
    long = {"red dress": 0, "rotes kleid mit spitze und schleife": 1}
    free = LOOSE.replace(max_length_ratio=4.0)
    assert found(miner(list(long)[1:], long, free), ["red dress"]) == ["rotes kleid mit spitze und schleife"]


def test_lengths_are_those_of_letters_and_digits_dense_scripts_weighted():
    def ratio(left, right):
        return length_ratio(weighted_length(left), weighted_length(right))

    assert ratio("red dress", "r-e-d d.r.e.s.s 1 2 3 4 5 6 7 8") == 2.0
    assert ratio("12345", "한국") == 1.0
    assert ratio("赤いドレス", "abcdefgh") == pytest.approx(8.5 / 8)
    assert ratio("!?", "ab") == float("inf")


def test_margin_and_similarity_are_floors():
    texts, pool = ["red dress", "blue shoes"], ["rotes kleid", "blaue schuhe"]
    assert found(miner(pool, settings=LOOSE.replace(margin=1.5)), texts) == [None, None]
    assert found(miner(pool, settings=LOOSE.replace(min_similarity=0.9995)), texts) == [
        "rotes kleid",
        None,
    ]


def test_without_pool_or_texts_nothing_is_found():
    assert found(miner([]), ["red dress"]) == [None]
    assert found(miner(["rotes kleid"]), ["red dress"], "pl") == [None]
    assert found(miner(["rotes kleid"]), []) == []
    assert miner(["rotes kleid"]).pairs("de").columns.tolist() == [
        "source",
        "target",
        "cosine",
        "margin",
        "verdict",
    ]


def test_numbers_are_compared_by_value_in_any_script():
    assert numbers("2x 010 cm ٣") == ["10", "2", "3"]
    assert numbers("9" * 5000) == ["9" * 5000]


def test_identity_changes_with_pool_and_settings():
    identities = {
        miner(["rotes kleid"]).identity,
        miner(["blaue schuhe"]).identity,
        miner(["rotes kleid"], settings=LOOSE.replace(k=3)).identity,
    }
    assert len(identities) == 3
    assert miner(["blaue schuhe", "rotes kleid"]).identity == miner(["rotes kleid", "blaue schuhe"]).identity


def test_texts_are_embedded_once_for_all_languages():
    class Counting(PlaneEmbedder):
        asked = ()

        def queries(self, texts):
            self.asked = (*self.asked, *texts)
            return super().queries(texts)

    embedder = Counting(ANGLES)
    mined = MinedTranslator({"de": ["rotes kleid"], "pl": ["blaue schuhe"]}, embedder, LOOSE)
    texts = ["blue shoes", "red dress"]
    assert found(mined, texts) == [None, "rotes kleid"] and found(mined, texts, "pl") == ["blaue schuhe", None]
    assert embedder.asked == (*texts, "rotes kleid", "blaue schuhe")
    assert found(mined, ["green hat"], "pl") == [None] and embedder.asked[-2:] == ("green hat", "blaue schuhe")
