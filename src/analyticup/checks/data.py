"""Whether the competition's files are there and look like them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from analyticup.checks.finding import Finding
from analyticup.corpus.official import alike
from analyticup.corpus.rows import TARGET_FIELD, BadLine, decode_line, read_lines
from analyticup.errors import UserError
from analyticup.settings.schema import Settings
from analyticup.terminal import size_text
from analyticup.verdict import Verdict

_SOURCE: Final = (
    "the official files come from the competition's page (CIKM AnalytiCup 2025, multilingual e-commerce product "
    "search) on its platform: sign in there and download them by hand"
)
# By the competition's description; checksums of its files are not published.
_OFFICIAL_ROWS: Final = {
    "train_QC.txt": 300_000,
    "dev_QC.txt": 100_000,
    "test_QC.txt": 100_000,
    "train_QI.txt": 340_000,
    "dev_QI.txt": 65_000,
    "test_QI.txt": 130_000,
}


def data_findings(settings: Settings) -> Iterable[Finding]:
    if settings.data.dir is None:
        yield Finding(
            Verdict.OK, "data: data.dir is not set, so the embedded sample corpus is generated; no file is needed"
        )
        return
    folder = Path(settings.data.dir).expanduser()
    if not folder.is_dir():
        yield Finding(Verdict.FAIL, f"data: data.dir = {folder} is not a folder; put the files into it; {_SOURCE}")
        return
    for task in settings.tasks:
        yield from _task_data(folder, task)


def _task_data(folder: Path, task: str) -> Iterable[Finding]:
    paths = {split: folder / f"{split}_{task}.txt" for split in ("train", "dev", "test")}
    nothing_to_score = not (paths["dev"].is_file() or paths["test"].is_file())
    for split, path in paths.items():
        if path.is_file():
            yield _first_row(path, task, split)
        elif split == "train" or nothing_to_score:
            also = ", or the other one of dev and test" if split != "train" else ""
            yield Finding(Verdict.FAIL, f"data {task}: put {path} there{also}{alike(folder, path.name)}; {_SOURCE}")
        else:
            absent = f"data {task}: {path} is absent{alike(folder, path.name)}"
            yield Finding(Verdict.NOTE, f"{absent}, so there will be no {split} submission")
    labels = [path.name for split in ("dev", "test") if (path := folder / f"{split}_{task}.labels.txt").is_file()]
    text = f"labels for the report in {', '.join(labels)}" if labels else "no label files, so only out-of-fold scores"
    yield Finding(Verdict.OK, f"data {task}: {text}")


def _first_row(path: Path, task: str, split: str) -> Finding:
    """Looks only at the first row; a run reads all of them just as strictly."""
    with path.open("rb") as stream:
        lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip(b"\xef\xbb\xbf \r\n\t"))
        number, line = next(lines, (0, b""))
    if not number:
        return Finding(Verdict.FAIL, f"data {task}: {path} has no rows; put the {task} file there")
    try:
        record = decode_line(line.removeprefix(b"\xef\xbb\xbf").strip())
    except BadLine as error:
        if form := _other_form(path):
            return Finding(Verdict.FAIL, f"data {task}: {form}")
        # A bad line costs a training file no more than that line.
        verdict = Verdict.NOTE if split == "train" else Verdict.FAIL
        return Finding(verdict, f"data {task}: {path}:{number}: {error}; check that this is the {task} file")
    if record.get("task") != task or TARGET_FIELD[task] not in record:
        return Finding(Verdict.FAIL, f"data {task}: {path}:{number}: no row of task {task} with {TARGET_FIELD[task]}")
    lines, official = _lines(path), _OFFICIAL_ROWS[path.name]
    text = f"data {task}: {path} ({size_text(path.stat().st_size)}, {lines:,} lines)"
    if lines == official:
        return Finding(Verdict.OK, f"{text}, as many as the official file")
    return Finding(Verdict.NOTE, f"{text}; the official file has {official:,}, so this is other data or part of it")


def _other_form(path: Path) -> str:
    """What is wrong with all lines of a file; "" = nothing."""
    try:
        read_lines(path)
    except UserError as error:
        return str(error)
    return ""


def _lines(path: Path) -> int:
    count, last = 0, b"\n"
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")
