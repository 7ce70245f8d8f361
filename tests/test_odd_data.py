"""Small, odd and foreign files: divided where it can be done, else refused in one line before the first stage, by
`check` and by the run alike."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyticup.checks.data import data_findings
from analyticup.checks.preflight import blockers
from analyticup.checks.rows import row_findings, rows_beyond_the_first
from analyticup.corpus.official import raw_files
from analyticup.corpus.rows import SPLITS, make_rows, read_lines, read_split
from analyticup.errors import UserError
from analyticup.settings.loading import settings_from_dict
from analyticup.submission.score import labels_of
from analyticup.training import folds
from analyticup.training.folds import assign_folds
from analyticup.verdict import Verdict


def table(rows):
    """A rows table from (query, label) or (query, label, "negative" for a derived row)."""
    full = [(*row, "original")[:3] for row in rows]
    columns = {
        "row_id": [f"{'train' if origin == 'original' else origin}-{i}" for i, (_, _, origin) in enumerate(full, 1)],
        "task": ["QC"] * len(full),
        "language": ["en"] * len(full),
        "query": [query for query, _, _ in full],
        "target": [f"target {i}" for i in range(len(full))],
        "label": [label for _, label, _ in full],
        "origin": [origin for _, _, origin in full],
        "source_id": [""] * len(full),
        "group": [query for query, _, _ in full],
    }
    return make_rows(columns)


def divides(rows, fold, n):
    """What every division must keep: whole queries, no fold without rows, both labels in every training."""
    whole = all(len(set(fold[rows["query"] == query])) == 1 for query in set(rows["query"]))
    labels, original = rows["label"].to_numpy(), (rows["origin"] == "original").to_numpy()
    full = all((original & (fold == part)).any() for part in range(n))
    return whole and full and all(set(labels[fold != part]) == {0, 1} for part in range(n))


def any_division(rows, n):
    """By trying all; every query of these tables has original rows."""
    held = [set(rows["label"][rows["query"] == query]) for query in sorted(set(rows["query"]))]
    holders = [[place for place, own in enumerate(held) if label in own] for label in (0, 1)]
    return any(
        len(set(parts)) == n and all(len({parts[place] for place in having}) > 1 for having in holders)
        for parts in itertools.product(range(n), repeat=len(held))
    )


def drawn(seed):
    random = np.random.default_rng(seed)
    queries, n = int(random.integers(1, 7)), int(random.integers(2, 4))
    share = random.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    rows = [
        (f"query {query}", int(random.random() < share))
        for query in range(queries)
        for _ in range(random.integers(1, 5))
    ]
    return table(rows), n


@pytest.mark.parametrize("block", range(4))
def test_a_division_is_found_wherever_there_is_one(block):
    kinds = {"divided": 0, "refused": 0}
    for seed in range(block * 20, block * 20 + 20):
        rows, n = drawn(seed)
        try:
            fold = assign_folds(rows, n, seed)
        except UserError as error:
            assert not any_division(rows, n), (seed, str(error))
            assert "\n" not in str(error) and ("bring" in str(error) or "lower folds.n" in str(error))
            kinds["refused"] += 1
        else:
            assert divides(rows, fold, n), seed
            assert (fold == assign_folds(rows, n, seed)).all()
            kinds["divided"] += 1
    assert min(kinds.values()) > 1, kinds


def test_plenty_of_rows_are_divided_as_before(monkeypatch):
    rows = table([(f"query {number // 3}", number % 2) for number in range(150)])
    mended = assign_folds(rows, 5, 7)
    monkeypatch.setattr(folds, "_mend", lambda *_: None)
    assert (mended == assign_folds(rows, 5, 7)).all()


def test_derived_rows_count_for_the_labels_of_a_training():
    rows = table([("a", 1), ("b", 1), ("c", 1), ("a", 0, "negative"), ("b", 0, "negative")])
    assert divides(rows, assign_folds(rows, 2, 0), 2)


# ---------------------------------------------------------------- files


def line(number, query="red bag", target="bags", label=None, task="QC", language="en"):
    field = {"QC": "category_path", "QI": "item_title"}[task]
    record = {"id": number, "task": task, "language": language, "origin_query": query, field: target}
    return json.dumps(record if label is None else record | {"label": label}) + "\n"


def train(count=12, queries=6, **more):
    return "".join(
        line(i, f"query {i % queries}", f"target {i}", i // queries % 2, **more) for i in range(1, count + 1)
    )


def labels(*numbers, **more):
    return "".join(json.dumps({"id": number, "label": number % 2} | more) + "\n" for number in numbers)


SOUND = {
    "train_QC.txt": train(),
    "dev_QC.txt": "".join(line(i) for i in range(1, 5)),
    "test_QC.txt": "".join(line(i) for i in range(1, 4)),
    "dev_QC.labels.txt": labels(1, 2, 3, 4),
}


def data(folder: Path, settings: Any = None, **changed) -> Path:
    for name, content in (SOUND | {name.replace("__", ".") + ".txt": value for name, value in changed.items()}).items():
        path = folder / name
        if callable(content):
            content(path)
        elif content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def settings(folder, *more):
    tiny = [
        "model.backbone=random:qwen3",
        "machine.workers=1",
        "machine.accelerator=cpu",
        "tracking.mode=disabled",
        "negatives.enabled=false",
        "translate.enabled=false",
    ]
    places = [f"paths.{name}={folder}-out/{name}" for name in ("artifacts", "submissions", "cache")]
    return settings_from_dict({}, "test", [f"data.dir={folder}", "tasks=[QC]", *tiny, *places, *more])


def dangling(path: Path) -> None:
    path.symlink_to("nowhere.txt")


def a_folder(path: Path) -> None:
    path.mkdir()


def indented(text: str) -> str:
    return "".join(json.dumps(json.loads(one), indent=2) + "\n" for one in text.splitlines())


def of_files(name: str) -> dict[str, tuple[dict, str]]:
    """Each form that a file can have, for one of the files; what the line says."""
    text = SOUND[name.replace("__", ".") + ".txt"]
    return {
        f"{name}, {what}": ({name: content}, says)
        for what, content, says in (
            ("UTF-16", text.encode("utf-16"), "in UTF-16 or UTF-32; save it as UTF-8"),
            ("UTF-16 without its mark", text.encode("utf-16-le"), "in UTF-16 or UTF-32; save it as UTF-8"),
            ("UTF-16, big end first", text.encode("utf-16-be"), "in UTF-16 or UTF-32; save it as UTF-8"),
            ("UTF-32", text.encode("utf-32"), "in UTF-16 or UTF-32; save it as UTF-8"),
            ("gzip", gzip.compress(text.encode()), "compressed by gzip; unpack it"),
            ("zip", b"PK\3\4" + text.encode(), "a zip archive; unpack it"),
            ("xz", b"\xfd7zXZ\0" + text.encode(), "compressed by xz"),
            ("zstd", b"\x28\xb5\x2f\xfd" + text.encode(), "compressed by zstd"),
            ("7-Zip", b"7z\xbc\xaf\x27\x1c\0\4", "compressed by 7-Zip"),
            ("a spreadsheet", b"PK\3\4" + b"\0" * 26 + b"[Content_Types].xml", "a spreadsheet (.xlsx)"),
            ("an old spreadsheet", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a file of an old Office program"),
            ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
            ("a page that asks for a login", b"<!DOCTYPE html>\n<html></html>\n", "a web page"),
            ("NUL bytes", b"\0" * 4096, "begins with NUL bytes alone"),
            ("an array", f"[{','.join(text.split())}]", "not one object a line"),
            (
                "an array, an object a line",
                "[\n" + text.rstrip().replace("\n", ",\n") + "\n]\n",
                "not one object a line",
            ),
            ("objects over several lines", indented(text), "not one object a line"),
            ("CR alone", text.replace("\n", "\r"), "its lines end in CR alone"),
            ("a dangling link", dangling, "a link to nowhere.txt, which is not there"),
            ("a folder", a_folder, "a folder, not a file"),
        )
    }


ROWS_20, LABELS_20 = "".join(line(number) for number in range(1, 21)), labels(*range(1, 21))
TRUTH = {"settings": ["filter.enabled=true"]}
# The settings that a case needs are among what it changes.
FAULTS: dict[str, tuple[dict, str]] = {
    **of_files("train_QC"),
    **of_files("dev_QC"),
    **of_files("test_QC"),
    **of_files("dev_QC__labels"),
    "one query": ({"train_QC": train(queries=1)}, "only 1 distinct queries to divide"),
    "one row": ({"train_QC": line(1, label=1)}, "only 1 distinct queries to divide"),
    "two rows": ({"train_QC": train(2)}, "training rows with label"),
    "label 0 only": ({"train_QC": train(5)}, "no query has training rows with label 1"),
    "label 0 in one query only": (
        {"train_QC": train(6).replace('"label": 0', '"label": 1') + line(7, "query 1", "other", 0)},
        "only one query has training rows with label 0",
    ),
    "empty training file": ({"train_QC": ""}, "the file has no rows"),
    "blank lines only": ({"train_QC": "\n\n"}, "the file has no rows"),
    "training file of the other task": ({"train_QC": train(task="QI")}, 'task is "QI", not QC'),
    "training file without labels": ({"train_QC": "".join(line(i) for i in range(1, 9))}, "label is not 0 or 1"),
    "bad line deep in dev": ({"dev_QC": SOUND["dev_QC.txt"] + "{]\n"}, "dev_QC.txt:5: broken JSON"),
    "id twice in test": ({"test_QC": SOUND["test_QC.txt"] + line(1)}, "test_QC.txt:4: duplicate id"),
    "no training file": ({"train_QC": None}, "train_QC.txt: no such file"),
    "neither dev nor test": ({"dev_QC": None, "test_QC": None}, "neither dev_QC.txt nor test_QC.txt"),
    "labels of other rows": ({"dev_QC__labels": labels(11, 12)}, "none of its 2 ids is one of"),
    "labels with a broken line": ({"dev_QC__labels": labels(1) + "1\t0\n"}, "dev_QC.labels.txt:2"),
    "labels of another kind": ({"dev_QC__labels": '{"id": 1, "label": 2}\n'}, "label is not the integer 0 or 1"),
    "a label twice": ({"dev_QC__labels": labels(1, 1)}, "duplicate id"),
    "empty label file": ({"dev_QC__labels": ""}, "the label file has no rows"),
    "labels without ids": ({"dev_QC__labels": '{"label": 1}\n'}, "id is not a whole number"),
    "labels that say they are the other task's": (
        {"dev_QC__labels": labels(1, 2, 3, 4, task="QI")},
        'dev_QC.labels.txt:1: task is "QI"; give the label file of QC',
    ),
    "a copy of the other task's labels": (
        {"dev_QC": ROWS_20, "dev_QC__labels": LABELS_20, "dev_QI__labels": "\n".join(reversed(LABELS_20.split("\n")))},
        "hold the same labels",
    ),
    "a copy of the other split's labels": (
        {"dev_QC": ROWS_20, "dev_QC__labels": LABELS_20, "test_QC__labels": LABELS_20},
        "hold the same labels",
    ),
    "true labels with a broken line": ({"train_QC__truth": labels(1) + "1\t0\n"} | TRUTH, "train_QC.truth.txt:2"),
    "true labels of other rows": ({"train_QC__truth": labels(77)} | TRUTH, "none of its 1 ids is one of"),
}


@pytest.mark.parametrize(("changed", "says"), FAULTS.values(), ids=FAULTS)
def test_what_a_run_would_refuse_is_found_by_check(tmp_path, changed, says):
    folder = tmp_path / "data"
    folder.mkdir()
    data(folder, **changed)
    found = row_findings(settings(folder, *changed.get("settings", [])))
    failing = list({finding.text for finding in found if finding.verdict == Verdict.FAIL})
    assert len(failing) == 1 and says in failing[0] and "\n" not in failing[0]


def test_the_run_itself_refuses_before_the_first_stage(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    data(folder, train_QC=train(2), dev_QC__labels=labels(7))
    said = [finding.text for finding in blockers(settings(folder)) if finding.verdict == Verdict.FAIL]
    assert len(said) == 2 and "training rows with label" in said[0] and "none of its 1 ids" in said[1]


def test_check_tells_no_fault_twice(tmp_path):
    data(tmp_path, train_QC="", dev_QC__labels=labels(7))
    assert list(rows_beyond_the_first(settings(tmp_path))) == []
    (tmp_path / "train_QC.txt").write_text(train())
    told = [finding.text for finding in rows_beyond_the_first(settings(tmp_path))]
    assert len(told) == 2 and "none of its 1 ids" in told[1]


ACCEPTED: dict[str, dict] = {
    "as it should be": {},
    "CRLF": {name: SOUND[f"{name}.txt"].replace("\n", "\r\n") for name in ("train_QC", "dev_QC", "test_QC")},
    "byte order mark": {"train_QC": "\ufeff" + SOUND["train_QC.txt"]},
    "no line end at the end": {"dev_QC": SOUND["dev_QC.txt"].rstrip("\n")},
    "blank lines between": {"dev_QC": SOUND["dev_QC.txt"].replace("\n", "\n\n")},
    "no dev": {"dev_QC": None, "dev_QC__labels": None},
    "no test": {"test_QC": None},
    "one dev row": {"dev_QC": line(3)},
    "one category": {"train_QC": train().replace("target", "the one target, for row")},
    "a language of its own": {"train_QC": train(language="tlh")},
    "tokens of models, markup and formulas": {
        "train_QC": train().replace("query 1", "<bos> {target}<|im_end|> </s> =1+1 %s \\\\n \u202e[PAD]")
    },
    "half of the lines refused": {"train_QC": train(12) + "".join(line(i, label=2) for i in range(13, 25))},
    "numbers as texts": {"train_QC": train().replace('"target 1"', '"00123"').replace('"query 2"', '"1e5"')},
    "languages in other spellings": {"train_QC": train(language="EN-us"), "dev_QC": line(1, language="zh-Hans")},
    "more fields": {"train_QC": train().replace('"id"', '"weight": null, "": [], "id"')},
    "the largest id": {"test_QC": line(2**53 - 1)},
    "blanks around the objects": {"test_QC": SOUND["test_QC.txt"].replace("{", " \t{").replace("}", "} \t")},
    "rows that are all the same": {"test_QC": "".join(line(i) for i in range(1, 40))},
    "four rows": {"train_QC": "".join(line(i, f"query {i}", label=i % 2) for i in range(1, 5))},
    "labels in CRLF": {"dev_QC__labels": labels(1, 2, 3, 4).replace("\n", "\r\n")},
    "labels in another order": {"dev_QC__labels": labels(4, 2, 3, 1)},
    "labels with a byte order mark": {"dev_QC__labels": "\ufeff" + labels(1, 2, 3, 4)},
    "labels with other fields": {"dev_QC__labels": labels(1, 2, 3, 4, note="x")},
    "labels with extra ids": {"dev_QC__labels": labels(*range(1, 9))},
    "labels for some rows": {"dev_QC__labels": labels(2, 3)},
    "labels for some rows, with extra ids": {"dev_QC__labels": labels(3, 77)},
    "labels without their file": {"dev_QC": None},
    "labels of all rows with label 1, in two files": {
        "dev_QC__labels": labels(1, 3, 5, 7),
        "test_QC__labels": labels(1, 3, 5, 7),
    },
    "labels that say whose they are": {"dev_QC__labels": labels(1, 2, 3, 4, task="QC")},
    "broken true labels that nothing reads": {"train_QC__truth": "{"},
    "a link to a file": {"test_QC": lambda path: path.symlink_to(path.with_name("dev_QC.txt"))},
}


def check_rows(folder: Path, split: str) -> None:
    """Every line with a label of 0, 1 or none is a row with just its texts."""
    path = folder / f"{split}_QC.txt"
    given = [json.loads(one) for one in path.read_text(encoding="utf-8-sig").split("\n") if one.strip()]
    kept = [one for one in given if one.get("label", 0) in (0, 1)]
    rows = read_split(path, "QC", split).rows
    names = {"language": "language", "query": "origin_query", "target": "category_path"}
    assert {name: rows[name].tolist() for name in names} == {
        name: [one[field] for one in kept] for name, field in names.items()
    }
    assert rows["row_id"].tolist() == [f"{split}-{one['id']}" for one in kept]


@pytest.mark.parametrize("changed", ACCEPTED.values(), ids=ACCEPTED)
def test_what_a_run_takes_is_not_refused_and_not_changed(tmp_path, changed):
    data(tmp_path, **changed)
    for split in SPLITS:
        if (tmp_path / f"{split}_QC.txt").exists():
            check_rows(tmp_path, split)
    found = list(row_findings(settings(tmp_path, "folds.n=2")))
    assert [finding.text for finding in found if finding.verdict == Verdict.FAIL] == []
    told = [finding for finding in found if "dev_QC.labels.txt: labels of" in finding.text]
    if changed.get("dev_QC__labels"):
        (finding,) = told
        some = {labels(2, 3): 2, labels(3, 77): 1, labels(1, 3, 5, 7): 2}
        count = some.get(changed["dev_QC__labels"], 4)
        assert finding.verdict == (Verdict.NOTE if count < 4 else Verdict.OK)
        assert f"labels of {count} of 4 rows" in finding.text


def test_lines_that_would_be_left_out_are_noted(tmp_path):
    data(tmp_path, train_QC=train() + "{]\n" + line(14, label=3))
    (note,) = [one.text for one in row_findings(settings(tmp_path)) if "left out" in one.text]
    assert "train_QC.txt: 2 of 14 lines would be left out, first line 13: broken JSON" in note


@pytest.mark.parametrize(
    "name", ["TEST_QC.TXT", "test_QC.txt.gz", "test_QC.txt.txt", "test_QC (1).txt", "test_QC.jsonl"]
)
def test_a_file_under_nearly_its_name_is_named(tmp_path, name):
    data(tmp_path, test_QC=None)
    (tmp_path / name).write_text(SOUND["test_QC.txt"])
    (note,) = [one.text for one in data_findings(settings(tmp_path)) if "is absent" in one.text]
    assert f"test_QC.txt is absent ({name} is there), so there will be no test submission" in note
    (tmp_path / "dev_QC.txt").rename(tmp_path / "dev_QC.json")
    (tmp_path / "train_QC.txt").rename(tmp_path / "train_QC.csv")
    failing = [one.text for one in data_findings(settings(tmp_path)) if one.verdict == Verdict.FAIL]
    assert len(failing) == 3 and "(train_QC.csv is there)" in failing[0] and f"({name} is there)" in failing[2]
    with pytest.raises(UserError, match=r"train_QC.txt: no such file \(train_QC.csv is there\); put"):
        raw_files(settings(tmp_path))


def test_labels_are_those_of_the_rows(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text(labels(3, 77, 1))
    assert labels_of(path, [1, 2, 3], "rows") == {1: 1, 3: 1}
    with pytest.raises(UserError, match="none of its 3 ids is one of rows"):
        labels_of(path, [2], "rows")


def test_labels_with_the_ids_of_another_file_are_noticed(tmp_path):
    data(tmp_path, dev_QC__labels=labels(1, 2, 3))
    notes = [finding.text for finding in row_findings(settings(tmp_path)) if finding.verdict == Verdict.NOTE]
    assert len(notes) == 2 and f"its ids are those of {tmp_path / 'test_QC.txt'}" in notes[1]


@pytest.mark.parametrize("content", ["{}\n", "\n", "a\rb\n", "\r\n", "\0", "{\0}\n", "ab\0\n"])
def test_no_form_is_seen_where_there_is_none(tmp_path, content):
    path = tmp_path / "file"
    path.write_text(content, newline="")
    assert isinstance(read_lines(path)[0], list)
