"""Work that is cut into shards: the same bytes for any number of them, and an interrupted one resumes where it was."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tiny_models import fill_adapter_at_random

from analyticup.console import exclusive_run
from analyticup.engine.execution import Done, execute
from analyticup.engine.graph import UNCUT, Cut, Node, Part, Shard, Stage, inspect
from analyticup.engine.workers import InProcess
from analyticup.errors import UserError
from analyticup.model.backbone import add_adapter, merge_into_copies
from analyticup.settings.schema import LoraSettings, ModelSettings, PathSettings, Settings
from analyticup.training import PREDICT
from analyticup.training.fold import score_rows
from analyticup.training.source import Machine, ModelSource

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


def no_models(settings):
    return None


class Letters:
    """Runs of that stage, in one folder."""

    def __init__(self, folder):
        self.artifacts = folder / "artifacts"
        self.settings = Settings(paths=PathSettings(artifacts=str(self.artifacts)))

    def nodes(self, pieces, version=1):
        stage = Stage("letters", version, "test_shards:letters")
        return [Node(stage, "all", Part(), {}, {}, {}, Cut(pieces) if pieces > 1 else UNCUT)]

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
