"""`check` on the models that a run loads: where their files are and how large they are, found without a network."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import constants, try_to_load_from_cache
from transformers import AutoTokenizer

from analyticup.augmentation import translates
from analyticup.augmentation.translators import translation_models, translator_of
from analyticup.checks.finding import Finding
from analyticup.engine.artifacts import Unusable
from analyticup.engine.files import read_json
from analyticup.errors import UserError
from analyticup.model.heads import is_encoder_at
from analyticup.model.pins import (
    RANDOM_MODELS,
    converted_folder,
    existing_folder,
    gguf_sha256,
    is_commit,
    is_hub_id,
    read_conversion,
    source_kind,
)
from analyticup.model.prompt import PairEncoder, PromptEncoder
from analyticup.model.stand_ins import random_tokenizer
from analyticup.settings.loading import task_settings
from analyticup.settings.schema import ModelSettings, Settings
from analyticup.terminal import size_text
from analyticup.verdict import Verdict

# Parameters by the models' own cards; other hub models are judged by a name such as "14B".
KNOWN_PARAMETERS: Final = {
    "Qwen/Qwen3-14B-Base": 14.8e9,
    "Qwen/Qwen3-8B-Base": 8.2e9,
    "intfloat/multilingual-e5-small": 118e6,
}
_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "spm.model", "sentencepiece.bpe.model")
DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Model:
    """One model of a run. `key` is its settings' prefix, `use` what it is for; `folder` is where its files are, None
    where they are not on this machine; `parameters` is None where their number is unknown."""

    use: str
    key: str
    kind: str
    name: str
    revision: str | None
    folder: Path | None
    parameters: float | None


def needed_models(settings: Settings, cache: Path) -> list[Model]:
    """The backbone first, then the embedder and the translation models where a task needs them, each once.

    `cache` holds converted GGUF backbones.
    """
    found = [_backbone(settings.model, cache)]
    for task in settings.tasks:
        own = task_settings(settings, task)
        if own.embedder.kind == "sentence-transformers" and uses_embedder(own):
            found.append(_model("embedder", "embedder", own.embedder.model, own.embedder.revision))
        if translates(own):
            found += [_model("translator", *model) for model in translation_models(own.translate)]
    return list(dict.fromkeys(found))


def uses_embedder(settings: Settings) -> bool:
    """Whether a task with these settings embeds anything."""
    mines = translates(settings) and translator_of(settings.translate)[0].uses_embedder
    votes = settings.filter.enabled and settings.filter.scores == "neighbours"
    return mines or settings.negatives.enabled or votes or settings.ensemble.method == "stack"


def _backbone(settings: ModelSettings, cache: Path) -> Model:
    name, kind = settings.backbone, source_kind(settings)
    if kind in ("hub", "local"):
        return _model("backbone", "model", name, settings.revision)
    folder = None
    if kind == "gguf":
        # Without the file itself; `model_findings` says so.
        with contextlib.suppress(UserError):
            folder = existing_folder(str(converted_folder(name, cache)))
    parameters = 0.0 if kind == "random" else _parameters(name, folder)
    return Model("backbone", "model", kind, name, None, folder, parameters)


def _model(use: str, key: str, name: str, revision: str | None) -> Model:
    folder = existing_folder(name)
    if folder is not None:
        return Model(use, key, "local", name, None, folder, _parameters(name, folder))
    cached = hub_folder(name, revision)
    return Model(use, key, "hub", name, revision, cached, _parameters(name, cached))


def hub_folder(name: str, revision: str | None) -> Path | None:
    """The folder of a hub model in the local cache, where its weights are complete; asks no network."""
    if not is_commit(revision) or not is_hub_id(name):
        return None
    config = try_to_load_from_cache(name, "config.json", revision=revision, cache_dir=constants.HF_HUB_CACHE)
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder is not None and weight_files(folder) else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder; none where a file that the index names is missing."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    names = sorted(set(read_model_file(index).get("weight_map", {}).values()))
    files = [folder / name for name in names]
    return files if all(path.is_file() for path in files) else []


def read_model_file(path: Path) -> dict[str, Any]:
    """What a JSON file of a model holds; nothing where it cannot be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _parameters(name: str, folder: Path | None) -> float | None:
    """From the files' bytes and the dtype of config.json, else from what is known of the name."""
    size = sum(path.stat().st_size for path in weight_files(folder)) if folder is not None else 0
    if folder is not None and size:
        config = read_model_file(folder / "config.json")
        return size / DTYPE_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 4)
    if name in KNOWN_PARAMETERS:
        return KNOWN_PARAMETERS[name]
    found = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name.lower().rpartition("/")[2])
    return float(found[1]) * {"b": 1e9, "m": 1e6}[found[2]] if found else None


def download_bytes(model: Model) -> float:
    """Estimate: bf16 for large models, as their authors publish them; float32 for small ones."""
    parameters = model.parameters or 0.0
    return parameters * (2 if parameters >= 1e9 else 4)


def model_findings(models: list[Model]) -> Iterable[Finding]:
    """One finding per model: whether its weights are here, will be fetched, or cannot be had."""
    look = {"gguf": _gguf, "local": _local, "hub": _hub, "random": _random}
    return [look[model.kind](model) for model in models]


def _random(model: Model) -> Finding:
    if model.name not in RANDOM_MODELS:
        return Finding(Verdict.FAIL, f"{model.use}: {model.name} is not known; there is {', '.join(RANDOM_MODELS)}")
    return Finding(Verdict.NOTE, f"{model.use}: {model.name} is a tiny random model for tests; its scores mean nothing")


def _gguf(model: Model) -> Finding:
    if model.folder is None:
        try:
            gguf_sha256(model.name)
        except UserError as error:
            return Finding(Verdict.FAIL, str(error))
        return Finding(Verdict.OK, f"{model.use}: {model.name} will be converted on first use, once")
    read = read_conversion(model.name, model.folder.parent)
    if isinstance(read, Unusable):
        return Finding(
            Verdict.NOTE, f"{model.use}: {model.folder}: {read.reason}, so {model.name} will be converted again"
        )
    return Finding(Verdict.OK, f"{model.use}: {model.name}: converted copy in {model.folder}, all hashes as recorded")


def _local(model: Model) -> Finding:
    assert model.folder is not None
    if not (model.folder / "config.json").is_file():
        return Finding(
            Verdict.FAIL, f"{model.use}: {model.folder} has no config.json; give a Transformers model's folder"
        )
    if weight_files(model.folder):
        return Finding(Verdict.OK, f"{model.use}: {model.folder} has its weights")
    pickles = sorted(path.name for path in model.folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
    pickle = f"; {pickles[0]} is a pickle, which can run code and is not loaded: convert it" if pickles else ""
    return Finding(Verdict.FAIL, f"{model.use}: {model.folder} has no complete *.safetensors weights{pickle}")


def _hub(model: Model) -> Finding:
    if not is_hub_id(model.name):
        return Finding(Verdict.FAIL, f"{model.use}: {model.name} is neither a folder nor a hub id (owner/name)")
    if not is_commit(model.revision):
        return Finding(
            Verdict.FAIL,
            f"{model.use}: {model.key}.revision = {model.revision or 'null'}: the hub model {model.name} needs a "
            f"pinned commit; `git ls-remote https://huggingface.co/{model.name} HEAD` prints it, give it as "
            f"{model.key}.revision=COMMIT",
        )
    name = f"{model.use}: {model.name} at {model.revision[:12]}"
    if model.folder is not None:
        return Finding(Verdict.OK, f"{name} is in the local hub cache")
    if constants.HF_HUB_OFFLINE:
        return Finding(Verdict.FAIL, f"{name} is not in the local hub cache, and HF_HUB_OFFLINE forbids a download")
    size = f"about {size_text(download_bytes(model))} (estimate)" if model.parameters else "size unknown"
    return Finding(Verdict.NOTE, f"{name} is not in the local hub cache and will be downloaded: {size}")


def label_word_findings(settings: Settings, backbone: Model) -> Iterable[Finding]:
    """Per task, whether the label words are a token each, where the tokenizer is on this machine already; of an encoder
    whether its tokenizer joins two texts."""
    place = str(backbone.folder or backbone.name)
    pairs = (backbone.folder is not None or backbone.kind == "random") and is_encoder_at(place)
    if settings.model.head == "classifier" and not pairs:
        # A decoder's head needs neither.
        return
    # Without these files Transformers makes up an empty tokenizer.
    here = backbone.folder is not None and any((backbone.folder / name).is_file() for name in _TOKENIZER_FILES)
    if backbone.kind == "random":
        tokenizer = random_tokenizer(pairs)
    elif backbone.kind == "local" and not here:
        yield Finding(Verdict.FAIL, f"{backbone.use}: {backbone.folder} has none of {', '.join(_TOKENIZER_FILES)}")
        return
    elif not here:
        yield Finding(Verdict.SKIPPED, "label words: looked at as soon as the tokenizer is on this machine")
        return
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(backbone.folder), trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError) as error:
            yield Finding(
                Verdict.FAIL, f"{backbone.folder}: its tokenizer cannot be loaded: {str(error).splitlines()[0]}"
            )
            return
    if pairs:
        try:
            yield Finding(
                Verdict.OK, f"{backbone.use}: its tokenizer joins {PairEncoder(tokenizer, settings.prompt).pair}"
            )
        except UserError as error:
            yield Finding(Verdict.FAIL, str(error))
        return
    for task in settings.tasks:
        prompt = task_settings(settings, task).prompt
        try:
            PromptEncoder(tokenizer, prompt).label_words()
        except UserError as error:
            yield Finding(Verdict.FAIL, f"{task}: {error}")
        else:
            words = f"{prompt.negative_word!r} and {prompt.positive_word!r}"
            yield Finding(Verdict.OK, f"{task}: the label words {words} are a token each")
