"""The commands that hand on a finished run: `bundle`, `regenerate` and `push`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from analyticup.engine.memory import Watch
from analyticup.errors import UserError
from analyticup.sharing.bundle import FinishedRun, is_packed, write_bundle, zip_folder
from analyticup.sharing.competition import write_competition
from analyticup.sharing.layout import open_bundle
from analyticup.sharing.push import check_target, sizes, upload
from analyticup.sharing.regenerate import changed_settings, data_in, deepest, reached, regenerate
from analyticup.terminal import make_console, plain_table, size_text
from analyticup.verdict import Verdict, tally

if TYPE_CHECKING:
    from rich.console import Console


def bundle(options: argparse.Namespace) -> int:
    """Writes <run>-bundle/ and <run>-bundle.zip next to the run's folder, or where --out says; with --competition the
    code submission <run>-competition.zip."""
    console = make_console()
    run = FinishedRun.load(options.run_dir, options.overrides)
    kind = "competition" if options.competition else "bundle"
    folder: Path = options.out or options.run_dir.with_name(f"{options.run_dir.name}-{kind}")
    packed = folder.with_name(f"{folder.name}.zip")
    if packed.exists() and not is_packed(packed):
        raise UserError(f"{packed}: is there already and was not written here; give another folder with --out")
    if options.competition:
        return _competition(run, packed, console)
    write_bundle(run, folder)
    zip_folder(folder, packed)
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = size_text(sum(path.stat().st_size for path in files))
    console.print(f"{folder}: {len(files)} files, {size}; as a zip {size_text(packed.stat().st_size)}", soft_wrap=True)
    texts = "the rows are in it" if run.settings.bundle.rows else "no text of a row is in it (bundle.rows=true)"
    console.print(f"{texts}; to check it: ./run.sh regenerate {folder}", soft_wrap=True)
    return 0


def _competition(run: FinishedRun, packed: Path, console: Console) -> int:
    if not run.settings.bundle.adapters:
        raise UserError("bundle.adapters = false: a code submission needs its model; leave it true")
    with tempfile.TemporaryDirectory(prefix="analyticup-competition-") as scratch:
        write_bundle(run, Path(scratch) / "bundle")
        write_competition(Path(scratch) / "bundle", run.settings, packed)
    console.print(f"{packed}: {size_text(packed.stat().st_size)}; its README.md says how it is run", soft_wrap=True)
    return 0


def regenerate_bundle(options: argparse.Namespace) -> int:
    """A line per item of the comparison, then what that shows."""
    console, started = make_console(), time.monotonic()
    with open_bundle(options.bundle) as opened, Watch() as watch:
        settings = opened.settings(data_in(opened, options.overrides))
        depth, why = options.depth, ""
        if depth is None:
            depth, why = deepest(opened, settings)
        console.print(f"depth {depth}" + (f" and not deeper: {why}" if why else ""), soft_wrap=True)
        items, folder = regenerate(options.bundle, opened, depth, settings, console)
        for item in items:
            console.print(f"{item.verdict:<7}  {item.what}: {item.text}", soft_wrap=True)
        console.print(f"{reached(depth, items, changed_settings(opened, settings))}", soft_wrap=True)
    words = (Verdict.OK, Verdict.NOTE, Verdict.NEAR, Verdict.SKIPPED, Verdict.FAIL)
    console.print(tally(items, words))
    where = f"submission: {folder}" if folder else "nothing was written"
    seconds = time.monotonic() - started
    console.print(f"{where}; {seconds:.1f} s, at most {size_text(watch.peak)} of memory", soft_wrap=True)
    return int(folder is None)


def push(options: argparse.Namespace) -> int:
    """Lists what would be sent; with --yes sends it."""
    console = make_console()
    with open_bundle(options.bundle) as opened:
        check_target(opened, options.repo, options.public)
        files = sizes(opened)
        table = plain_table(f"to {options.repo}", ("file", "bytes"))
        for name, size in files.items():
            table.add_row(name, f"{size:,}")
        console.print(table)
        total = f"{len(files)} files, {size_text(sum(files.values()))}"
        if not options.yes:
            who = "everybody" if options.public else "you and those you let in"
            console.print(f"{total}; nothing was sent: --yes sends them, for {who} to read", soft_wrap=True)
            return 0
        commit = upload(opened, options.repo, options.public)
    console.print(f"{total} at {commit.commit_url}", soft_wrap=True)
    console.print(f"others use them with model.adapters=hub:{options.repo}@{commit.oid}", soft_wrap=True)
    return 0
