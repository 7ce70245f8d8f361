"""Runs side by side: what is paired, what the page shows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Page
from made_reports import made_report
from tiny_runs import TINY, places

from analyticup.__main__ import main
from analyticup.errors import UserError
from analyticup.experiments.compare import run as run_module
from analyticup.experiments.compare.command import compared_rows, paired_with_first, read_arguments
from analyticup.experiments.compare.run import table_of
from analyticup.report.figures import Report
from analyticup.results import comparison
from analyticup.results.comparison import compare_runs, comparison_html, comparison_path
from analyticup.results.paired import Row, RowRun, Scored
from analyticup.settings.schema import Settings

NAMES = ("base", "better", "same")


def scored(knows: float) -> Scored:
    """80 queries of two rows in two languages, one of which has training rows; the scores know this much."""
    draw = np.random.default_rng(3)
    labels = draw.integers(0, 2, 160)
    scores = np.clip(0.5 + knows * (labels - 0.5) + draw.normal(0, 0.3, 160), 0, 1)
    return Scored(
        queries=[f"query {row // 2}" for row in range(160)],
        languages=[("en", "ar")[row // 2 % 2] for row in range(160)],
        labels=labels,
        scores=scores,
        predictions=(scores >= 0.5).astype(int),
        trained=frozenset({"en"}),
        sweep=[],
        threshold=0.5,
    )


@pytest.fixture(scope="module")
def figures() -> Report:
    return made_report()


@pytest.fixture
def runs(figures: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Three finished runs of one task, as far as a comparison reads them."""
    rows = dict(zip(NAMES, map(scored, (0.3, 0.9, 0.3)), strict=True))
    monkeypatch.setattr(
        comparison,
        "read_run",
        lambda task, artifacts, files: RowRun("test", rows[artifacts["name"].name], True, [], {}),
    )
    monkeypatch.setattr(comparison, "_cost", lambda found: comparison.Figure("Runs", note="none"))
    return [
        SimpleNamespace(
            folder=tmp_path / name,
            figures=figures,
            settings=Settings(name=name, tasks=["QC"], seed=seed),
            artifacts={"name": SimpleNamespace(name=name)},
            manifest=SimpleNamespace(data={}),
        )
        for seed, name in enumerate(NAMES)
    ]


def test_a_difference_is_paired_and_its_interval_says_whether_it_is_noise(runs: list[Any]) -> None:
    found = compare_runs(runs)
    gains = {(entry["config"], entry["languages"]): entry["f1"].get("gain") for entry in found.entries["QC"]}
    assert gains["base", "all"] is None and found.first == "base" and found.rows == {"QC": "test"}
    assert gains["better", "all"]["low"] > 0
    # The same scores on the same rows, resampled alike: no noise is left.
    assert [gains["same", "all"][name] for name in ("value", "low", "high")] == [0, 0, 0]


def test_other_rows_are_not_paired_and_the_page_says_so(runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(scored(0.3), labels=1 - scored(0.3).labels)
    read = comparison.read_run

    def changed(task: str, artifacts: Any, files: Any) -> RowRun:
        run = read(task, artifacts, files)
        return replace(run, scored=other) if artifacts["name"].name == "same" else run

    monkeypatch.setattr(comparison, "read_run", changed)
    found = compare_runs(runs)
    assert not found.entries and "same and base did not score the same rows" in found.rows["QC"]
    assert "Not paired: same and base did not score the same rows" in comparison_html(found)


def test_runs_without_a_common_task_and_a_run_given_twice_are_refused(runs: list[Any]) -> None:
    with pytest.raises(UserError, match="given twice"):
        compare_runs([runs[0], runs[0]])
    runs[1].settings = Settings(tasks=["QI"])
    with pytest.raises(UserError, match="no task is in all of these runs"):
        compare_runs(runs[:2])


def test_the_page_lists_what_was_set_differently_and_is_next_to_the_first_run(runs: list[Any], tmp_path: Path) -> None:
    found = compare_runs(runs)
    text = comparison_html(found)
    assert re.findall(r'<section id="(\w+)"', text) == ["differences", "languages", "settings", "cost"]
    assert re.search(r"seed</th>(<td>\d</td>){3}", text.replace("\n", "")) and not re.search(r"<script|https?:", text)
    assert comparison_path(found) == tmp_path / "base-better-same.html"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_browser_finds_no_fault_in_the_comparison(runs: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(comparison_html(compare_runs(runs)), encoding="utf-8")
    page = Page(tmp_path / "profile")
    try:
        for width in (390, 1280):
            page.load(path, width, "dark")
            assert page.problems == [] and page.ask("document.documentElement.scrollWidth") <= width
    finally:
        page.close()


def test_configs_and_settings_are_told_apart(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.yaml"
    odd.write_text("")
    given = ["a.yaml", "train.lr=1", str(odd), "b.yaml"]
    assert read_arguments(given) == ([Path("a.yaml"), odd, Path("b.yaml")], ["train.lr=1"])
    with pytest.raises(UserError, match="name two config files or more"):
        read_arguments(["a.yaml", "train.lr=1"])


def test_each_config_is_held_against_the_first_that_has_its_task() -> None:
    plans = {name: [Settings(tasks=tasks)] for name, tasks in (("a", ["QI"]), ("b", ["QC", "QI"]), ("c", ["QC"]))}
    rows = [(row.task, row.config, row.parent) for row in compared_rows(plans)]
    assert rows == [("QC", "b", None), ("QC", "c", "b"), ("QI", "a", None), ("QI", "b", "a")]


def test_what_did_not_score_the_same_rows_has_figures_but_no_difference() -> None:
    base, same, other = (Row("QC", name, name, parent) for name, parent in (("a", None), ("b", "a"), ("c", "a")))
    own = scored(0.9)
    shorter = replace(own, **{name: getattr(own, name)[:150] for name in ("queries", "languages", "labels")})
    shorter = replace(shorter, scores=own.scores[:150], predictions=own.predictions[:150])
    given = {base: scored(0.3), same: own, other: shorter}
    runs, notes = paired_with_first({row: [RowRun("dev", one, True, [], {})] for row, one in given.items()})
    assert notes == ["QC c: no difference to a: did not score the same rows (dev and dev)"]
    gains = {(entry["config"], "gain" in entry["auc"]) for entry in table_of(runs)}
    assert gains == {("a", False), ("b", True), ("c", False)}


def test_a_config_that_cannot_run_is_refused_before_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("name: one\nmodel: {backbone: 'random:qwen3'}\ntranslate: {translator: lexicon}")
    two.write_text("name: two\nmodel: {backbone: owner/name}")
    assert main(["compare", str(one), str(two), f"paths.artifacts={tmp_path / 'none'}"]) == 2
    assert "model.revision: the hub model owner/name needs a pinned commit" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_what_blocks_a_later_config_is_said_before_the_first_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("name: one")
    two.write_text("name: two\nmodel: {lora: {targets: foo}}")
    given = [*TINY, *places(tmp_path / "made"), "translate.translator=lexicon"]
    assert main(["compare", str(one), str(two), *given]) == 2
    told = capsys.readouterr()
    first, last = told.err.splitlines()
    assert first.startswith("error: two: model.lora.targets: no linear module") and "nothing was started" in last
    assert ": running" not in told.out and not list((tmp_path / "made" / "artifacts").glob("*-all-*"))


def test_the_first_seed_of_a_config_that_is_not_cached_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("name: one\nseed: 1")
    two.write_text("name: two\nseed: 2")
    looked: list[tuple[str, int]] = []

    def look(settings: Settings, nodes: object, runner: object, console: object, what: str) -> bool:
        looked.append((what, settings.seed))
        # Those of seed 1 and below are cached.
        return settings.seed > 1

    def run(*given: object) -> None:
        raise UserError("and now they run")

    monkeypatch.setattr(run_module, "refuse_blocked", look)
    monkeypatch.setattr(run_module, "_run", run)
    given = [*TINY, *places(tmp_path / "made"), "translate.translator=lexicon"]
    assert main(["compare", str(one), str(two), "--seeds", "3", *given]) == 2
    assert looked == [("one", 1), ("one", 2), ("two", 2)]


def test_what_blocks_an_ablation_is_said_before_its_first_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", *TINY, *places(tmp_path), "tasks=[QC]", "model.lora.targets=foo"]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: qc1-sft: model.lora.targets: no linear module") and ": running" not in told.out


def test_two_configs_of_one_name_are_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    for path in (one, two):
        path.write_text("name: twin")
    assert main(["compare", str(one), "--seeds", "2", str(two), f"paths.artifacts={tmp_path / 'none'}"]) == 2
    expected = f"error: {two}: another config is called 'twin' too; give it a `name:` of its own\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "none").exists()
