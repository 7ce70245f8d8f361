"""Review files: each suspect that the filter writes is read again, whatever its texts; reports show any language."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import HOSTILE, TEXTS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_reports import made_facts, made_report
from tiny_runs import make_job

from analyticup.corpus.rows import COLUMNS, make_rows, save_rows
from analyticup.corpus.tables import save_table
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.filtering.stage import filter_rows
from analyticup.report.collect import _filter_quality
from analyticup.report.page import to_html
from analyticup.report.tables import describe_counts, score_table
from analyticup.settings.schema import FilterSettings, Settings

MADE = made_report()
# Of a language with a row of one class.
FIGURES_OF_NONE: dict[str, Any] = {
    **dict.fromkeys(("f1", "f1_se", "floor_f1", "precision", "recall"), 0.0),
    **{"rows": 1, "positives": 0, "auc": None, "ap": None},
}
# What the reader of the competition's files lets through.
CLEAN = TEXTS.map(lambda text: text.encode("utf-8", "replace").decode("utf-8"))


@settings(max_examples=40)
@given(queries=st.lists(CLEAN, min_size=2, max_size=5))
@example(queries=[text.encode("utf-8", "replace").decode("utf-8") for text in HOSTILE])
def test_every_suspect_is_read_again(tmp_path: Path, queries: list[str]) -> None:
    ids = [f"train-{number}" for number in range(len(queries))]
    columns: dict[str, Any] = {name: [f"{name} {query}" for query in queries] for name in COLUMNS}
    rows = make_rows(columns | {"row_id": ids, "label": [number % 2 for number in range(len(ids))], "query": queries})
    save_rows(rows, tmp_path / "train.parquet")
    # The models are sure of the opposite of every label.
    margins = np.where(np.arange(len(ids)) % 2, -9.0, 9.0)
    save_table({"row_id": ids, "margin": margins}, tmp_path / "held_out.parquet")
    artifact = Artifact(tmp_path, StageRecord())
    chosen = FilterSettings(enabled=True, max_share=1.0)
    inputs = {"rows": artifact, "filter_model-fold0": artifact}
    job = make_job(tmp_path, settings=Settings(filter=chosen), inputs=inputs)
    (tmp_path / "rows.parquet").unlink(missing_ok=True)
    assert filter_rows(job)["suspects"] == len(ids)
    (*_, in_use) = _filter_quality(dict.fromkeys(ids, True), artifact, artifact, chosen)
    assert (in_use["suspects"], in_use["found"]) == (len(ids), len(ids))
    lines = (tmp_path / "suspects.jsonl").read_bytes().decode("utf-8").split("\n")[:-1]
    assert sorted(json.loads(line)["query"] for line in lines) == sorted(queries)


@settings(max_examples=15)
@given(language=TEXTS)
@example(language="[/b]")
@example(language="[link=x]")
def test_a_report_shows_any_language(language: str) -> None:
    row = {**FIGURES_OF_NONE, "language": language}
    picture = MADE.pictures["test QC"]
    counts = {"train": {language: 1}, "kept": [language]}
    figures = replace(
        MADE,
        stages={**MADE.stages, "QC": {"ingest": {"counts": counts, "seconds": 1.0, "memory": 1}}},
        flow={"QC": MADE.flow["QC"][:1]},
        pictures={**MADE.pictures, "test QC": {**picture, "languages": [row, *picture["languages"]]}},
        suspects={"QC": [{"row_id": "train-1", "language": language, "label": 1, "score": 0.1, "why": language}]},
    )
    page = to_html(figures, replace(made_facts(MADE), texts={("QC", "train-1"): (language, language)}))
    assert page.count("<tr>") > 100 and page.endswith("</html>\n") and page.encode("utf-8")
    (shown,) = score_table("dev QC", [row]).columns[0].cells
    assert shown.isprintable() and describe_counts({language: 1}).isprintable()
