"""The comparison with configs/expected.yaml: when it applies, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from analyticup.errors import UserError
from analyticup.expected import Verdict, figures_by_name, verdicts
from analyticup.settings.loading import load_settings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
REPORT = {"scores": {"dev QC": [{"language": "en", "auc": None}, {"language": "all", "auc": 0.70, "f1": 0.8}]}}
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
    assert Verdict("x", value, 0.7, 0.04).verdict == verdict


def test_the_shipped_config_on_the_same_files_is_compared(configs):
    free = ("machine.threads=1", "tracking.mode=disabled", "data.dir=elsewhere", "paths.cache=there")
    free += ("predict.max_batch_tokens=99",)
    (found,) = verdicts("mine", own(configs, *free), FIGURES, {**DATA, "dev_QC.txt": "b"}, configs)
    assert found == Verdict("dev QC all: auc", 0.70, 0.72, 0.03) and found.verdict == "OK"


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
    assert verdicts(settings.name, settings, FIGURES, data, configs) == reason


def test_an_entry_with_overrides_holds_for_them_alone(configs):
    text = (configs / "expected.yaml").read_text().replace("mine:", "ablation-mine:\n  overrides: [QC.train.epochs=3]")
    (configs / "expected.yaml").write_text(text)
    with_it, without = own(configs, "QC.train.epochs=3"), own(configs)
    (found,) = verdicts("ablation-mine", with_it, FIGURES, DATA, configs)
    assert found.value == 0.70
    reason = "the settings differ from configs/mine.yaml QC.train.epochs=3 as it is shipped"
    assert verdicts("ablation-mine", without, FIGURES, DATA, configs) == reason


def test_a_report_s_figures_have_the_names_of_the_file():
    assert figures_by_name(REPORT) == FIGURES


def test_a_figure_that_the_report_lacks_is_an_error(configs):
    text = (configs / "expected.yaml").read_text().replace("dev QC all", "dev QC en")
    (configs / "expected.yaml").write_text(text)
    with pytest.raises(UserError, match="no figure 'dev QC en: auc'"):
        verdicts("mine", own(configs), FIGURES, DATA, configs)


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
