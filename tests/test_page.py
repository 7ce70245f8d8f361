"""What a run's page says besides its figures: the command, and whether rows' texts may be shown."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analyticup.corpus.rows import make_rows, save_rows
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.results.page import _starts, _texts, command_line
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import Settings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("sample.yaml", []),
        ("sample.yaml", ["QC.train.lr=2e-4", "tasks=[QI]", "data.dir=a folder", "threshold.mode=fixed", "name=mine"]),
        ("small.yaml", ["data.train_rows=null", "prompt.positive_word='yes'", "translate.languages=[ar, th]"]),
        ("sample.yaml", ["name=other", "report.rows=false", "prompt.template=\"{query}\\n{target}: 'x'\""]),
    ],
)
def test_the_command_gives_the_settings_again(config: str, overrides: list[str]) -> None:
    settings = load_settings(CONFIGS / config, overrides)
    script, run, option, given, *changed = shlex.split(command_line(settings))
    assert (script, run, option) == ("./run.sh", "run", "--config")
    assert load_settings(CONFIGS.parent / given, changed) == settings


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, True),
        ({"report.rows": False}, False),
        ({"data.dir": "x"}, False),
        ({"data.dir": "x", "report.rows": True}, True),
    ],
)
def test_texts_of_real_rows_are_only_shown_where_that_is_allowed(tmp_path: Path, given: Any, shown: bool) -> None:
    columns = {"row_id": "train-1", "task": "QC", "language": "en", "query": "q", "target": "t", "label": 1}
    columns |= {"origin": "original", "source_id": "", "group": "q"}
    save_rows(make_rows({name: [value] for name, value in columns.items()}), tmp_path / "train.parquet")
    figures: Any = SimpleNamespace(suspects={"QC": [{"row_id": "train-1"}]}, pictures={})
    settings = Settings(tasks=["QC"]).replace(**given)
    texts, why = _texts(figures, settings, {"ingest-QC": Artifact(tmp_path, StageRecord())})
    assert texts == ({("QC", "train-1"): ("q", "t")} if shown else {}) and bool(why) != shown


def test_the_timeline_leaves_out_the_time_between_two_commands() -> None:
    def record(started: float, seconds: float) -> StageRecord:
        return StageRecord(started=started, seconds=seconds)

    # The second command ran the third stage first, and two at once.
    records = [record(100.0, 5), record(102.0, 1), record(9000.0, 4), record(8998.0, 3)]
    assert _starts(records) == [0, 2, 7, 5]
    assert _starts([record(0.0, 5), record(102.0, 1), record(0.0, 4)]) == [0, 5, 6]
