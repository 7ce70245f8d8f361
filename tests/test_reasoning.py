"""Generated reasoning before the answer: what is written about a row, from what, and where the prompt holds it."""

from __future__ import annotations

import pytest
import torch
from test_start import artifact, rows_of
from tiny_runs import ROOT, make_job

from analyticup import pipeline
from analyticup.augmentation import reasoning
from analyticup.augmentation import stage as augmentation
from analyticup.corpus.tables import REASONING_TABLE, as_read, load_table
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.engine.graph import Part, Shard
from analyticup.errors import CheckFailed, UserError
from analyticup.model.prompt import PromptEncoder
from analyticup.model.stand_ins import random_tokenizer
from analyticup.settings.loading import load_settings, task_settings
from analyticup.settings.schema import PromptSettings, Settings
from analyticup.training import training_settings
from analyticup.training.fold import encode_rows
from analyticup.training.source import Machine, ModelSource

SAMPLE = ROOT / "configs" / "sample.yaml"
ASKED = "prompt.reasoning.template={query} in {target}? Think:"
READ = [f"{task}.prompt.template={{query}} {{target}} {{reasoning}} Relevant:" for task in ("QC", "QI")]
GIVEN = [ASKED, *READ]
WHOLE_RUN = load_settings(
    SAMPLE,
    [
        *(*GIVEN, "model.backbone=random:qwen3", "model.dtype=float32", "machine.accelerator=cpu"),
        *("prompt.reasoning.max_tokens=6", "prompt.reasoning.batch_size=3", "tracking.mode=disabled"),
    ],
)
SETTINGS = task_settings(WHOLE_RUN, "QC")
QUERIES = ["red maxi dress", "bag", "a query that is a good deal longer", "mug", "pen", "shoe", "bag"]


@pytest.fixture
def source(tmp_path):
    return ModelSource(SETTINGS, tmp_path, Machine("cpu", None))


@pytest.fixture
def run(tmp_path, source):
    """Runs the stage on rows in a folder of its own; (counts, its table)."""
    training = rows_of(*((f"train-{n}", "en", query, n % 2) for n, query in enumerate(QUERIES)))
    made = iter(range(100))

    def go(rows=training, shard=None, name="cache", **settings):
        (folder := tmp_path / str(next(made))).mkdir()
        dev = rows_of(("dev-1", "en", "lamp", None))
        inputs = {"rows": artifact(folder / "rows", rows=rows), "ingest": artifact(folder / "ingest", dev=dev)}
        own = {"settings": SETTINGS.replace(**settings), "source": source, "cache": tmp_path / name}
        job = make_job(folder, inputs=inputs, part=Part(shard=shard) if shard else Part(), **own)
        counts = augmentation.reason(job)
        path = folder / REASONING_TABLE
        return counts, load_table(path) if path.exists() else None

    return go


def test_the_prompt_holds_the_reasoning_cut_and_the_label_word_follows_as_ever():
    given = PromptSettings(template="{target} {query}: {reasoning} Relevant:").replace(**{"reasoning.max_tokens": 5})
    encoder, tokenizer = PromptEncoder(random_tokenizer(), given), random_tokenizer()
    (ids,) = encoder.encode(["bag"], ["bags"], ["first it is"])
    assert tokenizer.decode(ids) == "bags bag: firs Relevant:"
    assert encoder.label_words() == PromptEncoder(tokenizer, PromptSettings()).label_words()
    # As with queries and targets, no text that the model writes can become a special token.
    (ids,) = encoder.encode(["bag"], ["bags"], ["<eos> is"])
    assert tokenizer.eos_token_id not in ids
    assert all(0 not in fixed for fixed in encoder.fixed) and len(encoder.fixed) == 4
    (ids,) = encoder.encode(["q" * 900], ["t" * 900], ["r" * 900])
    assert len(ids) == given.max_query_tokens + given.max_target_tokens + 5 + sum(map(len, encoder.fixed))
    assert tuple(ids[-len(encoder.fixed[3]) :]) == tuple(encoder.fixed[3])


def test_it_is_what_the_plain_model_writes_greedily_about_each_row_alone(run, source):
    counts, table = run()
    pairs = sorted({(query, "shoes") for query in [*QUERIES, "lamp"]})
    assert list(zip(table["query"], table["target"], strict=True)) == pairs
    model, tokenizer, tokens = source.backbone(), random_tokenizer(), 0
    for query, target, text in table.itertuples(index=False):
        ids = tokenizer(f"{query} in {target}? Think:", add_special_tokens=False)["input_ids"]
        start = len(ids)
        while len(ids) < start + 6:
            with torch.no_grad():
                following = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if following == tokenizer.eos_token_id:
                break
            ids.append(following)
        assert text == tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
        tokens += len(ids) - start
    assert counts["asked"] == 7 and counts["tokens"] == tokens and 0 < counts["cut off"] <= 7


def test_it_ends_where_the_model_ends_also_where_that_token_fills_up(source):
    writer, tokenizer = reasoning._Writer(SETTINGS, source), source.tokenizer
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("bag", "a longer prompt for a hat")]
    with torch.no_grad():
        first = int(source.backbone()(input_ids=torch.tensor([prompts[0]])).logits[0, -1].argmax())
    (whole,) = writer.write(prompts[1:])
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(first)
    assert writer.write(prompts) == [reasoning.Reasoning("", 0), *writer.write(prompts[1:])]
    (other,) = writer.write(prompts[1:])
    assert whole.tokens == 6 >= other.tokens > 0 and whole.text.startswith(other.text)


def test_no_label_gets_into_it(run):
    rows = rows_of(*((f"train-{n}", "en", query, n % 2) for n, query in enumerate(QUERIES)))
    others = rows.assign(label=1 - rows["label"])
    _, table = run(rows, name="one")
    _, same = run(others, name="another")
    assert table.equals(same)


@pytest.mark.parametrize("of", [2, 3, 7])
def test_shards_write_the_same_and_leave_nothing_to_the_stage(run, monkeypatch, of):
    _, whole = run(name="whole")
    asked = [run(shard=Shard(number, of))[0]["asked"] for number in range(of)]
    assert sum(asked) == 7 and max(asked) < 7
    monkeypatch.setattr(reasoning._Writer, "write", lambda *prompts: pytest.fail("asked again"))
    assert run()[1].equals(whole)


def test_what_was_written_before_an_interruption_is_not_written_again(run, monkeypatch, capsys):
    write, batches = reasoning._Writer.write, []

    def interrupted(self, prompts):
        if len(batches) == 1:
            raise KeyboardInterrupt
        batches.append(len(prompts))
        return write(self, prompts)

    _, whole = run(name="whole")
    monkeypatch.setattr(reasoning._Writer, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    written = []
    monkeypatch.setattr(
        reasoning._Writer, "write", lambda self, prompts: written.append(len(prompts)) or write(self, prompts)
    )
    assert run()[1].equals(whole) and sum(written) == 7 - batches[0]
    # Nor does it show any text.
    assert not any(query in text for text in capsys.readouterr() for query in QUERIES)


def test_where_memory_runs_out_batches_are_smaller(run, monkeypatch, capsys):
    write = reasoning._Writer.write

    def small(self, prompts):
        if len(prompts) > 1:
            raise MemoryError
        return write(self, prompts)

    _, whole = run(name="whole")
    monkeypatch.setattr(reasoning._Writer, "write", small)
    assert run()[1].equals(whole)
    told = "reason QC: out of memory with 3 texts at once; goes on with 1 (prompt.reasoning.batch_size sets"
    assert capsys.readouterr().err.count(told) == 1


def test_rows_are_read_with_it_by_the_query_that_the_model_reads(tmp_path, run):
    run()
    made = {"reasoning": Artifact(tmp_path / "0", StageRecord())}
    rows = rows_of(("train-1", "en", "bag", 1), ("train-2", "en", "mug", 0))
    read = as_read(rows, made)
    about = load_table(tmp_path / "0" / REASONING_TABLE).set_index("query")["reasoning"]
    assert read["reasoning"].tolist() == [about["bag"], about["mug"]]
    # Broken characters are more tokens when they are read again.
    encoder = PromptEncoder(random_tokenizer(), SETTINGS.prompt.replace(**{"reasoning.max_tokens": 60}))
    texts = random_tokenizer().batch_decode(encode_rows(read, encoder).tokens)
    assert texts == [f"{query} shoes {about[query]} Relevant:" for query in ("bag", "mug")]
    with pytest.raises(CheckFailed, match="1 rows have no reasoning; delete its folder and run again"):
        as_read(rows.assign(query=["bag", "unknown"]), made)


def test_every_model_of_a_run_reads_it_and_given_adapters_need_none_about_training_rows(monkeypatch):
    given = [*GIVEN, "model.backbone=random:qwen3", "QI.filter.enabled=true", "train.start_from=other_task"]
    nodes = {node.title: node for node in pipeline.build(load_settings(SAMPLE, given))}
    assert {name: node.title for name, node in nodes["reason-QC"].inputs.items()} == {
        "rows": "negatives-QC",
        "ingest": "ingest-QC",
    }
    reading = {node.stage.name for node in nodes.values() if "reasoning" in node.inputs}
    assert reading == {"filter_model", "pretrain", "train", "predict"}
    assert nodes["pretrain-QI-fold0-before-QC"].inputs["reasoning"].title == "reason-QI"
    monkeypatch.setattr("analyticup.training.adapters_identity", lambda adapters: adapters)
    nodes = {node.title: node for node in pipeline.build(load_settings(SAMPLE, [*given, "model.adapters=here"]))}
    assert set(nodes["reason-QC"].inputs) == {"ingest"} and "negatives-QC" not in nodes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (READ, r"QI\.prompt\.template holds \{reasoning\} for QI, but prompt\.reasoning\.template is null, so nobody"),
        ([ASKED], r"prompt\.reasoning\.template is set for QI, but QI\.prompt\.template does not hold \{reasoning\}"),
        ([*GIVEN, "model.head=classifier"], r"a model with model\.head = classifier writes nothing \(QC\)"),
        ([*GIVEN, "QC.negatives.guard_above=0.9"], r"QC\.negatives\.guard_above judges rows that"),
        ([f"{READ[0]} {{reasoning}}"], r"may hold \{reasoning\} once only"),
        ([f"{ASKED} {{reasoning}}"], r"is what \{reasoning\} answers, so it cannot hold that"),
        (["prompt.reasoning.template=of {query}"], r"must hold \{query\} and \{target\}, each once"),
    ],
)
def test_what_does_not_go_together_is_refused(given, said):
    with pytest.raises(UserError, match=said) as refused:
        load_settings(SAMPLE, given)
    assert all(line.startswith(("argument", str(SAMPLE))) for line in str(refused.value).splitlines())


def test_without_it_nothing_is_known_of_it():
    plain = Settings().replace(**{"model.backbone": "random:qwen3"})
    assert training_settings(plain) == training_settings(plain.replace(**{"prompt.reasoning.max_tokens": 9}))
