"""`./run.sh review`: a sheet for reviewers, its import, and the session on the terminal."""

from __future__ import annotations

import argparse
import getpass
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyticup.filtering.decisions import ANSWERS, text_digest
from analyticup.review.queue import Reviewed
from analyticup.review.session import Session, terminal_keys
from analyticup.review.sheet import MARK, check, read_sheet, refuse_to_lose, write_sheet
from analyticup.review.simulation import curve, load_known, write_looks
from analyticup.review.store import Store, Vote, agreements, conflicts
from analyticup.settings.paths import resolve
from analyticup.settings.schema import Settings
from analyticup.terminal import make_console, plain_table

if TYPE_CHECKING:
    from rich.console import Console

_CONFLICTS_SHOWN = 20


def review(options: argparse.Namespace) -> int:
    """What the action names; without one, the session."""
    options.reviewer = options.reviewer or _user()
    return {"export": export, "import": import_sheet, "simulate": simulate, None: session}[options.action](options)


def export(options: argparse.Namespace) -> int:
    """Writes the sheet of a run's task: rows that this reviewer has not answered yet."""
    run, console = Reviewed.open(options.run, options.task), make_console()
    answered = {vote.row_id for vote in Store(run.folder, run.task).votes() if vote.reviewer == options.reviewer}
    path = options.out or run.folder / f"sheet_{run.task}.csv"
    refuse_to_lose(path)
    candidates = run.candidates(run.order(options.top, answered))
    write_sheet(candidates, run.task, run.settings.name, path)
    by_language = Counter(one.language for one in candidates)
    console.print(f"{path}: {len(candidates)} of {len(run.rows)} rows to look at", soft_wrap=True)
    console.print("languages: " + ", ".join(f"{name} {count}" for name, count in by_language.most_common()))
    console.print(
        f"decision: one of {', '.join(ANSWERS)}, or empty; then ./run.sh review import {path}", soft_wrap=True
    )
    return 0


def import_sheet(options: argparse.Namespace) -> int:
    """Checks a sheet against its run and stores the answers; nothing where something is wrong."""
    answers, console = read_sheet(options.file), make_console()
    name, task = (answers[0].cells[column].strip().removeprefix(MARK) for column in ("run", "task"))
    run = Reviewed.open(options.run or resolve(Settings().paths.submissions) / name, task)
    rows = {row["row_id"]: row for row in run.rows.to_dict("records")}
    check(answers, rows, run.task, run.settings.name, options.file)
    votes = []
    for answer in answers:
        if answer.decision:
            row = rows[answer.cells["row_id"].strip().removeprefix(MARK)]
            note = answer.cells.get("note", "").strip()
            votes.append(
                Vote(
                    row["row_id"],
                    text_digest(row["query"], row["target"]),
                    int(row["label"]),
                    answer.decision,
                    note,
                    options.reviewer,
                )
            )
    store = Store(run.folder, run.task)
    every = store.add(votes)
    console.print(f"{options.file}: {len(votes)} answers of {len(answers)} rows, by {options.reviewer}", soft_wrap=True)
    summarise(every, store, console)
    return 0


def simulate(options: argparse.Namespace) -> int:
    """What looks would be worth, by simulated reviewers; only where the true labels are known, as in the sample.

    With --out also writes what they decide, for runs that train with it.
    """
    known, console = load_known(Reviewed.open(options.run, options.task)), make_console()
    columns = ("way", "looks", "rows", "wrong labels", "F1", "AUC")
    table = plain_table(f"{known.run.task}: simulated looks; F1 and AUC of the neighbour vote", columns)
    for outcome in curve(known, options.step, options.top):
        counts = (outcome.looks, outcome.rows, outcome.wrong)
        table.add_row(outcome.way, *map(str, counts), f"{outcome.f1:.4f}", f"{outcome.auc:.4f}")
    console.print(table)
    if options.out is not None:
        for folder in write_looks(known, options.step, options.top, options.out):
            console.print(f"filter.decisions={folder.resolve()}", soft_wrap=True)
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "reviewer"


def summarise(votes: Sequence[Vote], store: Store, console: Console) -> None:
    """What is stored now: answers by reviewer, how far reviewers agree, where not, and what the next run does."""
    table = plain_table("answers", ("reviewer", *ANSWERS))
    for reviewer in sorted({vote.reviewer for vote in votes}):
        count = Counter(vote.answer for vote in votes if vote.reviewer == reviewer)
        table.add_row(reviewer, *(str(count[answer]) for answer in ANSWERS))
    console.print(table)
    for pair in agreements(votes):
        kappa = "not defined, as all answers are the same" if pair.kappa is None else f"{pair.kappa:.2f}"
        console.print(f"{' and '.join(pair.reviewers)}: {pair.rows} rows in common, Cohen's kappa {kappa}")
    differ = conflicts(votes)
    for row_id, given in list(differ.items())[:_CONFLICTS_SHOWN]:
        said = ", ".join(f"{vote.reviewer} {vote.answer}" for vote in given)
        console.print(f"conflict on {row_id}: {said}", soft_wrap=True)
    if len(differ) > _CONFLICTS_SHOWN:
        console.print(f"and {len(differ) - _CONFLICTS_SHOWN} more conflicts in {store.path}", soft_wrap=True)
    if differ:
        console.print("what most say holds; where none is ahead, nothing is decided")
    if store.decisions_path.exists():
        where = f"decisions: {store.decisions_path}; the next run uses them: its filter and what follows run again"
        console.print(where, soft_wrap=True)
    else:
        console.print("no decision yet: the next run is as before")


def session(options: argparse.Namespace) -> int:
    """Asks on the terminal, from where this reviewer stopped."""
    with terminal_keys() as keys:
        run, console = Reviewed.open(options.run, options.task), make_console()
        store = Store(run.folder, run.task)
        answered = {vote.row_id for vote in store.votes() if vote.reviewer == options.reviewer}
        left = max(0, options.top - len(answered))
        candidates = run.candidates(run.order(left, answered))
        title = f"{run.settings.name} {run.task}: does the target fit the query?"
        asked = Session(title, candidates, store, options.reviewer, console, len(answered))
        asked.run(keys)
    summarise(store.votes(), store, console)
    return 0
