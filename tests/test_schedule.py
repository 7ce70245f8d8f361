"""What starts when: a replay with made seconds, order and slots, and what `plan --gpus` says of a run."""

from __future__ import annotations

import pytest

from analyticup.__main__ import main
from analyticup.checks import simulation
from analyticup.checks.timing import Rates
from analyticup.engine.graph import Cut, Node, Part, Stage
from analyticup.engine.schedule import Slots, longest_chain, replay, urgent_first
from analyticup.pipeline import build
from analyticup.settings.loading import load_settings
from analyticup.settings.paths import PROJECT

ROWS = {"train": 300, "dev": 100, "test": 100}


def graph(plain=(), **inputs):
    """Nodes by name, each with the names of its inputs; those in `plain` run no model."""
    made = {}
    for name, needed in inputs.items():
        stage = Stage(name, 1, "none:none", model=name not in plain)
        made[name] = Node(stage, "", Part(), {}, {other: made[other] for other in needed}, {})
    return list(made.values())


def titles(nodes):
    return [node.title for node in nodes]


@pytest.mark.parametrize(
    ("slots", "seconds"),
    # Without plain slots c waits for b on one, and runs beside it on two. With one, it takes none of the others.
    [(Slots(1), 22), (Slots(2), 20), (Slots(9), 20), (Slots(1, plain=1), 20)],
)
def test_a_replay_starts_each_stage_when_its_inputs_are_done_and_a_slot_is_free(slots, seconds):
    nodes = graph(a=[], b=["a"], c=["a"], d=["b"], e=["c", "d"], plain=("c", "e"))
    times = {"a": 1, "b": 5, "c": 2, "d": 10, "e": 4}
    assert replay(nodes, times, slots) == seconds
    assert longest_chain(nodes, times) == ["a", "b", "d", "e"]


def test_what_most_stages_wait_for_starts_first():
    # Two tasks, of which the second has the longer way; inputs come first all the same.
    nodes = graph(a=[], a1=["a"], a2=["a"], a3=["a"], b=[], b1=["b"], b2=["b1"], b3=["b2"], z=["a1", "a2", "a3", "b3"])
    assert titles(urgent_first(nodes)) == ["b", "b1", "a", "b2", "a1", "a2", "a3", "b3", "z"]
    times = dict.fromkeys(titles(nodes), 1.0)
    assert replay(nodes, times, Slots(2)) == 6 and replay(urgent_first(nodes), times, Slots(2)) == 5


def test_shards_share_only_what_follows_the_step_before_them():
    stages = {name: Stage(name, 1, "none:none") for name in "ab"}
    first = Node(stages["a"], "", Part(), {}, {}, {}, Cut(4, first="given"))
    nodes = [first, Node(stages["b"], "", Part(), {}, {"a": first}, {})]
    seconds, shares = {"a": 10, "b": 1}, {"a": 0.4, "b": 0.0}
    pieces, times = simulation.in_pieces(nodes, seconds, {}, shares)
    assert times == {"a-first": 6, **{f"a scoring-{number}/4": 1 for number in range(1, 5)}, "b": 1}
    assert [replay(pieces, times, Slots(count)) for count in (1, 2, 4)] == [11, 9, 8]
    # All that is asked for on the command line is cut evenly.
    assert simulation.in_pieces(nodes, seconds, {"a": 2}, shares)[1] == {"a-1/2": 5, "a-2/2": 5, "b": 1}


@pytest.fixture
def paper(tmp_path):
    """The paper's config on files that have the right number of lines."""
    for task in ("QC", "QI"):
        for split, count in ROWS.items():
            lines = (
                f'{{"id": {number}, "language": "{"en" if split == "train" else "de"}"}}\n' for number in range(count)
            )
            (tmp_path / f"{split}_{task}.txt").write_text("".join(lines))
    return [
        "--config",
        str(PROJECT / "configs" / "paper.yaml"),
        f"data.dir={tmp_path}",
        f"paths.artifacts={tmp_path}/a",
    ]


def test_stages_take_as_long_as_their_rows_at_the_rates(paper, monkeypatch):
    monkeypatch.setattr(simulation, "_OTHER_SECONDS", 0.0)
    settings = load_settings(PROJECT / "configs" / "paper.yaml", [*paper[2:], "translate.rows_per_language=100"])
    seconds = simulation.stage_seconds(settings, build(settings), Rates("", training=10.0, scoring=20.0))
    assert seconds["predict-QC-fold0"] == 200 / 20 and seconds["folds-QC"] == 0
    assert seconds["translate-QI"] == 100 / 25
    # 400 rows, all scored by the filter model; a fold trains on four fifths and scores its own given rows.
    assert seconds["filter_model-QI-all"] == 400 / 10 + 400 / 20
    assert seconds["train-QI-fold0"] == pytest.approx(320 / 10 + 60 / 20)
    more = 400 * 0.25 * 0.69
    assert seconds["train-QC-fold0"] == pytest.approx(0.8 * (400 + more) / 10 + 60 / 20)


def test_a_plan_says_what_more_gpus_would_bring(paper, capsys):
    assert main(["plan", *paper, "--gpus", "1,8", "--split", "train=2"]) == 0
    out = capsys.readouterr().out
    assert "35 stages have run; the others by rates that are assumed" in out
    hours = {line.split()[0]: float(line.split()[1]) for line in out.splitlines() if line.strip()[:1] in ("1", "8")}
    assert 0 < hours["8"] < hours["1"] / 2
    assert "wait for one another: ingest-QI" in out and "train-QI-fold0-1/2" in out
    assert main(["plan", *paper, "--gpus", "2", "--split", "trian=2"]) == 2
    assert "no such stage" in capsys.readouterr().err
    for wrong in (["--gpus", "0"], ["--split", "train"]):
        with pytest.raises(SystemExit, match="2"):
            main(["plan", *paper, *wrong])
