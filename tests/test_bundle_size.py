"""`regenerate --depth decide` at the size of the competition: 230,000 test rows, 640,000 out-of-fold rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import ROOT, places

from analyticup.corpus.rows import TARGET_FIELD, make_rows, save_rows
from analyticup.corpus.tables import save_table
from analyticup.engine.artifacts import StageRecord
from analyticup.engine.checksums import write_sums
from analyticup.engine.files import file_sha256, write_json_lines
from analyticup.metrics import binary_metrics
from analyticup.results.manifest import Manifest
from analyticup.settings.schema import Settings

# Seconds and bytes that it may take.
SECONDS, BYTES = 20, 1e9
ROWS = {"QC": (300_000, 100_000), "QI": (340_000, 130_000)}
LANGUAGES = ("en", "fr", "es", "ko", "pt", "ja", "th", "de", "it", "pl")
FOLDS = 5
RANDOM = np.random.default_rng(0)


def table(split: str, task: str, rows: int, labels: list[int | None]) -> None:
    ids = [f"{split}-{number}" for number in range(1, rows + 1)]
    columns = {"row_id": ids, "language": [LANGUAGES[n % len(LANGUAGES)] for n in range(rows)], "label": labels}
    empty = [""] * rows
    return make_rows({"query": empty, "target": empty, "source_id": empty, "group": empty, **columns} | {
        "task": [task] * rows, "origin": ["original"] * rows
    })  # fmt: skip


def stage(bundle: Path, name: str, tables: dict[str, dict]) -> None:
    folder = bundle / "stages" / name
    folder.mkdir(parents=True)
    for file, columns in tables.items():
        save_table(columns, folder / f"{file}.parquet")
    StageRecord(stage=name.split("-")[0]).save(folder)


def write(bundle: Path, data: Path) -> None:
    """A bundle with scores drawn at random, and the test files that it answers."""
    settings = Settings(name="large").replace(**{"data.dir": "data", "folds.n": FOLDS})
    data.mkdir()
    for task, (train, test) in ROWS.items():
        labels = RANDOM.integers(0, 2, train)
        for split, rows, known in (("train", train, labels.tolist()), ("test", test, [None] * test)):
            save_rows(table(split, task, rows, known), bundle / "rows" / task / f"{split}.parquet")
        margins = (RANDOM.normal(size=train) + labels).astype("float32")
        for fold in range(FOLDS):
            own = np.flatnonzero(np.arange(train) % FOLDS == fold)
            held_out = {"row_id": [f"train-{n + 1}" for n in own], "margin": margins[own]}
            stage(bundle, f"train-{task}-fold{fold}", {"held_out": held_out})
            scores = {"row_id": [f"test-{n + 1}" for n in range(test)], "margin": RANDOM.normal(size=test)}
            stage(bundle, f"predict-{task}-fold{fold}", {"test": scores})
        lines = (
            {
                "id": number,
                "task": task,
                "language": LANGUAGES[(number - 1) % len(LANGUAGES)],
                "origin_query": f"a query of the usual length {number % 40_000}",
                TARGET_FIELD[task]: f"electronics,mobile phones and accessories,cases and covers {number % 9_000}",
            }
            for number in range(1, test + 1)
        )
        write_json_lines(data / f"test_{task}.txt", lines)
        published = bundle / "submission" / f"scores_{task}.parquet"
        published.parent.mkdir(exist_ok=True)
        zeros = {"score": np.zeros(test), "prediction": np.zeros(test, dtype="int8")}
        save_table({"id": np.arange(1, test + 1), **zeros}, published)
    figures = binary_metrics([0, 1], [0, 1], [0.0, 1.0])
    manifest = Manifest(
        name="large",
        final_split="test",
        files={f"submit_{task}.txt": "0" * 64 for task in ROWS},
        config=settings.model_dump(),
        data={path.name: file_sha256(path) for path in data.iterdir()},
        model={"backbone": "a/b"},
        thresholds=dict.fromkeys(ROWS, 0.5),
        thresholds_by_language={},
        out_of_fold=dict.fromkeys(ROWS, figures),
        environment={},
        stages={},
        seconds=0.0,
    )
    (bundle / "manifest.json").write_text(manifest.text, encoding="utf-8")
    write_sums(bundle)


@pytest.mark.long
@pytest.mark.parametrize("more", [["ensemble.method=mean_probability"], ["threshold.per_language=true"]])
def test_decide_takes_seconds_and_little_memory(tmp_path: Path, more: list[str]) -> None:
    bundle, data = tmp_path / "bundle", tmp_path / "data"
    write(bundle, data)
    code = (
        "import sys, os, json, time\nfrom analyticup.__main__ import main\nstarted = time.monotonic()\n"
        "code = main(sys.argv[1:])\n"
        "from analyticup.engine.memory import peak\n"
        "used = os.times()\n"
        "print(json.dumps([time.monotonic() - started, used.user + used.system, peak(), code]))"
    )
    command = [sys.executable, "-c", code, "regenerate", str(bundle), "--depth", "decide", f"data.dir={data}", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([*command, *places(tmp_path)], capture_output=True, text=True, env=environment, check=True)
    seconds, processor, size, exit_code = json.loads(done.stdout.splitlines()[-1])
    print(f"{more[0]}: {seconds:.1f} s, {processor:.1f} s of CPU, {size / 1e9:.2f} GB")
    assert exit_code == 0, done.stdout
    # A busy machine gives less than one core.
    assert processor <= SECONDS
    assert size <= BYTES
