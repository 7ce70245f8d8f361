"""Weights & Biases: runs in a group per pipeline run, each closed whatever ends it; nothing leaves the machine by
itself.

A run has the name recipe/task/part, its job type and tags; what it was made from and what it made are artifacts whose
aliases are the stages' identities.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from analyticup.settings.schema import Settings, TrackingSettings

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.wandb_run import Run

# What a stage's folder is in W&B.
KINDS = {
    **dict.fromkeys(("ingest", "translate", "pivot", "reason", "negatives", "filter"), "rows"),
    **dict.fromkeys(("filter_model", "pretrain", "teach", "train"), "adapters"),
    **dict.fromkeys(("predict", "ensemble", "threshold"), "scores"),
    "submit": "submission",
}
# Variables that say whose account it is, and how to reach it.
HEEDED = {
    *("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CREDENTIALS_FILE"),
    *("WANDB_INSECURE_DISABLE_SSL", "WANDB_HTTP_TIMEOUT", "WANDB_INIT_TIMEOUT", "WANDB_FILE_PUSHER_TIMEOUT"),
}
# The format of W&B's files is that of LevelDB's log: a header, then blocks of records in pieces.
_HEADER, _BLOCK, _PIECE = 7, 32768, struct.Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4


@dataclass(frozen=True)
class Made:
    """A stage's folder as an artifact: the stage, its node's title, and its identity."""

    stage: str
    title: str
    identity: str


@contextlib.contextmanager
def tracked_run(
    settings: TrackingSettings,
    folder: Path,
    group: str,
    name: str,
    config: Mapping[str, Any],
    job_type: str,
    tags: Sequence[str] = (),
) -> Iterator[Run | None]:
    """One W&B run, or None where tracking is disabled; it is finished whatever happens inside.

    offline keeps everything under `folder`/wandb (`wandb sync` uploads it later); nothing leaves the machine.
    """
    if settings.mode == "disabled":
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    _leave_no_say_to_the_surroundings()
    # W&B would otherwise keep its own cache and log folders in the user's home.
    for variable in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ.setdefault(variable, str(folder / "wandb"))
    import wandb

    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        group=group,
        name=name,
        job_type=job_type,
        tags=[tag[:64] for tag in tags],
        dir=str(folder),
        mode="online" if settings.mode == "online" else "offline",
        config=dict(config),
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, save_code=False, disable_git=True),
    )
    failed = True
    try:
        yield run
        failed = False
    finally:
        place = Path(run.dir).parent
        run.finish(exit_code=int(failed))
        if failed and settings.mode == "offline":
            print(f"{name}: its W&B run is closed, in {place}", file=sys.stderr, flush=True)


@cache
def _leave_no_say_to_the_surroundings() -> None:
    """Forgets W&B's variables but those of the account: the settings say what a run is called, where it is written and
    whether it is sent. Once, as W&B sets some itself."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name not in HEEDED]:
        del os.environ[name]


def log_lineage(run: Run, used: Iterable[Made], made: Iterable[Made]) -> None:
    """Says what a run was made from and what it made, for stages that W&B shows.

    An artifact holds the stage's title and identity alone, so that two runs that name it mean the same version.
    """
    for one in used:
        if one.stage in KINDS:
            # `use_artifact` is refused offline, though the file of the run can hold what it would do.
            artifact, aliases = _artifact(one)
            run._log_artifact(artifact, aliases=aliases, use_after_commit=True)
    for one in made:
        if one.stage in KINDS:
            artifact, aliases = _artifact(one)
            run.log_artifact(artifact, aliases=aliases)


def _artifact(made: Made) -> tuple[Any, list[str]]:
    import wandb

    artifact = wandb.Artifact(made.title, type=KINDS[made.stage], metadata={"identity": made.identity})
    with artifact.new_file("stage.json") as stream:
        stream.write(json.dumps({"stage": made.title, "identity": made.identity}) + "\n")
    return artifact, [made.identity[:12]]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """A W&B table."""
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def log_table(settings: Settings, folder: Path, name: str, columns: Sequence[str], rows: list[list[Any]]) -> None:
    """One run that holds a table."""
    config = {"rows": len(rows), "settings": comparable(settings)}
    with tracked_run(settings.tracking, folder, name, name, config, "ablation", [settings.name]) as tracked:
        if tracked is not None:
            tracked.log({"table": table(columns, rows)})


def comparable(settings: Settings) -> dict[str, Any]:
    """The settings by section, without what says where and how a run is executed."""
    return settings.model_dump(exclude={"tracking": True, "paths": True, "machine": True, "data": {"dir"}})


def close_left_open(folder: Path) -> list[Path]:
    """Ends the offline runs that a killed process left open, so that they can be uploaded; returns their folders.

    Those of which nothing was written yet are removed: `wandb sync` can make nothing of them. W&B's own process goes
    down with ours. Runs that such a process has open are left alone.
    """
    closed, written = [], written_now()
    for path in sorted((folder / "wandb").resolve().glob("offline-run-*/run-*.wandb")):
        if path in written:
            continue
        if path.stat().st_size <= _HEADER:
            shutil.rmtree(path.parent)
            continue
        records = list(read_records(path))
        if records and not any(record.WhichOneof("record_type") == "exit" for _, record in records):
            _append_exit(path, end=records[-1][0])
            closed.append(path.parent)
    return closed


def written_now() -> set[Path]:
    """The files of runs that W&B's processes have open."""
    found: set[Path] = set()
    for process in psutil.process_iter(["name"]):
        if process.info["name"].startswith("wandb"):
            with contextlib.suppress(psutil.Error):
                found |= {Path(file.path) for file in process.open_files()}
    return found


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Each whole record of a W&B file, and where it ends; what a killed process left of one is no record."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, begun = path.read_bytes(), _HEADER, b""
    while at + _PIECE.size <= len(data):
        if _BLOCK - at % _BLOCK < _PIECE.size:
            at += _BLOCK - at % _BLOCK
            continue
        check, size, kind = _PIECE.unpack_from(data, at)
        piece = data[at + _PIECE.size : at + _PIECE.size + size]
        if len(piece) < size or check != _check(kind, piece):
            return
        at += _PIECE.size + size
        begun = piece if kind in (_WHOLE, _FIRST) else begun + piece
        if kind in (_WHOLE, _LAST):
            record = Record()
            record.ParseFromString(begun)
            yield at, record


def _append_exit(path: Path, end: int) -> None:
    """Puts an exit record, with exit code 1, after the last whole one."""
    from wandb.proto.wandb_internal_pb2 import Record

    record = Record()
    record.exit.exit_code = 1
    content = record.SerializeToString()
    left = _BLOCK - end % _BLOCK
    room = max(0, left - _PIECE.size)
    # What does not fit into the block goes on in the next one.
    pieces = [content] if len(content) <= room else [content[:room], content[room:]]
    kinds = [_WHOLE] if len(pieces) == 1 else [_FIRST, _LAST]
    with path.open("r+b") as stream:
        stream.truncate(end)
        stream.seek(end)
        if left < _PIECE.size:
            stream.write(b"\0" * left)
            pieces, kinds = [content], [_WHOLE]
        for kind, piece in zip(kinds, pieces, strict=True):
            stream.write(_PIECE.pack(_check(kind, piece), len(piece), kind) + piece)


def _check(kind: int, piece: bytes) -> int:
    return zlib.crc32(piece, zlib.crc32(bytes([kind])))
