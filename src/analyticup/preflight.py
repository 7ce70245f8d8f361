"""`./run.sh check`: everything that stands in the way of a run, all of it at once. Creates nothing; asks no network but
the W&B host, and that only where tracking is online.

preflight_models.py looks at the models, preflight_machine.py at the machine; data, settings and tracking are here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from analyticup.errors import UserError
from analyticup.settings.loading import task_settings
from analyticup.settings.schema import Settings
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
_W_AND_B_SECONDS: Final = 5


@dataclass(frozen=True)
class Finding:
    """What was found: FAIL means that the run would fail."""

    verdict: Verdict
    text: str


def findings(settings: Settings) -> list[Finding]:
    """All findings in a fixed order; what fails in one check keeps no other from being made."""
    from analyticup.pipeline import resolve
    from analyticup.preflight_machine import device_findings, disk_findings, look_at_machine, memory_findings
    from analyticup.preflight_models import label_word_findings, model_findings, needed_models

    models = needed_models(settings, resolve(settings.paths.cache))
    machine = look_at_machine(settings.machine)
    checks: list[Callable[[], Iterable[Finding]]] = [
        lambda: data_findings(settings),
        lambda: settings_findings(settings),
        lambda: model_findings(models),
        lambda: label_word_findings(settings, models[0]),
        lambda: device_findings(settings, machine),
        lambda: memory_findings(settings, models, machine),
        lambda: disk_findings(settings, models),
        lambda: access_findings(settings),
        lambda: tracking_findings(settings),
    ]
    return list(dict.fromkeys(finding for check in checks for finding in _all_of(check)))


def _all_of(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check())
    except (UserError, OSError, ImportError) as error:
        found.append(Finding(Verdict.FAIL, " ".join(str(error).split())))
    return found


def size_text(size: float) -> str:
    """Bytes as MB or GB (powers of ten)."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def data_findings(settings: Settings) -> Iterable[Finding]:
    if settings.data.dir is None:
        yield Finding(
            Verdict.OK, "data: data.dir is not set, so the embedded sample corpus is generated; no file is needed"
        )
        return
    folder = Path(settings.data.dir).expanduser()
    if not folder.is_dir():
        yield Finding(Verdict.FAIL, f"data: data.dir = {folder} is no folder; put the files into it; {_SOURCE}")
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
            yield Finding(Verdict.FAIL, f"data {task}: put {path} there{also}; {_SOURCE}")
        else:
            yield Finding(Verdict.NOTE, f"data {task}: {path} is absent, so there will be no {split} submission")
    labels = [path.name for split in ("dev", "test") if (path := folder / f"{split}_{task}.labels.txt").is_file()]
    told = f"labels for the report in {', '.join(labels)}" if labels else "no label files, so only out-of-fold scores"
    yield Finding(Verdict.OK, f"data {task}: {told}")


def _first_row(path: Path, task: str, split: str) -> Finding:
    """Looks at the first row alone; a run reads all of them with the same strictness."""
    from analyticup.corpus.rows import TARGET_FIELD, BadLine, decode_line

    with path.open("rb") as stream:
        lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip(b"\xef\xbb\xbf \r\n\t"))
        number, line = next(lines, (0, b""))
    if not number:
        return Finding(Verdict.FAIL, f"data {task}: {path} has no rows; put the {task} file there")
    try:
        record = decode_line(line.removeprefix(b"\xef\xbb\xbf").strip())
    except BadLine as error:
        # A bad line costs a training file no more than that line.
        verdict = Verdict.NOTE if split == "train" else Verdict.FAIL
        return Finding(verdict, f"data {task}: {path}:{number}: {error}; check that this is the {task} file")
    if record.get("task") != task or TARGET_FIELD[task] not in record:
        return Finding(Verdict.FAIL, f"data {task}: {path}:{number}: no row of task {task} with {TARGET_FIELD[task]}")
    lines, official = _lines(path), _OFFICIAL_ROWS[path.name]
    told = f"data {task}: {path} ({size_text(path.stat().st_size)}, {lines:,} lines)"
    if lines == official:
        return Finding(Verdict.OK, f"{told}, as many as the official file")
    return Finding(Verdict.NOTE, f"{told}; the official file has {official:,}, so this is other data or part of it")


def _lines(path: Path) -> int:
    count, last = 0, b"\n"
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def settings_findings(settings: Settings) -> Iterable[Finding]:
    """Settings that are fine alone but not together, or not with what is installed."""
    from importlib.util import find_spec

    from analyticup.augment.translators import translator_of
    from analyticup.corpus.languages import LANGUAGES
    from analyticup.preflight_models import uses_embedder

    for task in settings.tasks:
        own = task_settings(settings, task)
        translator = own.translate.translator if own.translate.enabled else ""
        kind = own.embedder.kind
        if uses_embedder(own) and find_spec(kind.replace("-", "_")) is None:
            yield Finding(
                Verdict.FAIL, f"embedder.kind = {kind}: the package is not installed; run: pip install {kind}"
            )
        if translator == "lexicon" and settings.data.dir is not None:
            yield Finding(
                Verdict.NOTE,
                f"{task}: translate.translator = lexicon knows only the words of the embedded sample corpus and will "
                f"translate little of {settings.data.dir}; mined needs no translator at all",
            )
        unknown = [code for code in own.translate.languages or [] if code not in LANGUAGES]
        if unknown and own.translate.enabled and not translator_of(own.translate)[0].any_language:
            yield Finding(
                Verdict.FAIL,
                f"{task}: translate.languages: {translator} does not know {', '.join(unknown)}; leave them out",
            )


def access_findings(settings: Settings) -> Iterable[Finding]:
    from analyticup.pipeline import resolve
    from analyticup.preflight_machine import nearest_existing

    for name in ("artifacts", "submissions", "cache"):
        path = resolve(getattr(settings.paths, name))
        place = nearest_existing(path)
        if not place.is_dir():
            yield Finding(Verdict.FAIL, f"paths.{name} = {path}: {place} is not a folder; give another path")
        elif not os.access(place, os.W_OK | os.X_OK):
            yield Finding(Verdict.FAIL, f"paths.{name} = {path}: no write access to {place}; give another path")
        else:
            yield Finding(Verdict.OK, f"paths.{name}: {path} can be written")


def tracking_findings(settings: Settings) -> Iterable[Finding]:
    from analyticup.pipeline import resolve

    mode = settings.tracking.mode
    if mode == "disabled":
        yield Finding(Verdict.OK, "tracking: disabled")
    elif mode == "offline":
        folder = resolve(settings.paths.artifacts) / "wandb"
        yield Finding(Verdict.OK, f"tracking: offline: runs are kept in {folder}, nothing leaves this machine")
    elif not _has_wandb_login():
        yield Finding(
            Verdict.FAIL,
            "tracking.mode = online: W&B knows no login here; set WANDB_API_KEY or run `wandb login`, or take "
            "tracking.mode=offline",
        )
    elif fault := _unreachable(*_wandb_host()):
        yield Finding(Verdict.FAIL, f"tracking.mode = online: {fault}; mend the network, or take tracking.mode=offline")
    else:
        yield Finding(Verdict.OK, f"tracking: online, project {settings.tracking.project}, {_wandb_host()[0]} answers")


def _wandb_host() -> tuple[str, int]:
    from urllib.parse import urlsplit

    address = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    return address.hostname or "", address.port or (80 if address.scheme == "http" else 443)


def _unreachable(host: str, port: int) -> str:
    """Why nothing listens there; "" where something does."""
    import socket

    try:
        socket.create_connection((host, port), timeout=_W_AND_B_SECONDS).close()
    except OSError as error:
        return f"{host}:{port} cannot be reached ({error})"
    return ""


def _has_wandb_login() -> bool:
    """Whether W&B would find a key on its own, in the environment or the netrc file; the key itself is not used."""
    from netrc import NetrcParseError, netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        file = netrc(os.environ.get("NETRC") or str(Path("~/.netrc").expanduser()))
    except (OSError, NetrcParseError):
        return False
    return _wandb_host()[0] in file.hosts
