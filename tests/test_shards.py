"""Work that is cut into shards: the same bytes for any number of them, and an interrupted one resumes where it was."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tiny_models import fill_adapter_at_random
from tiny_runs import make_job

from analyticup.console import exclusive_run
from analyticup.engine.artifacts import StageRecord, read_artifact
from analyticup.engine.execution import Done, execute
from analyticup.engine.graph import FIRST, UNCUT, WHOLE, Cut, Node, Part, Shard, Stage, inspect
from analyticup.engine.workers import InProcess
from analyticup.errors import UserError
from analyticup.model.backbone import add_adapter, merge_into_copies
from analyticup.settings.schema import LoraSettings, ModelSettings, PathSettings, Settings
from analyticup.training import PREDICT, TRAIN
from analyticup.training.fold import score_rows
from analyticup.training.source import Machine, ModelSource, model_source
from analyticup.training.stage import train_adapter

# Of many lengths; some begin alike, and every fifth prompt comes twice.
ROWS = pd.DataFrame(
    {
        "query": [f"{'long ' * (i % 6)}query {i - (i % 5 == 1)}" for i in range(60)],
        "target": [f"bags,{(i - (i % 5 == 1)) % 3}" for i in range(60)],
        "label": pd.NA,
    }
).assign(query=lambda rows: rows["query"].where(rows.index % 5 != 1, rows["query"].shift(1)))
MODES = {
    "packed": {},
    "padded": {"model.packing": False},
    "bfloat16": {"model.dtype": "bfloat16"},
    "merged": {"predict.merge_adapters": True},
    "frozen": {"model.lora.layers": 1},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_score_is_the_same_in_any_number_of_shards(tmp_path, mode):
    """To the bit, on every machine: a shard has whole batches, so the forward passes are the same ones."""
    model = ModelSettings(backbone="random:qwen3", dtype="float32", lora=LoraSettings(r=4))
    settings = Settings(model=model).replace(**{"predict.max_batch_tokens": 150, **MODES[mode]})
    source = ModelSource(settings, tmp_path, Machine("cpu", 1))
    adapted = add_adapter(source.backbone(), settings.model.lora, seed=1)
    fill_adapter_at_random(adapted.eval())
    if settings.predict.merge_adapters:
        merge_into_copies(adapted)
    whole = score_rows(ROWS, adapted, settings, source, "test")
    assert len(set(whole.tolist())) == ROWS[["query", "target"]].drop_duplicates().shape[0] < len(ROWS)
    for of in (2, 7):
        parts = [score_rows(ROWS, adapted, settings, source, "test", Shard(number, of)) for number in range(of)]
        assert (np.sum([~np.isnan(part) for part in parts], axis=0) == 1).all()
        assert np.nanmax(parts, axis=0).tobytes() == whole.tobytes()
    # The last of very many has no batch.
    assert np.isnan(score_rows(ROWS, adapted, settings, source, "test", Shard(99, 100))).all()


LABELLED = ROWS.assign(row_id=[f"r{number}" for number in range(60)], label=[number % 2 for number in range(60)])
TINY_TRAINING = {
    **{"model.backbone": "random:qwen3", "model.lora.r": 4, "model.dtype": "float32", "tracking.mode": "disabled"},
    **{"train.batch_rows": 4, "train.max_batch_tokens": 150, "train.lr": 1e-2, "machine.accelerator": "cpu"},
    "machine.threads": 1,
}
TRAININGS = {
    **{mode: more for mode, more in MODES.items() if mode != "merged"},
    "classifier": {"model.head": "classifier", "model.backbone": "random:xlm-roberta"},
    "a rate of zero": {"train.lr": 0.0},
    "no row": {},
}


def made(settings, folder, shard=WHOLE, inputs=None, shards=(), rows=40):
    """What a training, a step of it, or what puts it together writes."""
    folder.mkdir(parents=True)
    given = {"settings": settings, "source": model_source(settings), "inputs": inputs or {}, "shards": shards}
    job = make_job(folder, part=Part(0, shard=shard), logs=folder.with_name(f"{folder.name}-logs"), **given)
    counts = train_adapter(job, LABELLED[:20], LABELLED[20 : 20 + rows], "train", check=False)
    StageRecord(counts=counts).save(folder)
    return read_artifact(folder, "")


@pytest.mark.parametrize("mode", TRAININGS)
def test_held_out_rows_scored_in_any_number_of_shards_make_the_same_folder(tmp_path, mode):
    settings = Settings().replace(**{**TINY_TRAINING, "paths.cache": str(tmp_path), **TRAININGS[mode]})
    rows = 0 if mode == "no row" else 40
    whole, first = made(settings, tmp_path / "whole", rows=rows), made(settings, tmp_path / "first", FIRST, rows=rows)
    assert not {"scored", "f1", "held_out.parquet"} & {*first.record.counts, *first.record.files}
    for of in (1, 2, 7):
        shards = [
            made(settings, tmp_path / f"{of}" / f"{number}", Shard(number, of), {"trained": first}, rows=rows)
            for number in range(of)
        ]
        assert sum(one.record.counts["scored"] for one in shards) == rows
        parts = made(settings, tmp_path / f"{of}" / "all", shards=(first, *shards), rows=rows)
        # Of each file the hash.
        assert parts.record.files == whole.record.files
        assert json.dumps(parts.record.counts) == json.dumps(whole.record.counts)
    assert ("collapsed" in whole.record.counts) == (mode == "a rate of zero")


def test_a_training_is_the_same_step_for_any_number_of_shards():
    def nodes(pieces):
        cut = TRAIN.cut(Settings().replace(**{"train.held_out_shards": pieces}))
        node = Node(TRAIN, "QC", Part(0), {}, {}, {}, cut)
        return node.identity, node.shards

    (whole, none), (same, two), (_, seven) = map(nodes, (1, 2, 7))
    assert none == () and whole == same and (len(two), len(seven)) == (3, 8)
    assert two[0].identity == seven[0].identity and str(two[0].part) == "fold0-first"
    assert all(one.inputs == {"trained": two[0]} for one in two[1:])


def test_shards_show_neither_in_an_identity_nor_among_the_stages_and_know_their_batches():
    def nodes(pieces, tokens):
        cut = PREDICT.cut(Settings().replace(**{"predict.shards": pieces, "predict.max_batch_tokens": tokens}))
        node = Node(PREDICT, "QC", Part(0), {}, {}, {}, cut)
        return node.identity, [shard.identity for shard in node.shards]

    whole, none = nodes(1, 512)
    assert none == [] and nodes(7, 512)[0] == nodes(2, 1024)[0] == whole
    assert not set(nodes(7, 512)[1]) & set(nodes(7, 1024)[1]) and len(set(nodes(7, 512)[1])) == 7


failing: set[str] = set()


def letters(job):
    """A stage that writes the letters of the alphabet, all or those of a shard."""
    made = [(shard.folder / "letters").read_text() for shard in job.shards]
    (job.out / "letters").write_text("".join(sorted("".join(made) or job.part.shard.take("abcdefghij"))))
    if str(job.part) in failing:
        raise UserError("as asked")
    return {"shards": len(made)}


def spelled(job):
    """As `letters`, from an alphabet that one step makes for all shards. That has left what it would resume from."""
    first = job.part.shard == FIRST
    if first:
        job.resume_file.parent.mkdir(exist_ok=True)
        job.resume_file.touch()
        (job.out / "letters").write_text("abcdefghij")
    else:
        given = job.inputs["given"] if "given" in job.inputs else job.shards[0]
        alphabet = given.file("letters").read_text()
        made = [one.file("letters").read_text() for one in job.shards[1:]]
        (job.out / "letters").write_text("".join(sorted("".join(made) or job.part.shard.take(alphabet))))
    if str(job.part) in failing:
        raise UserError("as asked")
    return {"shards": len(job.shards)}


def no_models(settings):
    return None


class Letters:
    """Runs of that stage, in one folder."""

    def __init__(self, folder):
        self.artifacts = folder / "artifacts"
        self.settings = Settings(paths=PathSettings(artifacts=str(self.artifacts)))

    def nodes(self, pieces, run="letters", first=""):
        stage = Stage("letters", 1, f"test_shards:{run}")
        return [Node(stage, "all", Part(), {}, {}, {}, Cut(pieces, first=first) if pieces > 1 else UNCUT)]

    def run(self, pieces, **more):
        """The reason that the run gives, the letters, and what the stage counted."""
        with InProcess("test_shards:no_models") as runner:
            status, done = execute(self.settings, self.nodes(pieces, **more), {}, runner)
        assert isinstance(done, Done)
        return status.reason, done.artifact.file("letters").read_text(), done.artifact.record

    def left(self):
        return sorted(path.name for path in (self.artifacts / "shards").glob("*/*"))


def test_a_failed_run_resumes_at_the_shards_that_are_made_and_leaves_none(tmp_path, monkeypatch):
    runs = Letters(tmp_path)
    monkeypatch.setattr(f"{__name__}.failing", {"shard3of4"})
    with pytest.raises(UserError, match="as asked"):
        runs.run(4)
    assert runs.left() == ["shard1of4", "shard2of4"]
    failing.clear()
    (plan,) = inspect(runs.nodes(4), runs.artifacts)
    assert plan.artifact is None and plan.reason == "not made yet; 2 of 4 shards are made"
    stamps = {path: path.stat().st_mtime_ns for path in runs.artifacts.rglob("letters")}
    failing.add("")
    with pytest.raises(UserError, match="as asked"):
        runs.run(4)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()) and len(runs.left()) == 4
    failing.clear()
    reason, found, record = runs.run(4)
    assert (reason, found, record.counts) == ("not made yet; 4 of 4 shards are made", "abcdefghij", {"shards": 4})
    assert not (runs.artifacts / "shards").exists()
    # Any other number finds it made.
    for pieces in (1, 2):
        assert runs.run(pieces)[0] == "cached"


def test_what_all_shards_need_is_made_once_for_any_number_of_them(tmp_path, monkeypatch):
    runs, more = Letters(tmp_path), {"run": "spelled", "first": "given"}
    monkeypatch.setattr(f"{__name__}.failing", {"shard2of3"})
    with pytest.raises(UserError, match="as asked"):
        runs.run(3, **more)
    assert runs.left() == ["first", "shard1of3"] and not list((runs.artifacts / "checkpoints").iterdir())
    (plan,) = inspect(runs.nodes(3, **more), runs.artifacts)
    assert plan.reason == "not made yet; 2 of 4 shards are made"
    (first,) = runs.artifacts.glob("shards/*/first/letters")
    failing.clear()
    failing.add("first")
    reason, found, record = runs.run(2, **more)
    assert (reason, found, record.counts) == ("not made yet; 1 of 3 shards are made", "abcdefghij", {"shards": 3})
    assert not first.exists()


def test_where_what_they_need_is_damaged_so_are_the_shards(tmp_path, monkeypatch):
    runs, more = Letters(tmp_path), {"run": "spelled", "first": "given"}
    monkeypatch.setattr(f"{__name__}.failing", {"shard2of2"})
    with pytest.raises(UserError):
        runs.run(2, **more)
    next(runs.artifacts.glob("shards/*/first/letters")).write_text("xyz")
    failing.clear()
    assert runs.run(2, **more)[:2] == ("not made yet; 0 of 3 shards are made", "abcdefghij")


def test_shards_of_another_number_are_no_use_and_go_too(tmp_path, monkeypatch):
    runs = Letters(tmp_path)
    monkeypatch.setattr(f"{__name__}.failing", {"shard2of3"})
    with pytest.raises(UserError):
        runs.run(3)
    failing.clear()
    reason, found, _ = runs.run(2)
    assert reason == "not made yet; 0 of 2 shards are made" and found == "abcdefghij"
    assert not (runs.artifacts / "shards").exists()


def test_a_damaged_shard_is_made_again(tmp_path, monkeypatch):
    runs = Letters(tmp_path)
    monkeypatch.setattr(f"{__name__}.failing", {""})
    with pytest.raises(UserError):
        runs.run(2)
    next(runs.artifacts.glob("shards/*/shard2of2/letters")).write_text("xyz")
    failing.clear()
    assert runs.run(2)[:2] == ("not made yet; 1 of 2 shards are made", "abcdefghij")


def test_what_a_killed_shard_left_goes_when_the_next_run_begins(tmp_path):
    runs, said = Letters(tmp_path), io.StringIO()
    left = runs.artifacts / "shards" / "letters-1" / ".unfinished-shard1of2"
    left.mkdir(parents=True)
    with exclusive_run(runs.settings, Console(file=said, width=200)):
        assert runs.left() == [] and said.getvalue().startswith("removed .unfinished-shard1of2, left half-made")
