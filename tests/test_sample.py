"""The embedded sample has the official form, keeps its splits apart, and labels rows as it says it does."""

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from analyticup.corpus import sample
from analyticup.corpus.languages import LANGUAGES
from analyticup.corpus.taxonomy import leaf, split_path
from analyticup.corpus.text import query_key
from analyticup.errors import UserError
from analyticup.settings.schema import SampleSettings

SETTINGS = SampleSettings(train_queries=420, dev_queries=130, test_queries=130, label_noise=0.08)
FIELDS = {"QC": "category_path", "QI": "item_title"}
SPLITS = {"train": "truth", "dev": "labels", "test": "labels"}
QC_TRAIN = {"en", "fr", "es", "ko", "pt", "ja"}
QI_TRAIN = QC_TRAIN | {"th"}
TAGS = {
    "train_QC": QC_TRAIN,
    "dev_QC": QC_TRAIN | {"de", "it", "pl", "ar"},
    "test_QC": QC_TRAIN | {"de", "it", "pl", "ar"},
    "train_QI": QI_TRAIN,
    "dev_QI": set(LANGUAGES),
    "test_QI": set(LANGUAGES),
}


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def labels(folder: Path, split: str, task: str) -> list[int]:
    return [r["label"] for r in records(folder / f"{split}_{task}.{SPLITS[split]}.txt")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    sample.write_sample(SETTINGS, 13, out)
    return out


@pytest.fixture(scope="module")
def catalogue() -> sample.Catalogue:
    return sample.Catalogue(sample.load_concepts(), sample.load_attributes())


@pytest.fixture(scope="module")
def qc(catalogue: sample.Catalogue) -> list[sample.Row]:
    return sample.qc_rows(13, "dev", sample.draw_queries(13, "QC", "dev", 1500, catalogue, set()), catalogue)


@pytest.fixture(scope="module")
def qi(catalogue: sample.Catalogue) -> list[sample.Row]:
    return sample.qi_rows(13, "dev", sample.draw_queries(13, "QI", "dev", 1500, catalogue, set()), catalogue)


def test_exactly_the_official_files_and_the_labels_beside_them(folder: Path) -> None:
    rows = {f"{split}_{task}.txt" for split in SPLITS for task in FIELDS}
    beside = {f"{split}_{task}.{kind}.txt" for split, kind in SPLITS.items() for task in FIELDS}
    assert set(contents(folder)) == rows | beside


@pytest.mark.parametrize("name", TAGS)
def test_lines_have_the_official_bytes(folder: Path, name: str) -> None:
    split, task = name.split("_")
    lines = (folder / f"{name}.txt").read_bytes().split(b"\n")
    assert lines.pop() == b""
    text = r'"(?:[^"\\]|\\["\\])*"'
    target = f"(?:{text}|null)" if name == "train_QI" else text
    label = r', "label": [01]' if split == "train" else ""
    for number, line in enumerate(lines, 1):
        head = rf'\{{"id": {number}, "task": "{task}", "language": "[a-z]{{2}}", "origin_query": {text}'
        assert re.fullmatch(rf'{head}, "{FIELDS[task]}": {target}{label}\}}', line.decode()), line.decode()


@pytest.mark.parametrize("name", TAGS)
def test_labels_stand_beside_the_rows_one_a_line(folder: Path, name: str) -> None:
    split = name.split("_")[0]
    lines = (folder / f"{name}.{SPLITS[split]}.txt").read_bytes().decode().split("\n")
    assert len(lines) == len(records(folder / f"{name}.txt")) + 1 and lines.pop() == ""
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(rf'\{{"id": {number}, "label": [01]\}}', line)


@pytest.mark.parametrize("name", TAGS)
def test_queries_stand_together_and_spread_evenly_over_the_languages(folder: Path, name: str) -> None:
    rows = records(folder / f"{name}.txt")
    runs = [(key, len(list(run))) for key, run in groupby((r["language"], r["origin_query"]) for r in rows)]
    assert len(runs) == len(set(runs)) == getattr(SETTINGS, f"{name.split('_')[0]}_queries")
    assert {size for _, size in runs} == {1, 2, 3, 4}
    per_language = Counter(language for (language, _), _ in runs)
    assert set(per_language) == TAGS[name]
    assert max(per_language.values()) - min(per_language.values()) <= 1
    assert all(2 <= len(query) <= 80 and query == query.strip() for (_, query), _ in runs)


def test_no_query_is_in_two_files(folder: Path) -> None:
    seen: Counter[str] = Counter()
    for name in TAGS:
        seen.update({query_key(r["origin_query"]) for r in records(folder / f"{name}.txt")})
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("name", TAGS)
def test_share_of_positives_is_the_constant(folder: Path, name: str) -> None:
    split, task = name.split("_")
    true = labels(folder, split, task)
    assert sum(true) == round(sample.POSITIVE_SHARE[task] * len(true))


@pytest.mark.parametrize("share", [0.0, 0.08, 0.5])
def test_exactly_the_share_of_train_labels_is_flipped_and_nothing_else_changes(
    folder: Path, tmp_path: Path, share: float
) -> None:
    sample.write_sample(SETTINGS.replace(label_noise=share), 13, tmp_path)
    for task in FIELDS:
        truth = labels(tmp_path, "train", task)
        given = [r["label"] for r in records(tmp_path / f"train_{task}.txt")]
        assert sum(a != b for a, b in zip(truth, given, strict=True)) == round(share * len(truth))
    mine, other = contents(tmp_path), contents(folder)
    changed = {name for name in mine if mine[name] != other[name]}
    assert changed == (set() if share == 0.08 else {"train_QC.txt", "train_QI.txt"})


def test_more_train_queries_leave_dev_and_test_as_they_are(folder: Path, tmp_path: Path) -> None:
    sample.write_sample(SETTINGS.replace(train_queries=900), 13, tmp_path)
    mine, other = contents(tmp_path), contents(folder)
    assert {n for n in mine if mine[n] == other[n]} == {n for n in mine if not n.startswith("train")}


def test_same_bytes_in_processes_with_different_string_hashes(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from analyticup.settings.schema import SampleSettings as S\n"
        "from analyticup.corpus.sample import write_sample\n"
        "write_sample(S(train_queries=420, dev_queries=130, test_queries=130, label_noise=0.08), 13, Path(sys.argv[1]))"
    )
    for hash_seed in ("1", "2"):
        out = tmp_path / hash_seed
        out.mkdir()
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code, str(out)], env=env, check=True)
        assert contents(out) == contents(folder)


def test_another_seed_gives_other_queries(folder: Path, tmp_path: Path) -> None:
    sample.write_sample(SETTINGS, 14, tmp_path)
    for name in ("train_QC.txt", "dev_QI.txt"):
        mine, other = ({r["origin_query"] for r in records(f / name)} for f in (tmp_path, folder))
        assert len(mine & other) < len(mine) / 4


def test_the_strict_reader_refuses_nothing_but_missing_titles(folder: Path) -> None:
    from analyticup.corpus.rows import read_split

    for name in TAGS:
        split, task = name.split("_")
        result = read_split(folder / f"{name}.txt", task, split)
        assert len(result.rejects) == (2 if name == "train_QI" else 0)
        assert result.notes == {} and result.lines == len(result.rows) + len(result.rejects)


def test_every_concept_comes_round_before_any_comes_twice(catalogue: sample.Catalogue) -> None:
    count = 2 * len(catalogue.concepts)
    queries = sample.draw_queries(5, "QC", "train", count, catalogue, set())
    assert set(Counter(q.concept.slug for q in queries[: count // 2]).values()) == {1}
    assert set(Counter(q.concept.slug for q in queries).values()) == {2}


def test_queries_are_as_messy_as_they_should_be(catalogue: sample.Catalogue) -> None:
    queries = sample.draw_queries(13, "QI", "train", 3500, catalogue, set())
    assert 0.09 < sum(bool(q.code) for q in queries) / 3500 < 0.15
    assert 0 < sum(q.text.endswith(" %") for q in queries) < 0.03 * 3500
    plain = [q for q in queries if not q.code]
    kept = [query_key(q.concept.names[q.language]) in query_key(q.text) for q in plain if q.language == "fr"]
    assert 0.06 < 1 - sum(kept) / len(kept) < 0.2  # English words and typos
    english = [q for q in queries if q.language == "en"]
    foreign = [q for q in english if re.search(r"[^\x00-\x7f]", q.text)]
    assert 0 < len(foreign) <= round(0.02 * len(english))
    counts = Counter(len(q.attributes) for q in queries)
    assert set(counts) == {0, 1, 2} and min(counts.values()) > 0.15 * 3500


def test_typo_changes_one_letter_or_two_neighbours() -> None:
    kinds = set()
    for seed in range(60):
        typed = sample.typo(random.Random(seed), "red balloon 4k-tv")
        first, word, last = typed.split(" ")
        assert (first, last) == ("red", "4k-tv") and word != "balloon" and word[0] == "b"
        kinds.add(len(word) - len("balloon"))
        if len(word) == len("balloon"):
            assert sorted(word) == sorted("balloon")
    assert kinds == {-1, 0, 1}
    assert sample.typo(random.Random(1), "k8 tv") == "k8 tv"


def test_attributes_stand_where_the_language_puts_them() -> None:
    pairs = [("material", "leather"), ("color", "red"), ("audience", "women")]
    assert sample.phrase("boots", pairs, "en") == "women red leather boots"
    assert sample.phrase("botas", pairs, "es") == "botas leather red women"


def test_category_labels_follow_from_the_concept(qc: list[sample.Row], catalogue: sample.Catalogue) -> None:
    for query, target, label in qc:
        levels = split_path(target or "")
        own = split_path(query.concept.path)
        assert len(levels) >= 2
        assert (levels == own[: len(levels)]) == bool(label)
        if not label:
            assert levels[-1] != own[-1]


def test_what_is_right_for_a_confusable_product_is_never_wrong(
    qc: list[sample.Row], catalogue: sample.Catalogue
) -> None:
    by_leaf: dict[str, list[sample.Concept]] = {}
    for concept in catalogue.concepts:
        by_leaf.setdefault(leaf(concept.path), []).append(concept)
    shared = 0
    for query, target, label in qc:
        for other in by_leaf[leaf(query.concept.path)]:
            shared += other is not query.concept
            assert label or target not in (other.path, *sample.ancestors(other.path))
    assert shared > 100


def test_no_negative_is_right_for_a_product_that_could_be_meant(catalogue: sample.Catalogue) -> None:
    helmet = catalogue.by_slug["bike-helmet"]
    queries = [sample.Query(f"helmet {n}", "en", helmet, (), "") for n in range(6000)]
    wrong = {target for _, target, label in sample.qc_rows(13, "dev", queries, catalogue) if not label}
    path = catalogue.by_slug["motorcycle-helmet"].path
    assert len(wrong) > 300 and not wrong & {path, *sample.ancestors(path)}
    for slug, around in catalogue.around.items():
        for kind in ("sibling", "counterpart", "far"):
            assert not [c for c in around[kind] if sample.confusable(c, catalogue.by_slug[slug])]


def test_negatives_mix_siblings_counterparts_and_far_ones(qc: list[sample.Row], catalogue: sample.Catalogue) -> None:
    kinds: Counter[str] = Counter()
    for query, target, label in qc:
        if label:
            kinds["own" if target == query.concept.path else "ancestor"] += 1
            continue
        own = query.concept
        linked = {c.path for c in catalogue.concepts if c.slug == own.accessory_of or c.accessory_of == own.slug}
        far = split_path(target)[0] != split_path(own.path)[0]
        kinds["counterpart" if target in linked else "far" if far else "sibling"] += 1
    negatives = kinds["counterpart"] + kinds["far"] + kinds["sibling"]
    assert 0.1 < kinds["sibling"] / negatives < 0.3
    assert 0.65 < kinds["far"] / negatives < 0.9
    assert kinds["counterpart"] / negatives > 0.01
    assert 0 < kinds["ancestor"] / (kinds["own"] + kinds["ancestor"]) < 0.1


def test_chosen_concepts_come_in_whole_families_with_the_products_of_accessories() -> None:
    concepts = sample.load_concepts()
    chosen = sample.choose_concepts(concepts, 205, seed=13)
    slugs = {concept.slug for concept in chosen}
    assert 205 <= len(chosen) < 260 and [c for c in concepts if c.slug in slugs] == chosen
    assert all(concept.accessory_of in slugs for concept in chosen if concept.accessory_of)
    assert chosen == sample.choose_concepts(concepts, 205, seed=13) != sample.choose_concepts(concepts, 205, seed=14)
    assert sample.choose_concepts(concepts, None, seed=13) == concepts


@pytest.mark.parametrize("task", FIELDS)
def test_no_target_twice_for_a_query(task: str, request: pytest.FixtureRequest) -> None:
    rows: list[sample.Row] = request.getfixturevalue(task.lower())
    pairs = Counter((query.text, query_key(target or "")) for query, target, _ in rows)
    assert set(pairs.values()) == {1}


def said(text: str | None) -> str:
    return f" {query_key(text or '')} "


def test_titles_name_their_product_and_positives_contradict_nothing(
    qi: list[sample.Row], catalogue: sample.Catalogue
) -> None:
    attributes = sample.load_attributes()
    contradicted = 0
    for query, title, label in qi:
        own = query.concept
        names = [own.names["en"], own.names["th"], *([own.alias_en] if own.alias_en else [])]
        found = [n for n in names if query_key(n) in said(title)]
        if label:
            assert found, (query.text, title)
        rest = said(title)
        for name in sorted({n for c in catalogue.concepts for n in (c.names["en"], c.alias_en) if n}, key=len):
            rest = rest.replace(said(name), "  ")
        against = [
            b
            for a in query.attributes
            for b in attributes
            if a.kind == b.kind and a.slug != b.slug and said(b.names["en"]) in rest and a.kind != "feature"
        ]
        assert not (label and against), (query.text, title)
        contradicted += bool(not label and found and against)
    negatives = sum(not label for _, _, label in qi)
    assert 0.02 < contradicted / negatives < 0.25


def test_titles_have_4_to_14_words_and_only_thai_queries_get_thai_ones(qi: list[sample.Row]) -> None:
    thai = {n: bool(re.search("[\u0e00-\u0e7f]", title or "")) for n, (_, title, _) in enumerate(qi)}
    for n, (query, title, _) in enumerate(qi):
        assert thai[n] or 4 <= len((title or "").split()) <= 14, title
        assert query.language == "th" or not thai[n]
    of_thai = [thai[n] for n, (query, _, _) in enumerate(qi) if query.language == "th"]
    assert 0.2 < sum(of_thai) / len(of_thai) < 0.4


def test_an_accessory_is_offered_for_its_product_and_the_product_for_its_accessory(
    qi: list[sample.Row], catalogue: sample.Catalogue
) -> None:
    wrong = [(q.concept, said(title)) for q, title, label in qi if not label]
    owners = {c: catalogue.by_slug[c.accessory_of] for c in catalogue.concepts if c.accessory_of}
    offered = [(c, said(f"{a.names['en']} for {c.names['en']}")) for a, c in owners.items()]
    assert any(c is own and words in title for own, title in wrong for c, words in offered)
    assert any(own in owners and said(owners[own].names["en"]) in title for own, title in wrong)


def test_an_accessory_in_its_products_category_is_a_wrong_item_but_no_wrong_category(
    catalogue: sample.Catalogue,
) -> None:
    pan, lid = catalogue.by_slug["frying-pan"], catalogue.by_slug["pan-lid"]
    assert pan.path == lid.path
    queries = [sample.Query(f"pan {n}", "en", pan, (), "") for n in range(200)]
    items = [said(t) for _, t, label in sample.qi_rows(13, "dev", queries, catalogue) if not label]
    assert any(said("pan lid") in title for title in items)
    assert all(label for _, t, label in sample.qc_rows(13, "dev", queries, catalogue) if t == lid.path)


def test_missing_titles_are_in_train_alone(folder: Path) -> None:
    missing = {name: sum(r[FIELDS[name[-2:]]] is None for r in records(folder / f"{name}.txt")) for name in TAGS}
    assert missing.pop("train_QI") == 2
    assert set(missing.values()) == {0}


def test_running_out_of_query_texts_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_CODE", 0)
    tiny = sample.Catalogue(sample.load_concepts()[:1], [])
    with pytest.raises(UserError, match=r"data\.sample\.train_queries=9000: no unused query text"):
        sample.draw_queries(13, "QC", "train", 9000, tiny, set())


def test_confusable_products_are_known() -> None:
    def concept(slug: str, path: str, name: str, accessory_of: str = "", alias: str = "") -> sample.Concept:
        names = {k: f"{name} {k}" for k in LANGUAGES} | {"en": name}
        return sample.Concept(slug, path, accessory_of, alias, names)

    watch = concept("watch", "a,b,watches", "watch")
    assert sample.confusable(watch, concept("clock", "x,y,watches", "clock"))
    assert sample.confusable(watch, concept("clock", "a,b", "clock"))
    assert sample.confusable(watch, concept("smart", "a,b,smart ones", "smart watch"))
    assert sample.confusable(watch, concept("timer", "a,b,timers", "timer", alias="Watch"))
    assert not sample.confusable(watch, concept("strap", "a,b,straps", "watch strap", accessory_of="watch"))
    assert not sample.confusable(watch, concept("ring", "a,b,rings", "ring"))


def raw_tables(prefix: str) -> dict[str, list[list[str]]]:
    files = (resources.files("analyticup.corpus") / "tables").iterdir()
    texts = {f.name: f.read_bytes().decode("utf-8") for f in files if f.name.startswith(prefix)}
    assert all(text.endswith("\n") and "\r" not in text and '"' not in text for text in texts.values())
    return {name: [line.split("\t") for line in text[:-1].split("\n")] for name, text in texts.items()}


def test_concept_tables_are_complete_and_consistent() -> None:
    tables = raw_tables("concepts_")
    header = ["concept", "path", "accessory_of", "alias_en", *LANGUAGES]
    for name, rows in tables.items():
        assert rows[0] == header, name
        assert all(len(row) == len(header) for row in rows), name
        assert all(cell == " ".join(cell.split()) for row in rows for cell in row), name
        assert all(cell for row in rows for n, cell in enumerate(row) if n not in (2, 3)), name
    concepts = sample.load_concepts()
    assert len(concepts) == sum(len(rows) - 1 for rows in tables.values()) >= 200
    slugs = [c.slug for c in concepts]
    assert not [s for s, n in Counter(slugs).items() if n > 1]
    assert not [c.slug for c in concepts if c.accessory_of and c.accessory_of not in {*slugs} - {c.slug}]
    assert {len(split_path(c.path)) for c in concepts} == {2, 3, 4}
    assert len({c.path for c in concepts if ", " in c.path}) >= 40


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_name_means_one_concept(language: str) -> None:
    names = Counter(query_key(c.names[language]) for c in sample.load_concepts())
    if language == "en":
        names += Counter(query_key(c.alias_en) for c in sample.load_concepts() if c.alias_en)
    assert not [name for name, n in names.items() if n > 1]


def test_a_path_is_in_one_table_only_and_never_above_another() -> None:
    paths = {name: {row[1] for row in rows[1:]} for name, rows in raw_tables("concepts_").items()}
    assert sum(map(len, paths.values())) == len(set().union(*paths.values()))
    known = set().union(*paths.values())
    assert not [path for path in known for above in sample.ancestors(path) if above in known]


def test_attribute_table_is_complete_and_its_words_distinct() -> None:
    (rows,) = raw_tables("attributes").values()
    assert rows[0] == ["kind", "attribute", *LANGUAGES]
    assert all(len(row) == 15 and all(row) for row in rows)
    kinds = Counter(a.kind for a in sample.load_attributes())
    assert kinds.keys() == {"color", "material", "size", "audience", "feature"}
    assert sum(kinds.values()) == len(rows) - 1 >= 45 and kinds["color"] == 12
    for language in LANGUAGES:
        words = Counter(query_key(a.names[language]) for a in sample.load_attributes())
        assert not [word for word, n in words.items() if n > 1], language


def test_attributes_make_rough_sense(catalogue: sample.Catalogue) -> None:
    fitting = {slug: {a.slug for a in found} for slug, found in catalogue.fitting.items()}
    assert not {"wool", "cotton", "xl", "dog"} & fitting["mobile-phone"]
    assert "wireless" not in fitting["wireless-mouse"] and "men" not in fitting["wedding-dress"]
    assert "red" in fitting["mobile-phone"] and "wool" in fitting["cardigan"]
