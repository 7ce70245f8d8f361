"""What every QC fold may start from: rows that the category tree gives without a label."""

from __future__ import annotations

from collections import Counter

import pytest
from tiny_runs import ROOT, make_job

from analyticup import pipeline
from analyticup.checks.timing import TaskRows, model_rows
from analyticup.corpus.rows import make_rows, save_rows
from analyticup.corpus.taxonomy import leaf, on_one_line, path_levels, same_leaf
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.errors import UserError
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import ModelSettings, PromptSettings, Settings, TrainSettings
from analyticup.training import stage as training
from analyticup.training.category_tree import tree_rows
from analyticup.training.source import Machine, ModelSource

SAMPLE = ROOT / "configs" / "sample.yaml"
PATHS = ["home,garden,seeds", "home,garden,pots", "home,garden", "sports,golf,balls", "sports,pots", "toys, old,kites"]


def test_a_name_fits_its_path_and_no_other_branch():
    rows = tree_rows([*PATHS, "", PATHS[0]], 2000, seed=1)
    assert len(rows) == 2000 and rows["row_id"].is_unique
    name_of = {path: leaf(path) for path in PATHS}
    for row in rows.itertuples():
        own, other = path_levels(row.target), [path_levels(path) for path in PATHS if name_of[path] == row.query]
        if row.label == 1:
            assert name_of[row.target] == row.query
        else:
            assert any(not on_one_line(own, one) and not same_leaf(own, one) for one in other)
    assert 900 < rows["label"].sum() < 1100
    assert set(rows["query"]) == set(name_of.values())
    seeds = rows[(rows["query"] == "seeds") & (rows["label"] == 0)]
    # "home,garden" lies above it. Of the other four one has the same first level.
    assert Counter(seeds["target"])["home,garden,pots"] > 0.5 * len(seeds)
    assert set(seeds["target"]) == {"home,garden,pots", "sports,golf,balls", "sports,pots", "toys, old,kites"}


def test_the_rows_are_those_of_the_paths_and_the_seed():
    rows = tree_rows(PATHS, 50, seed=1)
    assert rows.equals(tree_rows(reversed(PATHS), 50, seed=1))
    assert not rows.equals(tree_rows(PATHS, 50, seed=2))


def test_a_tree_without_two_branches_is_refused():
    with pytest.raises(UserError, match=r"category_tree: 'home(,garden)?' has no other category beside it"):
        tree_rows(["home", "home,garden"], 20, seed=1)


def test_no_label_moves_what_the_folds_start_from(tmp_path):
    settings = Settings(
        model=ModelSettings(backbone="random:qwen3", dtype="float32"),
        prompt=PromptSettings(max_query_tokens=8, max_target_tokens=8),
        train=TrainSettings(start_from="category_tree", tree_rows=24, batch_rows=8, lr=1e-2),
    ).replace(**{"tracking.mode": "disabled"})
    source, made = ModelSource(settings, tmp_path, Machine("cpu", None)), {}
    for name, labels in {"as given": [0, 1, 1], "turned": [1, 0, 0]}.items():
        (folder := tmp_path / name).mkdir()
        save_rows(rows_of("train", PATHS[:3], labels), folder / "train.parquet")
        save_rows(rows_of("dev", PATHS[3:], [None] * 3), folder / "dev.parquet")
        (out := folder / "out").mkdir()
        inputs = {"rows": Artifact(folder, StageRecord())}
        counts = training.warm_up(make_job(out, settings=settings, inputs=inputs, source=source))
        assert {name: counts[name] for name in ("paths", "trained on", "scored")} == {
            "paths": 6,
            "trained on": 24,
            "scored": 0,
        }
        made[name] = (out / "adapter_model.safetensors").read_bytes()
    assert made["as given"] == made["turned"]


def rows_of(split, paths, labels):
    n, ids = len(paths), [f"{split}-{number}" for number in range(len(paths))]
    same = {"task": ["QC"] * n, "language": ["en"] * n, "origin": ["original"] * n, "source_id": [""] * n}
    return make_rows({**same, "row_id": ids, "query": ids, "target": paths, "label": labels, "group": ids})


def test_it_is_trained_once_and_judges_know_nothing_of_it():
    given = ["model.backbone=random:qwen3", "QC.train.start_from=category_tree", "QC.filter.enabled=true"]
    nodes = {node.title: node for node in pipeline.build(load_settings(SAMPLE, given))}
    start = nodes["warm_up-QC"]
    assert {name: node.title for name, node in start.inputs.items()} == {"rows": "ingest-QC"}
    assert [nodes[f"train-QC-fold{n}"].inputs["start"] for n in (0, 1)] == [start, start]
    assert "start" not in nodes["train-QI-fold0"].inputs and "start" not in nodes["filter_model-QC-fold0"].inputs
    more = {node.title: node for node in pipeline.build(load_settings(SAMPLE, [*given, "train.tree_rows=10"]))}
    moved = {title for title in nodes if nodes[title].identity != more[title].identity}
    assert {"warm_up-QC", "train-QC-fold0", "ensemble-QC"} <= moved
    assert not {"filter_model-QC-fold0", "train-QI-fold0", "ensemble-QI"} & moved


def test_its_rows_count_among_those_that_are_trained_on():
    own = load_settings(SAMPLE, ["train.epochs=2", "train.tree_rows=100"])
    rows = TaskRows(10, 10, 10, 10)
    trained, scored = model_rows(own, rows)
    assert model_rows(own.replace(**{"train.start_from": "category_tree"}), rows) == (trained + 200, scored)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["train.start_from=category_tree"], "category_tree: the targets of QI are titles, not category paths"),
        (
            [
                "QC.train.start_from=category_tree",
                "QC.prompt.reasoning.template={query} {target}",
                "QC.prompt.template={query} {target} {reasoning}",
            ],
            "prompt.reasoning.template is not asked about its rows",
        ),
    ],
)
def test_what_it_cannot_go_with_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        load_settings(SAMPLE, given)
