"""The comparison with configs/expected.yaml: when it applies, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from analyticup import console, terminal
from analyticup.errors import UserError
from analyticup.report.figures import Report
from analyticup.results.expected import compare, compare_figure, figures_by_name
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import run_only
from analyticup.verdict import Item, Verdict

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
REPORT = Report(
    name="run",
    scores={"dev QC": [{"language": "en", "auc": None}, {"language": "all", "auc": 0.70, "f1": 0.8}]},  # type: ignore
)
FIGURES = {"dev QC all: auc": 0.70, "dev QC all: f1": 0.8}
DATA = {"train_QC.txt": "a" * 64}


@pytest.fixture
def configs(tmp_path):
    entry = {"data": DATA, "figures": {"dev QC all: auc": {"value": 0.72, "tolerance": 0.03, "reason": "two errors"}}}
    (tmp_path / "expected.yaml").write_text(yaml.safe_dump({"mine": entry}))
    (tmp_path / "mine.yaml").write_text("name: mine\ntrain: {lr: 1e-4}\n")
    return tmp_path


def own(configs, *overrides):
    return load_settings(configs / "mine.yaml", list(overrides))


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.7, "OK"), (0.65, "near"), (0.76, "near"), (0.6, "FAIL"), (0.9, "FAIL")]
)
def test_distance_decides(value, verdict):
    assert compare_figure("x", value, 0.7, 0.04).verdict == verdict


def test_the_shipped_config_on_the_same_files_is_compared(configs):
    free = ("machine.threads=1", "tracking.mode=disabled", "data.dir=elsewhere", "paths.cache=there")
    free += ("predict.max_batch_tokens=99", "QI.predict.max_batch_tokens=9")
    (found,) = compare("mine", own(configs, *free), FIGURES, {**DATA, "dev_QC.txt": "b"}, configs)
    assert found == Item(Verdict.OK, "figure dev QC all: auc", "0.7000, expected 0.7200 ± 0.0300")


@pytest.mark.parametrize(
    ("override", "none"),
    [("paths.cache=x", True), ("QC.predict.max_batch_tokens=9", True), ("QC.train.lr=1", False), ("predict=1", False)],
)
def test_a_setting_of_one_task_decides_a_figure_where_that_of_both_does(override, none):
    assert run_only(override.partition("=")[0]) == none


# Settings that move a figure, be it a little.
MOVING = ("train.lr=2e-4", "predict.merge_adapters=true", "model.packing=false", "predict.compile_min_rows=9")


@pytest.mark.parametrize(
    ("overrides", "data", "reason"),
    [
        (["name=other"], DATA, "configs/expected.yaml says nothing on other"),
        *(([given], DATA, "the settings differ from configs/mine.yaml as it is shipped") for given in MOVING),
        ([], {"train_QC.txt": "c"}, "the files are not those that the expectations of mine were measured on"),
        ([], {}, "the files are not those that the expectations of mine were measured on"),
    ],
)
def test_anything_else_is_not_compared_and_says_why(configs, overrides, data, reason):
    settings = own(configs, *overrides)
    skipped = Item(Verdict.SKIPPED, "expected figures", f"none to compare with: {reason}")
    assert compare(settings.name, settings, FIGURES, data, configs) == [skipped]


def test_an_entry_with_overrides_holds_for_them_alone(configs):
    text = (configs / "expected.yaml").read_text().replace("mine:", "ablation-mine:\n  overrides: [QC.train.epochs=3]")
    (configs / "expected.yaml").write_text(text)
    with_it, without = own(configs, "QC.train.epochs=3"), own(configs)
    (found,) = compare("ablation-mine", with_it, FIGURES, DATA, configs)
    assert found.text.startswith("0.7000, ")
    reason = "the settings differ from configs/mine.yaml QC.train.epochs=3 as it is shipped"
    (skipped,) = compare("ablation-mine", without, FIGURES, DATA, configs)
    assert skipped.verdict == "SKIPPED" and skipped.text.endswith(reason)


def test_a_report_s_figures_have_the_names_of_the_file():
    assert figures_by_name(REPORT) == FIGURES


def test_a_figure_that_the_report_lacks_is_an_error(configs):
    text = (configs / "expected.yaml").read_text().replace("dev QC all", "dev QC en")
    (configs / "expected.yaml").write_text(text)
    with pytest.raises(UserError, match="no figure 'dev QC en: auc'"):
        compare("mine", own(configs), FIGURES, DATA, configs)


@pytest.mark.parametrize(
    ("value", "failed", "line"),
    [
        (0.70, False, "OK: figure dev QC all: auc: 0.7000, expected 0.7200 ± 0.0300"),
        (0.66, False, "near: figure dev QC all: auc: 0.6600, expected 0.7200 ± 0.0300"),
        (0.65, True, "FAIL: figure dev QC all: auc: 0.6500, expected 0.7200 ± 0.0300"),
        (None, False, "SKIPPED: expected figures: none to compare with: configs/expected.yaml says nothing on other"),
    ],
)
def test_a_run_says_it_in_the_words_of_verify(configs, tmp_path, monkeypatch, capsys, value, failed, line):
    project = tmp_path / "project"
    project.mkdir()
    (project / "configs").symlink_to(configs)
    monkeypatch.setattr(console, "PROJECT", project)
    name, figures = ("other", {}) if value is None else ("mine", {"dev QC all: auc": value})
    assert console.compare_with_expected(terminal.make_console(), name, own(configs), figures, DATA) == failed
    assert capsys.readouterr().out == line + "\n"


def test_the_shipped_expectations_are_complete():
    shipped = yaml.safe_load((CONFIGS / "expected.yaml").read_text())
    assert shipped
    for name, entry in shipped.items():
        config = name.removeprefix("ablation-")
        assert load_settings(CONFIGS / f"{config}.yaml", entry.get("overrides", [])).name == config
        assert set(entry) - {"overrides"} == {"data", "figures"}
        assert all(len(digest) == 64 for digest in entry["data"].values())
        for given in entry["figures"].values():
            assert set(given) == {"value", "tolerance", "reason"} and 0 < given["tolerance"] < 0.2
