"""The review of training rows: which come first, the sheet and what spreadsheets do to it, the answers, the session."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fuzzing import TEXTS
from hypothesis import example, given, settings
from rich.console import Console

from analyticup.corpus.rows import COLUMNS, make_rows
from analyticup.errors import UserError
from analyticup.features.points import Points
from analyticup.features.vectors import Table
from analyticup.filtering.decisions import (
    Decision,
    apply_decisions,
    fitting,
    read_decisions,
    text_digest,
    write_decisions,
)
from analyticup.review.candidate import Candidate, spread_order
from analyticup.review.queue import Reviewed
from analyticup.review.session import Session
from analyticup.review.sheet import check, read_sheet, write_sheet
from analyticup.review.simulation import Known, curve, write_looks
from analyticup.review.store import Store, Vote, agreements, conflicts, decide
from analyticup.settings.schema import Settings

# Each with what a spreadsheet would make of it: a formula, a number, a date, a truth value, lost blanks or quotes.
HARD = [
    *("=1+1", "+49 170", "-5", "@SUM(A1)", "'quoted", '"both", sides', "0042", "1e5", "3/4", "12-05", "May 2020"),
    *(
        "TRUE",
        " blank ",
        "a;b,c\td",
        "two\nlines",
        "＝1+1",
        "٤٢ حذاء",
        "รองเท้า 42",
        "靴 27cm",
        "фильтр",
        "zapatos niño",
    ),
]


def candidate(number, query="shoes", target="fashion,shoes", label=1):
    texts = {"language": "en", "reason": "model against it", "nearest": "0: boots -> home,boots", "translation": ""}
    return Candidate(
        f"train-{number}", query=query, target=target, label=label, model=0.1, judge=None, neighbours=0.4, **texts
    )


ROWS = {f"train-{i}": {"query": text, "target": f"{text},x", "label": i % 2} for i, text in enumerate(HARD)}
SHOWN = [candidate(i, text, f"{text},x", i % 2) for i, text in enumerate(HARD)]


def sheet(path, shown=SHOWN):
    write_sheet(shown, "QC", "sample", path)
    return path


def filled(path, decisions):
    """The sheet with decisions by row id, as a person saves it."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = [{**line, "decision": decisions.get(line["row_id"], "")} for line in csv.DictReader(stream)]
    return lines


def saved(lines, path, delimiter=",", encoding="utf-8-sig", quoting=csv.QUOTE_MINIMAL, ending="\r\n"):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(lines[0]), delimiter=delimiter, quoting=quoting, lineterminator=ending)
    writer.writeheader()
    writer.writerows(lines)
    path.write_bytes(stream.getvalue().encode(encoding))
    return path


# ---------------------------------------------------------------- the sheet


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_sheet_comes_back_as_it_was_written(tmp_path, suffix):
    answers = read_sheet(sheet(tmp_path / f"sheet.{suffix}"))
    check(answers, ROWS, "QC", "sample", tmp_path)
    assert [answer.cells["row_id"] for answer in answers] == list(ROWS)
    assert {answer.decision for answer in answers} == {""}


def test_a_csv_is_what_spreadsheets_open_as_utf8(tmp_path):
    data = sheet(tmp_path / "sheet.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbfrow_id,task,") and data.count(b"\r\n") >= len(HARD)


@pytest.mark.parametrize("text", HARD[:16])
def test_no_cell_runs_or_turns_into_something_else(tmp_path, text):
    lines = filled(sheet(tmp_path / "sheet.csv", [candidate(1, text)]), {})
    plain = text.replace("\t", " ")
    assert lines[0]["query"] in (f"'{plain}", plain)
    assert not lines[0]["query"].startswith(("=", "+", "-", "@", "0", "1", "3", "\t"))


@settings(max_examples=20)
@example("'")
@example("\r=1")
@given(TEXTS)
def test_any_text_is_found_again(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("sheet") / "sheet.csv"
    answers = read_sheet(sheet(path, [candidate(1, text)]))
    whole = text.encode("utf-8", "replace").decode("utf-8")
    if whole == text:
        check(answers, {"train-1": {"query": text, "target": "fashion,shoes", "label": 1}}, "QC", "sample", path)


@pytest.mark.parametrize(
    "form",
    [
        {"delimiter": ";"},
        {"delimiter": "\t", "encoding": "utf-16"},
        {"encoding": "utf-8", "ending": "\n"},
        {"quoting": csv.QUOTE_ALL, "encoding": "utf-16"},
    ],
    ids=["semicolons", "utf-16 with tabs", "no mark and LF", "quotes"],
)
def test_what_spreadsheets_save_is_accepted(tmp_path, form):
    lines = filled(sheet(tmp_path / "sheet.csv"), {"train-3": "Flip ", "train-5": "UNSURE"})
    answers = read_sheet(saved(lines[::-1], tmp_path / "back.csv", **form))
    check(answers, ROWS, "QC", "sample", tmp_path)
    assert {answer.cells["row_id"]: answer.decision for answer in answers if answer.decision} == {
        "train-3": "flip",
        "train-5": "unsure",
    }


def test_columns_may_be_moved_added_and_left_out_and_blank_lines_are_no_rows(tmp_path):
    lines = filled(sheet(tmp_path / "sheet.csv"), {"train-0": "keep"})
    moved = [{"mine": "x", **{name: line[name] for name in reversed(line) if name != "nearest"}} for line in lines]
    path = saved(moved, tmp_path / "back.csv")
    path.write_bytes(b"sep=,\r\n" + path.read_bytes().removeprefix(b"\xef\xbb\xbf") + b",,,\r\n")
    answers = read_sheet(path)
    check(answers, ROWS, "QC", "sample", path)
    assert answers[0].decision == "keep" and len(answers) == len(HARD) and answers[0].line == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"row_id": "train-999"}, 'the run has no training row "train-999"; put the id back'),
        ({"decision": "flipp"}, 'decision "flipp" is none of keep, flip, drop, unsure, or empty'),
        ({"query": "other"}, 'the query of train-1 was edited: "other"; put it back, or export again'),
        ({"target": "other"}, 'the target of train-1 was edited: "other"; put it back, or export again'),
        ({"label": "0"}, "the label of train-1 was edited; put 1 back and write flip as the decision"),
        ({"run": "other"}, "a row of another run or task; import each sheet by itself"),
        (
            {"row_id": "train-0", "query": "'=1+1", "target": "'=1+1,x", "label": "0"},
            "row train-0 is in line 2 too; keep one of them",
        ),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_stored(tmp_path, change, told):
    lines = filled(sheet(tmp_path / "sheet.csv"), {})
    path = saved([lines[0], {**lines[1], **change}, *lines[2:]], tmp_path / "back.csv")
    with pytest.raises(UserError) as error:
        check(read_sheet(path), ROWS, "QC", "sample", path)
    assert str(error.value).split("\n") == [f"{path}:3: {told}", "nothing was stored"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("row_id,task\r\n".encode("utf-8-sig"), "1: no sheet of ./run.sh review export"),
        ("row_id;caf\xe9".encode("latin-1"), "byte 11 is no UTF-8; save it as CSV UTF-8"),
        (b"", "1: no sheet"),
        (",".join(("row_id", "task", "query", "target", "label", "decision", "run")).encode(), "the sheet has no rows"),
    ],
)
def test_what_is_no_sheet_is_refused(tmp_path, data, told):
    path = tmp_path / "sheet.csv"
    path.write_bytes(data)
    with pytest.raises(UserError, match=told.replace(".", r"\.")):
        read_sheet(path)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("soffice"), reason="LibreOffice is not installed")
def test_libreoffice_changes_no_cell(tmp_path):
    lines = filled(sheet(tmp_path / "sheet.csv"), {"train-1": "flip"})
    saved(lines, tmp_path / "sheet.csv")
    home = f"-env:UserInstallation=file://{tmp_path}/home"
    for kind, made in (("ods", "sheet.csv"), ("csv:Text - txt - csv (StarCalc):59,34,76,1", "ods/sheet.ods")):
        out = tmp_path / kind.split(":")[0]
        # Without a person to ask, it is told what its dialogue would find: UTF-8 and commas.
        read = "--infilter=Text - txt - csv (StarCalc):44,34,76,1" if made == "sheet.csv" else "--norestore"
        files = ["--convert-to", kind, "--outdir", str(out), str(tmp_path / made)]
        command = ["soffice", home, "--headless", read, *files]
        subprocess.run(command, check=True, capture_output=True, timeout=180)
    answers = read_sheet(tmp_path / "csv" / "sheet.csv")
    check(answers, ROWS, "QC", "sample", tmp_path)
    wanted = [text.replace("\t", " ") for text in HARD]
    assert [answer.cells["query"].removeprefix("'") for answer in answers] == wanted
    assert [answer.decision for answer in answers[:3]] == ["", "flip", ""]


# ---------------------------------------------------------------- the order


def test_the_largest_doubt_is_first_and_languages_take_turns_where_it_is_alike():
    doubt = np.array([0.9, 0.9, 0.9, 0.2, 0.895])
    languages = ["en", "en", "en", "en", "fr"]
    assert spread_order(doubt, languages, [""] * 5, range(5)) == [0, 4, 1, 2, 3]
    assert spread_order(doubt, languages, ["a", "a", "b", "a", "a"], range(5)) == [0, 2, 4, 1, 3]
    assert spread_order(doubt, languages, [""] * 5, [3, 1]) == [1, 3]


# ---------------------------------------------------------------- answers and decisions


def vote(number, answer, reviewer="ann", label=1, text="t"):
    return Vote(f"train-{number}", text, label, answer, "", reviewer)


def test_a_later_answer_replaces_the_earlier_one_and_a_removed_one_is_gone(tmp_path):
    store = Store(tmp_path, "QC")
    store.add([vote(1, "keep"), vote(2, "flip")])
    store.add([vote(1, "drop")])
    assert read_decisions(store.decisions_path) == [
        Decision("train-1", "t", 1, "drop"),
        Decision("train-2", "t", 1, "flip"),
    ]
    store.remove("train-1", "ann")
    assert [decision.row_id for decision in read_decisions(store.decisions_path)] == ["train-2"]
    store.add([vote(2, "unsure")])
    assert not store.decisions_path.exists() and len(store.votes()) == 1


def test_notes_change_no_decision(tmp_path):
    store = Store(tmp_path, "QC")
    store.add([vote(1, "flip")])
    before = store.decisions_path.read_bytes()
    store.add([replace(vote(1, "flip"), note="=a note")])
    assert store.decisions_path.read_bytes() == before and store.votes()[0].note == "=a note"


def test_most_reviewers_decide_and_a_tie_decides_nothing():
    votes = [vote(1, "flip"), vote(1, "flip", "bob"), vote(1, "keep", "cid"), vote(2, "keep"), vote(2, "drop", "bob")]
    votes += [vote(3, "keep"), vote(3, "unsure", "bob")]
    assert [(one.row_id, one.answer) for one in decide(votes)] == [("train-1", "flip"), ("train-3", "keep")]
    assert list(conflicts(votes)) == ["train-1", "train-2"]


def test_an_answer_on_a_label_that_has_changed_since_does_not_count():
    votes = [vote(1, "keep", label=0), vote(1, "keep", "bob", label=1)]
    assert decide(votes) == [Decision("train-1", "t", 1, "keep")] and not conflicts(votes)


def test_kappa_is_that_of_its_definition():
    ann = ["keep"] * 6 + ["flip"] * 4
    bob = ["keep"] * 5 + ["flip"] * 4 + ["keep"]
    votes = [vote(i, answer) for i, answer in enumerate(ann)] + [vote(i, a, "bob") for i, a in enumerate(bob)]
    (pair,) = agreements([*votes, vote(99, "keep", "bob")])
    assert pair.reviewers == ("ann", "bob") and pair.rows == 10
    # Observed .8; by chance .6 x .6 + .4 x .4.
    assert pair.kappa == pytest.approx((0.8 - 0.52) / (1 - 0.52))
    assert agreements([vote(1, "keep"), vote(1, "keep", "bob")])[0].kappa is None


@pytest.mark.parametrize(
    "line", ['{"row_id": "train-1"}', "[]", "no JSON", json.dumps({**vars(Decision("a", "t", 1, "unsure"))})]
)
def test_a_damaged_file_of_decisions_names_its_line(tmp_path, line):
    path = tmp_path / "decisions_QC.jsonl"
    write_decisions([Decision("train-1", "t", 1, "keep")], path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"decisions_QC\.jsonl:2: no decision"):
        read_decisions(path)


# Row 0 has a translation and a negative made from it; row 3 is a negative that has the texts of row 2.
ORIGINS = ["original", "original", "original", "negative", "translation", "negative", "translation"]
SOURCES = ["", "", "", "train-1", "train-0", "train-0", "train-1"]
LABELS = [1, 1, 0, 0, 1, 0, 1]
QUERIES = ["a", "b", "c", "c", "d", "a", "e"]
TARGETS = ["x", "y", "z", "z", "x", "w", "y"]


def training():
    count = len(LABELS)
    columns = {name: [name] * count for name in COLUMNS} | {"query": QUERIES, "target": TARGETS, "label": LABELS}
    ids = [f"train-{i}" for i in range(count)]
    return make_rows({**columns, "row_id": ids, "origin": ORIGINS, "source_id": SOURCES})


def decision(number, answer, label=None):
    text = text_digest(QUERIES[number], TARGETS[number])
    return Decision(f"train-{number}", text, LABELS[number] if label is None else label, answer)


def after(*decisions, suspects=()):
    rows = training()
    left = rows[[i not in suspects for i in range(len(rows))]]
    kept, counts = apply_decisions(rows, left, fitting(rows, decisions))
    return dict(zip(kept["row_id"], kept["label"].astype(int), strict=True)), counts


def test_a_flip_turns_the_row_and_its_translations_and_leaves_its_negatives():
    labels, counts = after(decision(0, "flip"))
    assert labels == {f"train-{i}": label for i, label in enumerate([0, 1, 0, 0, 0, 0, 1])}
    assert counts["flip"] == 1 and counts["translations that follow"] == 1


def test_a_drop_takes_the_translations_along():
    assert set(after(decision(0, "drop"))[0]) == {f"train-{i}" for i in (1, 2, 3, 5, 6)}


def test_keep_brings_back_what_the_remedy_dropped():
    assert set(after(suspects=(0, 4))[0]) == {f"train-{i}" for i in (1, 2, 3, 5, 6)}
    labels, _ = after(decision(0, "keep"), suspects=(0, 4))
    # Its translation is judged by itself: it may be a bad one.
    assert set(labels) == {f"train-{i}" for i in (0, 1, 2, 3, 5, 6)} and labels["train-0"] == 1


def test_a_negative_that_a_person_takes_for_a_positive_goes():
    labels, counts = after(decision(2, "flip"))
    assert labels["train-2"] == 1 and "train-3" not in labels and counts["negatives that are none"] == 1


def test_a_decision_on_other_texts_or_rows_does_nothing_and_the_label_is_the_persons():
    other = replace(decision(0, "drop"), text="0" * 16)
    assert after(other, Decision("train-77", "t", 1, "drop"))[0] == after()[0]
    # The person saw label 0 and kept it; the file says 1 now.
    assert after(decision(0, "keep", label=0))[0]["train-0"] == 0


# ---------------------------------------------------------------- the session


def asked(tmp_path, keys, count=4, width=80, before=0):
    store, stream = Store(tmp_path, "QC"), io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    shown = [candidate(i, f"{HARD[-3]} query {i} " * 8) for i in range(count)]
    typed = iter(keys)
    Session("sample QC", shown, store, "ann", console, before).run(lambda: next(typed, ""))
    return {one.row_id: (one.answer, one.note) for one in store.votes()}, stream.getvalue()


def test_keys_answer_skip_and_take_back_and_every_answer_is_stored_at_once(tmp_path):
    assert asked(tmp_path, "kfszzd")[0] == {"train-0": ("keep", ""), "train-1": ("drop", "")}
    assert asked(tmp_path / "note", "nbad\x7f pun\nuq")[0] == {"train-0": ("unsure", "ba pun")}
    assert asked(tmp_path / "none", "?q")[0] == {}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_session_stays_within_the_terminal(tmp_path, width):
    shown = asked(tmp_path, "kf", width=width, before=7)[1]
    from rich.cells import cell_len

    assert max(cell_len(line) for line in shown.replace("\x1b[2J\x1b[H", "").split("\n")) <= width
    assert "7 of 11 answered" in shown and "9 of 11 answered · 1 keep, 1 flip" in " ".join(shown.split())


def test_where_every_row_is_answered_no_neighbours_are_looked_for():
    known = known_rows(40)
    asked = SimpleNamespace(points=lambda rows: known.training, rows=known.run.rows, settings=Settings(), task="QC")
    votes, texts = Reviewed._neighbours(asked, [])
    assert len(votes) == 0 and texts == []
    assert len(Reviewed._neighbours(asked, [3, 5])[1]) == 2


# ---------------------------------------------------------------- simulated looks


def known_rows(n):
    """n rows, of which the first 20 have a wrong label and are doubted."""
    random = np.random.default_rng(0)
    truth = np.arange(n) % 2
    labels = np.where(np.arange(n) < 20, 1 - truth, truth)
    vectors = (truth[:, None] + random.normal(0, 0.1, (n, 3))).astype(np.float32)
    texts = Table(vectors, np.arange(n))
    points = Points(texts, texts, np.arange(n), (1.0, 1.0))
    rows = make_rows({**{name: [f"{name}{i}" for i in range(n)] for name in COLUMNS}, "label": labels.tolist()})
    own = Settings()
    # The wrong ones come first, as they would by a good model.
    run = SimpleNamespace(task="QC", rows=rows, settings=own, order=lambda count: list(range(count)))
    return Known(run, truth, points, replace(points, groups=np.full(n, -1)), truth)


def test_looks_mend_labels_and_those_at_doubtful_rows_mend_them_sooner():
    n = 100
    outcomes = list(curve(known_rows(n), 20, n))
    wrong = {(one.way, one.looks): one.wrong for one in outcomes}
    first, chance = "most doubtful first, a perfect reviewer", "random order, a perfect reviewer"
    assert {one.wrong for one in outcomes if one.looks == 0} == {20} and len({one.way for one in outcomes}) == 5
    assert wrong[first, 20] == wrong["most doubtful dropped", 20] == 0 < wrong[chance, 20]
    assert wrong[chance, n] == 0 < wrong["random order, a reviewer who is right in 80%", n] < 0.35 * n
    assert next(one.rows for one in outcomes if one.way == "most doubtful dropped" and one.looks == 60) == n - 60
    assert all(one.f1 > 0.9 and one.auc > 0.9 for one in outcomes if one.way == first)


def test_what_simulated_reviewers_decide_does_to_the_rows_what_the_table_says(tmp_path):
    known = known_rows(40)
    told = {
        ("-".join(one.way.replace(",", "").replace("%", "").split()), one.looks): one for one in curve(known, 15, 30)
    }
    folders = write_looks(known, 15, 30, tmp_path)
    assert {folder.name for folder in folders} == {f"{way}-{looks}" for way, looks in told if looks}
    rows = known.run.rows.assign(origin="original", source_id=None)
    for folder in folders:
        way, _, looks = folder.name.rpartition("-")
        decisions = read_decisions(folder / "decisions_QC.jsonl")
        assert len(decisions) == int(looks) == len(fitting(rows, decisions))
        left, _ = apply_decisions(rows, rows, fitting(rows, decisions))
        wrong = sum(
            left["label"] != known.truth[left["row_id"].map({row: at for at, row in enumerate(rows["row_id"])})]
        )
        assert (len(left), wrong) == (told[way, int(looks)].rows, told[way, int(looks)].wrong)
