"""Whole runs on a tiny random model and few rows: what several test files ask of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from analyticup.engine.graph import Part
from analyticup.engine.job import Job
from analyticup.training.source import Machine

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_ROWS = ["data.sample.train_queries=40", "data.sample.dev_queries=26", "data.sample.test_queries=26"]
TINY_MODEL = ["model.backbone=random:qwen3", "model.lora.r=2", "machine.accelerator=cpu"]
# A few optimiser steps: such a model learns nothing anyway.
FEW_STEPS = ["train.epochs=1", "train.batch_rows=32", "QC.train.batch_rows=32"]
FEW_TRANSLATIONS = "translate.rows_per_language=4"
TINY = [
    *TINY_MODEL,
    *FEW_STEPS,
    *SAMPLE_ROWS,
    FEW_TRANSLATIONS,
    "tracking.mode=disabled",
    # Tests replace functions of this process.
    "machine.workers=1",
]
# The program, which then says whether torch was loaded.
WITHOUT_TORCH = (
    "import sys\nfrom analyticup.__main__ import main\ncode = main(sys.argv[1:])\n"
    "print('torch' if 'torch' in sys.modules else 'no torch')\nsys.exit(code)"
)


def places(folder: Path) -> list[str]:
    """All that a run writes, below one folder."""
    below = [f"paths.{name}={folder / name}" for name in ("artifacts", "submissions", "cache")]
    return [*below, f"filter.decisions={folder}/reviews/{{name}}"]


def fill(folder: Path, leave: int) -> Path:
    """A file that leaves so many bytes of the folder's disk."""
    file = folder / "filling"
    file.write_bytes(b"x" * (shutil.disk_usage(folder).free - leave))
    return file


def make_job(folder: Path, **given: Any) -> Job:
    """A stage's job in a folder: nothing is cached there, no model can be loaded; `given` says the rest."""
    defaults = {"out": folder, "cache": folder, "logs": folder, "resume_file": folder / "none"}
    plain = {"task": "QC", "part": Part(), "inputs": {}, "files": {}, "group": "", "resume_identity": ""}
    source = SimpleNamespace(machine=Machine("cpu", None))
    return Job(**{**defaults, **plain, "source": source, **given})
