"""The rivals' configs run end to end, with a tiny random model of each one's architecture, in one comparison."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from tiny_runs import ROOT, places

from analyticup.__main__ import main
from analyticup.engine.memory import let_go
from analyticup.settings.loading import load_settings

RIVALS = ROOT / "configs" / "rivals"
# Each on one task, which halves the time; the winner needs both.
BACKBONES = {
    "dcuragons": ("random:gemma3", ["QC", "QI"]),
    "industry-ai": ("random:qwen2", ["QI"]),
    "tredence": ("random:gemma3", ["QC"]),
    "ear-mp": ("random:deberta-v2", ["QC"]),
    "baseline": ("random:qwen2", ["QI"]),
    "baseline-small": ("random:xlm-roberta", ["QC"]),
}
# As small as a run can be; 4 bits need bitsandbytes, and weights to put into them.
TINY = [
    *(
        "model.quantisation=none",
        "model.dtype=float32",
        "translate.translator=lexicon",
        "translate.rows_per_language=4",
    ),
    *("folds.n=2", "train.epochs=1", "train.batch_rows=32", "prompt.reasoning.max_tokens=4", "QC.folds.group_by=query"),
    *("data.sample.train_queries=26", "data.sample.dev_queries=13", "data.sample.test_queries=13"),
    *("machine.accelerator=cpu", "machine.workers=1", "tracking.mode=disabled"),
]


def test_every_rival_has_a_model_of_its_architecture_here():
    assert {path.stem for path in RIVALS.glob("*.yaml")} == set(BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_value_says_whether_it_is_known(name):
    text = (RIVALS / f"{name}.yaml").read_text(encoding="utf-8")
    settings = load_settings(RIVALS / f"{name}.yaml", [])
    assert settings.name == name and "known" in text.split("name:")[0]
    told = [line for line in text.splitlines() if re.search(r"# (known|assumed)", line) and ": " in line.split("#")[0]]
    assert len(told) > 4


def test_the_small_forms_differ_from_ours_in_what_they_are_called_after():
    ours = load_settings(RIVALS / "small" / "00-ours.yaml", [])
    small = {path.stem: load_settings(path, []) for path in sorted((RIVALS / "small").glob("[!_]*.yaml"))}
    assert len({one.name for one in small.values()}) == len(small) > 6
    assert {one.data.train_rows for one in small.values()} == {ours.data.train_rows}
    assert ours.QI["filter.enabled"] and not small["03-no-filter"].QI["filter.enabled"]


@pytest.mark.slow
def test_all_rivals_run_on_the_sample_and_come_into_one_table(tmp_path: Path, replaced):
    # Collecting what a hundred tiny stages leave takes a quarter of the time.
    replaced(let_go, lambda: None)
    configs = []
    for name, (backbone, tasks) in BACKBONES.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"extends: {RIVALS / name}.yaml\ntasks: {tasks}\nmodel: {{backbone: '{backbone}'}}\n")
        configs.append(str(path))
    assert main(["compare", *configs, *TINY, *places(tmp_path)]) == 0
    made = tmp_path / "submissions" / f"compare-{'-'.join(BACKBONES)}"
    assert {path.name for path in made.iterdir()} == {"table.md", "table.csv", "comparison.json", "QC.png", "QI.png"}
    content = json.loads((made / "comparison.json").read_text())
    rows = [(task, name) for task in ("QC", "QI") for name, (_, tasks) in BACKBONES.items() if task in tasks]
    assert [(one["task"], one["row"]) for one in content["cost"]] == rows
    assert all(float(one["peak GB"]) > 0 for one in content["cost"])
    records = list(csv.DictReader((made / "table.csv").read_text().splitlines()))
    assert {(one["config"], one["gain"] == "") for one in records} == {
        (name, name == "dcuragons") for name in BACKBONES
    }
    assert len(records) == len(rows) * 3 * 3
    # What they have in common is made once: corpus, rows, folds, and pivots of one form.
    stages = [path.name for path in (tmp_path / "artifacts").iterdir()]
    counts = {
        "sample-all": 1,
        "ingest-QC": 1,
        "folds-QI": 1,
        "pivot-QI": 1,
        "pivot-QC": 2,
        "reason-QI": 1,
        "train-QC-fold0": 4,
    }
    counts |= {"pretrain-QI-fold0": 1, "pretrain-QC-fold1": 1, "teach-QC-fold0": 1, "translate-QC": 1}
    found = {start: sum(name.startswith(start) for name in stages) for start in counts}
    assert found == counts
