"""The ablation's table: what is compared with what, what counts as noise, and the whole command on a tiny model."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from test_ensemble import World
from test_ensemble import settings as ensemble_settings
from tiny_runs import FEW_STEPS, FEW_TRANSLATIONS, ROOT, SAMPLE_ROWS, TINY, places

from analyticup.__main__ import main
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.experiments.ablation.table import PAPER_ROWS, TABLES
from analyticup.experiments.compare.output import to_csv, to_markdown
from analyticup.metrics import ALL, SEEN, UNSEEN
from analyticup.report.figures import REPORT, Report
from analyticup.results.paired import Row, Scored, make_table, read_run
from analyticup.settings.loading import load_settings, task_settings

ROWS = [row for rows in TABLES.values() for row in rows]
ABLATION = ROOT / "configs" / "ablation"
TWO = (Row("QC", "base", "SFT", None), Row("QC", "more", "+ more", "base"))


def scored(strength: float, seed: int = 0) -> Scored:
    """400 rows of 200 queries, three quarters in a language with training rows; `strength` 0 is guessing."""
    random = np.random.default_rng(seed)
    labels = np.random.default_rng(1).integers(0, 2, 400)
    scores = 1 / (1 + np.exp(-(strength * (labels - 0.5) + random.normal(size=400))))
    return Scored(
        queries=[f"query {i // 2}" for i in range(400)],
        languages=["en" if i % 4 else "de" for i in range(400)],
        labels=labels,
        scores=scores,
        predictions=(scores >= 0.5).astype(int),
        trained=frozenset({"en"}),
        sweep=[],
        threshold=0.5,
    )


def entry(table, config, languages=ALL):
    (only,) = [one for one in table if (one["config"], one["languages"]) == (config, languages)]
    return only


def test_every_row_has_its_config_and_names_a_parent_of_its_task():
    assert sorted(row.config for row in ROWS) == sorted(path.stem for path in ABLATION.glob("[!_]*.yaml"))
    by_config = {row.config: row for row in ROWS}
    for row in ROWS:
        settings = load_settings(ROOT / "configs" / "small.yaml", [], ABLATION / f"{row.config}.yaml")
        assert (settings.name, settings.tasks) == (row.config, [row.task])
        assert row.parent is None or by_config[row.parent].task == row.task


def test_a_row_differs_from_its_parent_in_the_one_thing_it_is_called_after():
    def switches(config):
        own = task_settings(
            load_settings(ROOT / "configs/small.yaml", [], ABLATION / f"{config}.yaml"), config[:2].upper()
        )
        on = {name for name in ("translate", "negatives", "filter", "threshold") if getattr(own, name).enabled}
        return on | {
            own.train.objective,
            own.ensemble.method,
            own.negatives.hardness if own.negatives.enabled else "no negatives",
        }

    changes = {row.config: switches(row.config) ^ switches(row.parent) for row in PAPER_ROWS if row.parent}
    assert changes == {
        "qc2-dpo": {"label_nll", "dpo"},
        "qc3-translation": {"translate"},
        "qc4-negatives": {"negatives", "no negatives", "band"},
        "qc5-filter": {"filter"},
        "qc6-threshold": {"threshold"},
        "qc7-easy-negatives": {"negatives", "no negatives", "easy"},
        "qc8-stack": {"mean_logit", "stack"},
        "qi2-translation": {"translate"},
        "qi3-filter": {"filter"},
        "qi4-threshold": {"threshold"},
        "qi5-stack": {"mean_logit", "stack"},
    }


def test_the_same_model_twice_gains_nothing_and_says_so():
    table = make_table({"base": [scored(1.0)], "more": [scored(1.0)]}, TWO)
    gain = entry(table, "more")["auc"]["gain"]
    assert gain == {"value": 0, "low": 0, "high": 0, "inside_noise": True}
    assert "gain" not in entry(table, "base")["auc"]
    assert to_markdown(table, "about").count("| +0.0000, the same |") == 3 * 3


def test_a_clearly_better_model_is_outside_the_noise_in_every_group():
    table = make_table({"base": [scored(0.0)], "more": [scored(3.0)]}, TWO)
    for languages, rows in ((ALL, 400), (SEEN, 300), (UNSEEN, 100)):
        found = entry(table, "more", languages)
        assert found["rows"] == rows and found["auc"]["low"] < found["auc"]["value"] < found["auc"]["high"]
        assert found["auc"]["gain"]["low"] > 0 and not found["auc"]["gain"]["inside_noise"]


def test_seeds_are_averaged_and_their_spread_is_shown():
    seeds = [scored(1.0, seed=0), scored(1.0, seed=5)]
    table = make_table({"base": seeds}, TWO[:1])
    both = entry(table, "base")["auc"]
    alone = [entry(make_table({"base": [one]}, TWO[:1]), "base")["auc"]["value"] for one in seeds]
    assert both["per_seed"] == alone and both["value"] == pytest.approx(np.mean(alone))
    assert both["seed_sd"] == pytest.approx(np.std(alone, ddof=1))
    assert to_markdown(table, "about").count(f"s.d. over seeds {both['seed_sd']:.4f}".replace("0.", ".")) == 1


def test_a_group_without_rows_is_left_out():
    only_seen = scored(1.0)
    only_seen.languages[:] = ["en"] * 400
    assert [one["languages"] for one in make_table({"base": [only_seen]}, TWO[:1])] == [ALL, SEEN]


def test_without_label_files_each_row_is_held_against_its_languages_threshold(tmp_path):
    world = World(tmp_path)
    world.run(ensemble_settings("mean_logit", per_language=True, shrinkage_rows=5))
    (tmp_path / "report").mkdir()
    Report(name="run").save(tmp_path / "report" / REPORT)
    folders = {"threshold-QC": "threshold", "ingest-QC": "ingest", "report-all": "report"}
    artifacts = {title: Artifact(tmp_path / name, StageRecord()) for title, name in folders.items()}
    scored = read_run("QC", artifacts, raw={}).scored
    decision = json.loads((tmp_path / "threshold" / "threshold.json").read_text())
    cuts = [decision["by_language"][language]["value"] for language in scored.languages]
    assert scored.predictions.tolist() == (scored.scores >= cuts).astype(int).tolist()
    assert scored.predictions.tolist() != (scored.scores >= decision["value"]).astype(int).tolist()


def test_markdown_and_csv_hold_every_entry():
    table = make_table({"base": [scored(1.0)], "more": [scored(1.2)]}, TWO)
    lines = to_markdown(table, "about").splitlines()
    assert lines[0] == "about" and len(lines) == 4 + 6 and len({line.count("|") for line in lines[2:]}) == 1
    records = list(csv.DictReader(to_csv(table).splitlines()))
    assert len(records) == 6 * 3
    assert float(records[0]["value"]) == entry(table, "base")["f1"]["value"] and records[0]["gain"] == ""


@pytest.mark.slow
def test_the_command_writes_table_and_picture_and_shares_stages(tmp_path, capsys):
    telling = [
        "tasks=[QI]",
        "model.backbone=random:qwen3",
        "model.lora.layers=1",
        *FEW_STEPS[:2],
        *SAMPLE_ROWS,
        FEW_TRANSLATIONS,
    ]
    command = ["ablate", *telling, "machine.accelerator=cpu", "tracking.mode=disabled", *places(tmp_path)]
    assert main([*command, "--seeds", "2"]) == 0
    made = tmp_path / "submissions" / "ablation-sample"
    assert {path.name for path in made.iterdir()} == {"table.md", "table.csv", "ablation.json", "QI.png"}
    content = json.loads((made / "ablation.json").read_text())
    assert [one["row"] for one in content["table"]] == [
        row.title for row in PAPER_ROWS if row.task == "QI" for _ in range(3)
    ]
    assert all(one["seeds"] == 2 for one in content["table"])
    # What decides no figure is not told.
    about = f"`configs/sample.yaml` with {' '.join(telling)}, scored on dev rows, 2 seed(s)"
    assert (made / "table.md").read_text().startswith(about)
    folders = [path.name for path in (tmp_path / "artifacts").iterdir()]
    # Two seeds; the filter's threshold changes nothing before it, so three rows' worth of trainings stand for four.
    assert sum(name.startswith("translate-QI") for name in folders) == 2
    assert sum(name.startswith("train-QI-fold0") for name in folders) == 6
    before = (made / "table.csv").read_bytes()
    capsys.readouterr()
    assert main([*command, "--seeds", "2"]) == 0
    assert "running" not in capsys.readouterr().out and (made / "table.csv").read_bytes() == before


def test_the_table_on_noise_tells_how_each_filter_finds_the_turned_labels(tmp_path):
    assert main(["ablate", "--table", "noise", *TINY, *places(tmp_path)]) == 0
    made = tmp_path / "submissions" / "ablation-noise-sample"
    assert {path.name for path in made.iterdir()} == {"table.md", "table.csv", "ablation.json"}
    quality = json.loads((made / "ablation.json").read_text())["filter"]
    filtered = [row.title for row in TABLES["noise"][1:]]
    assert [one["row"] for one in quality] == [title for title in filtered for _ in range(5)]
    wrong = {one["wrong labels"] for one in quality}
    assert len(wrong) == 1
    for one in quality:
        if one["rule"].startswith("least credible"):
            assert {one["suspects"]} == wrong and one["precision"] == one["recall"]
    # Out of fold the rows are judged by models that never saw them, in-sample by one that was trained on them.
    first, second = (next(one["ROC-AUC"] for one in quality if one["row"] == title) for title in filtered[:2])
    assert first != second
    assert (made / "table.md").read_text().count("least credible") == 4


def test_no_seed_at_all_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["ablate", "--seeds", "0"])
    assert "argument --seeds: must be 1 or more" in capsys.readouterr().err
