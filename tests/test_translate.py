from dataclasses import replace

import pytest

from analyticup.augment import proportional_quotas
from analyticup.augment.translate import COUNTS, missing_languages, translate_rows
from analyticup.augment.translators import CachedTranslator, Translation, build_translator
from analyticup.augment.translators.mined import MinedTranslator
from analyticup.config import TranslateSettings
from analyticup.corpus.rows import COLUMNS, make_rows, query_key
from analyticup.errors import UserError


def rows_of(*cells, split="train"):
    """Original rows from (language, query, target, label)."""
    columns = {name: [] for name in COLUMNS}
    for number, (language, query, target, label) in enumerate(cells, 1):
        values = (f"{split}-{number}", "QC", language, query, target, label, "original", "", query_key(query))
        for name, value in zip(COLUMNS, values, strict=True):
            columns[name].append(value)
    return make_rows(columns)


def texts_of(translations):
    return [translation.text for translation in translations]


class StubTranslator:
    """Answers `<language>:<text>`, or what `answers` says for a text; remembers what it was asked."""

    def __init__(self, answers=None, selective=False, uses_source=False, fail_at=None):
        self.identity = "stub"
        self.selective, self.uses_source, self.fail_at = selective, uses_source, fail_at
        self.answers = answers or {}
        self.calls = []

    def translate(self, texts, target_language, sources=None):
        if len(self.calls) + 1 == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((list(texts), target_language, sources))
        answers = [self.answers.get(text, f"{target_language}:{text}") for text in texts]
        return [answer if isinstance(answer, Translation) else Translation(answer) for answer in answers]

    @property
    def asked(self):
        return [text for texts, _, _ in self.calls for text in texts]


MIXED = [(lang, f"{lang} query {n}", f"path {n % 4}", n % 2) for lang in ("en", "fr") for n in range(20)]
MIXED += [("ko", f"ko query {n}", "path 1", 1) for n in range(40)]


def test_a_translated_row_keeps_target_label_and_group():
    rows = rows_of(("en", "Red Dress", "women,dresses", 1), ("fr", "robe rouge", "women,shoes", 0))
    new, counts, _ = translate_rows(rows, TranslateSettings(), StubTranslator(), ["de"], seed=1)
    first = new[new["source_id"] == "train-1"].iloc[0].to_dict()
    assert first == {
        "row_id": "train-1/t-de",
        "task": "QC",
        "language": "de",
        "query": "de:Red Dress",
        "target": "women,dresses",
        "label": 1,
        "origin": "translation",
        "source_id": "train-1",
        "group": "red dress",
    }
    assert tuple(new.columns) == COLUMNS and str(new["label"].dtype) == "Int8"
    assert new[new["source_id"] == "train-2"]["label"].tolist() == [0]
    assert counts == {"de": dict.fromkeys(COUNTS, 0) | {"asked": 2, "kept": 2}}


def test_the_sample_is_proportional_over_label_and_source_language():
    settings = TranslateSettings(rows_per_language=20)
    new, counts, _ = translate_rows(rows_of(*MIXED), settings, StubTranslator(), ["de"], seed=1)
    source_language = new["query"].str.removeprefix("de:").str[:2]
    drawn = new.groupby([source_language, "label"]).size().to_dict()
    # 2.5 rows for each stratum of en and fr: the two that are left over go to the first strata by name.
    assert drawn == {("en", 0): 3, ("fr", 0): 3, ("en", 1): 2, ("fr", 1): 2, ("ko", 1): 10}
    assert counts["de"]["kept"] == 20


def test_row_order_changes_nothing_and_the_seed_does():
    rows, settings = rows_of(*MIXED), TranslateSettings(rows_per_language=15)
    new, *_ = translate_rows(rows, settings, StubTranslator(), ["de", "pl"], seed=1)
    shuffled = rows.sample(frac=1, random_state=5)
    assert translate_rows(shuffled, settings, StubTranslator(), ["de", "pl"], seed=1)[0].equals(new)
    other, *_ = translate_rows(rows, settings, StubTranslator(), ["de", "pl"], seed=2)
    assert set(other["row_id"]) != set(new["row_id"])
    by_language = new.groupby("language")["source_id"].apply(set)
    assert by_language["de"] != by_language["pl"]


def test_a_costly_translator_is_asked_for_the_sample_alone_and_a_selective_one_for_everything():
    rows, settings = rows_of(*MIXED), TranslateSettings(rows_per_language=8)
    costly, selective = StubTranslator(), StubTranslator(selective=True)
    _, costly_counts, _ = translate_rows(rows, settings, costly, ["de"], seed=1)
    _, selective_counts, _ = translate_rows(rows, settings, selective, ["de"], seed=1)
    assert len(costly.asked) == 8 == costly_counts["de"]["asked"]
    assert len(selective.asked) == 80 == selective_counts["de"]["asked"]
    assert selective_counts["de"]["kept"] == 8 and selective_counts["de"]["not sampled"] == 72


def test_a_selective_sample_is_drawn_from_what_could_be_translated():
    known = {f"en query {number}": f"anfrage {number}" for number in range(6)}
    answers = {query: known.get(query) for _, query, _, _ in MIXED}
    settings = TranslateSettings(rows_per_language=6)
    new, counts, _ = translate_rows(rows_of(*MIXED), settings, StubTranslator(answers, True), ["de"], seed=1)
    assert sorted(new["query"]) == sorted(known.values())
    assert counts["de"]["refused"] == 74 and counts["de"]["kept"] == 6


def test_what_is_dropped_is_counted():
    rows = rows_of(
        ("en", "bag", "path a", 1),
        ("fr", "sac", "path a", 1),
        ("en", "sneaker", "path a", 1),
        ("es", "nike", "path a", 0),
        ("ko", "신발", "path b", 0),
        ("ja", "sandale", "path b", 1),
        ("pt", "sandália", "Path  B", 0),
    )
    answers = {
        "bag": "Tasche",
        "sac": "tasche",
        "sneaker": None,
        "nike": "NIKE",
        "신발": "  ",
        "sandália": "Sandale",
    }
    new, counts, _ = translate_rows(rows, TranslateSettings(), StubTranslator(answers), ["de"], seed=1)
    expected = {
        "asked": 7,
        "refused": 2,
        "unchanged": 1,
        "exists": 1,
        "duplicate": 1,
        "not sampled": 0,
        "kept": 2,
    }
    assert counts["de"] == expected
    assert sorted(new["query"].str.casefold()) == ["de:sandale", "tasche"]
    assert sum(value for name, value in counts["de"].items() if name != "asked") == 7


def test_only_labelled_originals_in_other_languages_are_translated():
    rows = rows_of(("de", "tasche", "a", 1), ("en", "bag", "a", None), ("en", "shoe", "a", 1), ("fr", "sac", "a", 1))
    rows.loc[3, "origin"] = "negative"
    translator = StubTranslator()
    translate_rows(rows, TranslateSettings(), translator, ["de"], seed=1)
    assert translator.asked == ["shoe"]


def test_each_query_is_asked_once_with_its_source_where_that_matters():
    rows = rows_of(("en", "bag", "a", 1), ("en", "bag", "b", 0), ("fr", "bag", "c", 1))
    plain, sourced = StubTranslator(), StubTranslator(uses_source=True)
    new, *_ = translate_rows(rows, TranslateSettings(), plain, ["de"], seed=1)
    translate_rows(rows, TranslateSettings(), sourced, ["de"], seed=1)
    assert plain.calls == [(["bag"], "de", None)] and len(new) == 3
    assert sourced.calls == [(["bag", "bag"], "de", ["en", "fr"])]


def test_no_target_language_gives_no_rows():
    translator = StubTranslator()
    new, counts, _ = translate_rows(rows_of(*MIXED), TranslateSettings(), translator, [], seed=1)
    assert len(new) == 0 and tuple(new.columns) == COLUMNS and counts == {} and translator.calls == []


def test_a_negative_volume_is_refused_and_zero_gives_nothing():
    settings = TranslateSettings(rows_per_language=-1)
    with pytest.raises(UserError, match=r"translate\.rows_per_language is -1"):
        translate_rows(rows_of(*MIXED), settings, StubTranslator(), ["de"], seed=1)
    costly = StubTranslator()
    new, counts, _ = translate_rows(rows_of(*MIXED), replace(settings, rows_per_language=0), costly, ["de"], seed=1)
    assert len(new) == 0 and counts["de"]["asked"] == 0 and costly.calls == []


def test_missing_languages_stand_in_competition_order_then_by_name():
    train = rows_of(("en", "a", "x", 1), ("th", "b", "x", 0))
    dev = rows_of(("id", "a", "x", None), ("ar", "b", "x", None), ("en", "c", "x", None), split="dev")
    test = rows_of(("xx", "a", "x", None), ("de", "b", "x", None), ("cs", "c", "x", None), split="test")
    assert missing_languages(train, dev, test) == ["de", "ar", "id", "cs", "xx"]
    assert missing_languages(train) == []


def test_quotas_sum_up_and_never_exceed_their_group():
    assert proportional_quotas({"b": 1, "a": 1, "c": 1}, 2) == {"a": 1, "b": 1, "c": 0}
    assert proportional_quotas({"a": 90, "b": 9, "c": 1}, 50) == {"a": 45, "b": 5, "c": 0}
    assert proportional_quotas({}, 3) == {} and proportional_quotas({"a": 0}, 3) == {"a": 0}
    for total in range(13):
        quotas = proportional_quotas({"a": 7, "b": 4, "c": 2}, total)
        assert sum(quotas.values()) == total and quotas["a"] <= 7 and quotas["b"] <= 4 and quotas["c"] <= 2


# The cache


def test_cached_translations_and_refusals_are_not_asked_again(tmp_path):
    first, second = StubTranslator({"xyz": Translation(None, 0.5, "no such word")}), StubTranslator()
    texts = ["bag", "xyz", "bag", "shoe"]
    bag, shoe = Translation("de:bag"), Translation("de:shoe")
    expected = [bag, Translation(None, 0.5, "no such word"), bag, shoe]
    assert CachedTranslator(first, tmp_path, 2).translate(texts, "de") == expected
    assert CachedTranslator(second, tmp_path, 2).translate(texts, "de") == expected
    assert sorted(first.asked) == ["bag", "shoe", "xyz"] and second.calls == []
    assert CachedTranslator(second, tmp_path, 2).translate(["bag"], "pl") == [Translation("pl:bag")]


def test_after_an_interruption_only_the_rest_is_asked(tmp_path):
    texts = [f"text {number}" for number in range(7)]
    with pytest.raises(KeyboardInterrupt):
        CachedTranslator(StubTranslator(fail_at=3), tmp_path, 2).translate(texts, "de")
    rest = StubTranslator()
    assert texts_of(CachedTranslator(rest, tmp_path, 2).translate(texts, "de")) == [f"de:{text}" for text in texts]
    assert rest.asked == ["text 4", "text 5", "text 6"]


def test_the_source_is_part_of_the_key_only_where_it_matters(tmp_path):
    inner = StubTranslator(uses_source=True)
    cached = CachedTranslator(inner, tmp_path, 8)
    cached.translate(["bag", "bag"], "de", ["en", "fr"])
    assert inner.calls == [(["bag", "bag"], "de", ["en", "fr"])]
    cached.translate(["bag"], "de", ["fr"])
    assert len(inner.calls) == 1
    with pytest.raises(UserError, match="batch size is 0"):
        CachedTranslator(inner, tmp_path, 0)


class NoEmbedder:
    identity = "none"


def test_build_translator_makes_what_the_settings_name(tmp_path):
    def build(name, **more):
        settings = TranslateSettings(translator=name, **more)
        pool = {"de": ["rotes kleid"]}
        return build_translator(settings, cache_dir=tmp_path, embedder_factory=lambda: NoEmbedder(), pool=pool)

    assert isinstance(build("mined"), MinedTranslator)
    with pytest.raises(UserError, match=r"translate\.translator is 'google'; use one of lexicon, mined, seedx, marian"):
        build("google")
    with pytest.raises(UserError, match=r"translate\.seedx.revision is None; pin ByteDance-Seed/Seed-X-PPO-7B"):
        build("seedx")
    assert list(tmp_path.iterdir()) == []
