import json
import re
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
from tiny_runs import make_job

from analyticup.augmentation import TRANSLATE, stage
from analyticup.augmentation.translate import COUNTS, missing_languages, translate_rows
from analyticup.augmentation.translation_report import write_report
from analyticup.augmentation.translators import build_translator
from analyticup.augmentation.translators.base import CachedTranslator, Tools, Translation
from analyticup.augmentation.translators.mined import MinedTranslator
from analyticup.corpus.rows import COLUMNS, load_rows, make_rows, save_rows
from analyticup.corpus.text import query_key
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.engine.graph import WHOLE, Part, Shard
from analyticup.errors import UserError
from analyticup.seeds import proportional_quotas
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import Settings, TranslateSettings, read_volumes
from analyticup.training.folds import assign_folds, check_no_leakage
from analyticup.training.source import Machine


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


def test_a_costly_translator_is_asked_anew_for_rows_that_gave_none():
    rows, settings = rows_of(*MIXED), TranslateSettings(rows_per_language=20)
    plain = StubTranslator()
    translate_rows(rows, settings, plain, ["de"], seed=1)
    refused = plain.asked[:7]
    new, counts, _ = translate_rows(rows, settings, StubTranslator(dict.fromkeys(refused)), ["de"], seed=1)
    assert counts["de"]["asked"] == 27 and counts["de"]["refused"] == 7 and counts["de"]["kept"] == 20
    first, *_ = translate_rows(rows, settings, StubTranslator(), ["de"], seed=1)
    assert new["label"].value_counts().to_dict() == first["label"].value_counts().to_dict()
    # Until the pool is empty, or hope is lost.
    few = StubTranslator(dict.fromkeys(plain.asked[:20]))
    assert translate_rows(rows, settings.replace(rows_per_language=80), few, ["de"], seed=1)[1]["de"]["asked"] == 80
    many = rows_of(*(("en", f"query {n}", "path", n % 2) for n in range(2000)))
    nothing = StubTranslator({f"query {n}": None for n in range(2000)})
    _, counts, _ = translate_rows(many, settings.replace(rows_per_language=300), nothing, ["de"], seed=1)
    assert counts["de"]["asked"] == 600 and counts["de"]["kept"] == 0


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


def test_a_volume_of_zero_gives_nothing():
    settings, costly = TranslateSettings(volumes=["de=0"]), StubTranslator()
    new, counts, _ = translate_rows(rows_of(*MIXED), settings, costly, ["de"], seed=1)
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


def test_volumes_hold_for_their_language_alone():
    settings = TranslateSettings(rows_per_language=6, volumes=["de=10", "pl=0"])
    _, counts, _ = translate_rows(rows_of(*MIXED), settings, StubTranslator(), ["de", "pl", "ar"], seed=1)
    assert {language: count["kept"] for language, count in counts.items()} == {"de": 10, "pl": 0, "ar": 6}


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (["de"], "'de' is not of the form"),
        (["de="], "'de=' is not of the form"),
        (["de=1", "de=2"], "names 'de' twice"),
        (["de=-1"], "de=-1: the rows must be a whole number"),
        (["de=1.5"], "de=1.5: the rows must be a whole number"),
    ],
)
def test_volumes_that_cannot_be_read_are_named(entries, told):
    with pytest.raises(UserError, match=f"translate.volumes.*{told}"):
        read_volumes(entries)


def test_only_rows_in_the_source_languages_are_translated():
    settings = TranslateSettings(source_languages=["ko", "fr"])
    translator = StubTranslator()
    translate_rows(rows_of(*MIXED), settings, translator, ["de"], seed=1)
    assert {text[:2] for text in translator.asked} == {"ko", "fr"} and len(translator.asked) == 60
    with pytest.raises(UserError, match=r"source_languages = th: no labelled row is in one of these; .* en, fr, ko$"):
        translate_rows(rows_of(*MIXED), settings.replace(source_languages=["th"]), translator, ["de"], seed=1)


@pytest.mark.parametrize(
    ("share", "limit", "negatives", "positives"),
    [
        (0.5, 20, 10, 10),
        (0.75, 20, 5, 15),
        # Half of 41 rows, to the nearest row.
        (0.5, 1000, 20, 21),
        (0.0, 30, 20, 0),
        (1.0, 30, 0, 30),
        (0.8, 1000, 15, 60),
    ],
)
@pytest.mark.parametrize("selective", [True, False])
def test_the_label_balance_goes_before_the_number_of_rows(share, limit, negatives, positives, selective):
    # 20 negatives and 60 positives
    settings = TranslateSettings(rows_per_language=limit, positive_share=share)
    new, counts, _ = translate_rows(rows_of(*MIXED), settings, StubTranslator(selective=selective), ["de"], seed=1)
    assert ((new["label"] == 0).sum(), (new["label"] == 1).sum()) == (negatives, positives)
    assert counts["de"]["kept"] == negatives + positives
    shuffled = rows_of(*MIXED).sample(frac=1, random_state=3)
    again, *_ = translate_rows(shuffled, settings, StubTranslator(selective=selective), ["de"], seed=1)
    assert again.equals(new)


def test_the_balance_holds_though_a_costly_translator_refuses_one_label():
    answers = {query: None for _, query, _, label in MIXED if label == 0 and query.startswith("en")}
    settings = TranslateSettings(rows_per_language=40, positive_share=0.5)
    new, counts, _ = translate_rows(rows_of(*MIXED), settings, StubTranslator(answers), ["de"], seed=1)
    assert (new["label"].tolist().count(0), new["label"].tolist().count(1)) == (10, 11)
    assert counts["de"] | {"refused": 10, "not sampled": 9, "kept": 21, "asked": 40} == counts["de"]


def test_new_rows_follow_their_source_into_its_fold():
    rows = rows_of(*MIXED)
    settings = TranslateSettings(volumes=["de=30"], source_languages=["en", "ko"], positive_share=0.5)
    new, *_ = translate_rows(rows, settings, StubTranslator(), ["de", "pl"], seed=1)
    everything = pd.concat([rows, new], ignore_index=True)
    fold = assign_folds(everything, 3, seed=1)
    for number in range(3):
        held_out = everything[(fold == number) & (everything["origin"] == "original")]
        check_no_leakage(everything[fold != number], held_out)
        assert not set(everything[fold != number]["source_id"]) & set(held_out["row_id"])


# The report


def scored(translation, score):
    return Translation(translation, score)


def test_the_report_counts_pairs_rows_and_reasons(tmp_path):
    rows = rows_of(
        *[("en", "bag", "a", 1), ("en", "bag", "b", 0), ("fr", "bag", "c", 1), ("en", "shoe | <b>", "a", 1)],
        *[("en", "hat", "a", 1), ("en", "cap", "a", 1), ("en", "belt", "a", 1)],
    )
    answers = {
        "bag": scored("Tasche", 1.5),
        "shoe | <b>": scored("Schuh | <b>", 1.0),
        "cap": Translation(None, 2.0, "low margin"),
    }
    answers |= {"belt": Translation(None, 2.0, "low margin"), "hat": Translation(" ")}
    _, counts, pairs = translate_rows(rows, TranslateSettings(), StubTranslator(answers), ["de"], seed=1)
    write_report(pairs, counts, 1, tmp_path)
    found = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    shared = {"source": "bag", "translation": "Tasche", "language": "de", "score": 1.5}
    assert found[0] == shared | {"source_language": "en", "rows": 2}
    assert found[2] == shared | {"source_language": "fr", "rows": 1} and len(found) == 3
    told = json.loads((tmp_path / "translation_report.json").read_text(encoding="utf-8"))["languages"]["de"]
    assert told["pairs found"] == 3 and told["pairs refused"] == {"empty": 1, "low margin": 2}
    assert told["rows"] == counts["de"] and told["rows"]["kept"] == 4
    # Of 1, 1.5 and 1.5.
    assert told["score"] == {"p5": 1.05, "p25": 1.25, "p50": 1.5, "p75": 1.5, "p95": 1.5}
    assert sorted(example["source"] for example in told["examples"]) == ["bag", "bag", "shoe | <b>"]
    text = (tmp_path / "translation_report.md").read_text(encoding="utf-8")
    assert "- pairs found: 3; refused: empty 1, low margin 2" in text
    assert "| en | shoe \\| \\<b> | Schuh \\| \\<b> | 1.0 |" in text


def test_the_report_is_the_same_whatever_the_order_and_shows_twenty_pairs_of_rows(tmp_path):
    rows, settings = rows_of(*MIXED), TranslateSettings(rows_per_language=30)
    for name, frame, seed in (("a", rows, 1), ("b", rows.sample(frac=1, random_state=2), 1), ("c", rows, 2)):
        (tmp_path / name).mkdir()
        _, counts, pairs = translate_rows(frame, settings, StubTranslator(selective=True), ["de", "pl"], seed=1)
        write_report(pairs, counts, seed, tmp_path / name)
    for name in ("pairs.jsonl", "translation_report.json", "translation_report.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    told = [json.loads((tmp_path / name / "translation_report.json").read_text(encoding="utf-8")) for name in "ac"]
    first, other = (entry["languages"]["de"]["examples"] for entry in told)
    assert len(first) == 20 and {example["rows"] for example in first} == {1} and first != other
    assert [example["source"] for example in first] != sorted(example["source"] for example in first)
    assert told[0]["languages"]["de"]["score"] is None


def test_a_report_without_languages_says_so(tmp_path):
    write_report({}, {}, 1, tmp_path)
    assert "No language to translate to." in (tmp_path / "translation_report.md").read_text(encoding="utf-8")
    assert (tmp_path / "pairs.jsonl").read_bytes() == b""


def test_the_stage_writes_rows_and_report_and_counts_what_it_left_out(tmp_path):
    rows = rows_of(("en", "frying pan 28cm", "a", 1), ("en", "zzz", "a", 0), ("fr", "poêle à frire", "b", 1))
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    save_rows(rows, tmp_path / "in" / "train.parquet")
    save_rows(rows_of(("de", "pfanne", "a", None), split="dev"), tmp_path / "in" / "dev.parquet")
    own = TranslateSettings(translator="lexicon", source_languages=["en"], volumes=["de=5", "vn=5"])
    given = {"rows": Artifact(tmp_path / "in", StageRecord())}
    job = make_job(tmp_path, settings=Settings(translate=own), inputs=given, out=tmp_path / "out")
    counts = stage.translate(job)
    assert counts["new"] == 1 and counts["by language"]["de"]["refused"] == 1
    assert counts["pairs refused"] == {"de": {"no known phrase": 1}}
    assert counts["translate.volumes not needed for"] == "vn"
    assert counts["left out by translate.source_languages"] == 1
    assert load_rows(tmp_path / "out" / "rows.parquet")["row_id"].tolist()[-1] == "train-1/t-de"
    assert "bratpfanne 28cm" in (tmp_path / "out" / "pairs.jsonl").read_text(encoding="utf-8")


def test_the_stage_writes_the_same_in_any_number_of_shards_which_do_all_that_costs(tmp_path, monkeypatch):
    stub = StubTranslator({"en query 3": Translation(None, None, "no")})
    monkeypatch.setattr(stage, "_translator", lambda job, *rest: CachedTranslator(stub, job.cache, 4))
    own = TranslateSettings(translator="seedx", rows_per_language=12, languages=["de", "pl", "it"])
    made, asked = {}, {}
    for of in (1, 2, 7):
        (tmp_path / f"{of}").mkdir()
        save_rows(rows_of(*MIXED), tmp_path / f"{of}" / "train.parquet")
        given = {"rows": Artifact(tmp_path / f"{of}", StageRecord())}
        calls = []
        for shard in [*(Shard(number, of) for number in range(of) if of > 1), WHOLE]:
            out = tmp_path / f"{of}" / f"out{shard}"
            out.mkdir()
            job = make_job(out, settings=Settings(translate=own), inputs=given, part=Part(shard=shard))
            stage.translate(replace(job, cache=tmp_path / f"{of}"))
            calls.append(len(stub.calls))
            files = {path.name: path.read_bytes() for path in out.iterdir()}
            assert bool(files) == (shard == WHOLE)
        # Each shard has languages of its own, of which there are three; the stage itself asks nothing.
        assert of == 1 or calls[-1] == calls[-2]
        assert sum(before < after for before, after in pairwise([0, *calls])) == min(of, 3)
        made[of], asked[of] = files, sorted(stub.asked)
        stub.calls.clear()
    assert made[1] == made[2] == made[7] and asked[1] == asked[2] == asked[7]


def test_only_translators_with_a_model_are_cut():
    own = Settings().replace(**{"translate.shards": 4})
    pieces = {name: own.replace(**{"translate.translator": name}) for name in ("lexicon", "mined", "seedx")}
    assert [TRANSLATE.cut(own).pieces for own in pieces.values()] == [1, 1, 4]


# The settings


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("translate.volumes=[de=x]", "translate.volumes: de=x: the rows must be a whole number"),
        ("translate.volumes=de", "'de' is not of the form language=value"),
        ("translate.positive_share=1.5", "must be between 0 and 1"),
        ("translate.seq2seq.codes=[de]", "translate.seq2seq.codes: 'de' is not of the form"),
        ("translate.translator=seq2seq", "translate.translator = seq2seq: set translate.seq2seq.model"),
        ("QI.translate.translator=seq2seq", "QI.translate.translator = seq2seq: set translate.seq2seq.model"),
        ("translate.mined.max_length_ratio=0.5", "must be at least 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_at_once(tmp_path, given, told):
    config = tmp_path / "empty.yaml"
    config.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(told)):
        load_settings(config, [given])


def test_volumes_are_checked_against_the_languages_of_each_task(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("translate: {volumes: [de=500, vn=10], languages: [de, vn]}\n", encoding="utf-8")
    settings = load_settings(config, ["translate.translator=seq2seq", "translate.seq2seq.model=some/model"])
    assert settings.translate.volumes == ["de=500", "vn=10"]
    with pytest.raises(
        UserError, match=r"mine.yaml: translate.volumes names vn, which QC.translate.languages does not"
    ):
        load_settings(config, ["QC.translate.languages=[de]"])
    assert load_settings(config, ["translate.languages=null"]).translate.languages is None


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


class NoEmbedder:
    identity = "none"


def test_build_translator_makes_what_the_settings_name(tmp_path):
    def build(name, **more):
        settings = TranslateSettings(translator=name, **more)
        tools = Tools(tmp_path, Machine("cpu", None), {"de": ["rotes kleid"]}, NoEmbedder)
        return build_translator(settings, tools)

    assert isinstance(build("mined"), MinedTranslator)
    with pytest.raises(UserError, match=r"translate\.seedx.revision is None; pin ByteDance-Seed/Seed-X-PPO-7B"):
        build("seedx")
    assert list(tmp_path.iterdir()) == []
