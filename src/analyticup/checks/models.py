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
from analyticup.checks.footprint import (
    TRAINED_BYTES,
    Shape,
    adapter_state_bytes,
    adapters,
    kept_bytes,
    logits_bytes,
    shape_of_config,
)
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
from analyticup.training import models
from analyticup.verdict import Verdict

# Parameters by the models' own cards; other hub models are judged by a name such as "14B".
KNOWN_PARAMETERS: Final = {
    "Qwen/Qwen3-14B-Base": 14.8e9,
    "Qwen/Qwen3-8B-Base": 8.2e9,
    "intfloat/multilingual-e5-small": 118e6,
}
_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "spm.model", "sentencepiece.bpe.model")
DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
# By the models' configs; others are taken for a Qwen3-14B of another width.
KNOWN_SHAPES: Final = {
    "Qwen/Qwen3-14B-Base": Shape(40, 5120, 17408, 5120, 1024, 151936, head_norms=True),
    "Qwen/Qwen3-8B-Base": Shape(36, 4096, 12288, 4096, 1024, 151936, head_norms=True),
}
# NF4 with double quantisation: 4 bits a weight and .127 for the scales (Dettmers et al. 2023).
_NF4_BYTES: Final = 4.127 / 8
# Kept for the backward pass on a CPU per token, layer and unit of width, as multiples of a value's bytes (measured with
# the sample).
_KEPT_VALUES: Final = 17

# Of a run on a CPU, measured on Linux with the sample (270M parameters, bf16 and float32, two workers): the process
# that shows it and those of W&B, one with all packages imported, what a converting one takes per parameter, one that
# holds a tokenizer, and what stays with a working one, by bytes of a value: oneDNN's code, mostly for bf16, and free
# heap. Of a mapped file not all is touched.
_MAIN_BYTES: Final = 0.26e9
PROCESS_BYTES: Final = 0.66e9
_CONVERSION_BYTES: Final = 9.3
_TOKENIZER_BYTES: Final = 0.47e9
_KERNEL_BYTES: Final = {4: 0.2e9, 2: 0.45e9}
_TOUCHED: Final = 0.5
# Values per token and unit of width while rows are scored, and the tokens of a prompt (both assumed).
_SCORING_VALUES: Final = 15
_TYPICAL_TOKENS: Final = 40


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
    names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    files = [folder / name for name in names]
    return files if all(path.is_file() for path in files) else []


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _parameters(name: str, folder: Path | None) -> float | None:
    """From the files' bytes and the dtype of config.json, else from what is known of the name."""
    size = sum(path.stat().st_size for path in weight_files(folder)) if folder is not None else 0
    if folder is not None and size:
        config = _read_json(folder / "config.json")
        return size / DTYPE_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 4)
    if name in KNOWN_PARAMETERS:
        return KNOWN_PARAMETERS[name]
    found = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name.lower().rpartition("/")[2])
    return float(found[1]) * {"b": 1e9, "m": 1e6}[found[2]] if found else None


def download_bytes(model: Model) -> float:
    """Estimate: bf16 for large models, as their authors publish them; float32 for small ones."""
    parameters = model.parameters or 0.0
    return parameters * (2 if parameters >= 1e9 else 4)


def adapter_bytes(settings: Settings, model: Model) -> float:
    """Estimate for all adapters of a run, float32: one per fold, and those of the filter."""
    count = 0
    for task in settings.tasks:
        own = task_settings(settings, task)
        count += (trained := len(models(own)))
        if own.filter.enabled:
            count += {"out-of-fold": own.folds.n, "in-sample": 1, "neighbours": 0}[own.filter.scores]
        count += trained * ((own.train.start_from == "other_task") + bool(own.train.distil))
    if not settings.model.lora.enabled:
        return 4.0 * count * (model.parameters or 0.0)
    shape = shape_of(model)
    return 4.0 * count * adapters(shape, settings.model.lora.r, trained_layers(settings, shape))


def state_bytes(settings: Settings, model: Model, rows: float, value_bytes: int) -> float:
    """On disk while a run lasts: the states below the adapters of so many prompts; 0 where all layers are trained."""
    if not model.parameters or trained_layers(settings, shape := shape_of(model)) == shape.layers:
        return 0.0
    return rows * _TYPICAL_TOKENS * shape.width * value_bytes


def cpu_run_bytes(settings: Settings, model: Model, value_bytes: int) -> float:
    """Estimate of the most resident bytes of a run on a CPU, over all its processes; mapped weights count for each.

    `model` is the backbone, `value_bytes` the size of a weight and of an activation. Stages without the backbone are
    left out.
    """
    parameters, workers = model.parameters or 0.0, settings.machine.workers
    each = max(cpu_process_bytes(task_settings(settings, task), model, value_bytes) for task in settings.tasks)
    # In one process, the stages run where the run is shown.
    run = _MAIN_BYTES + workers * each if workers > 1 else each
    run += _TOKENIZER_BYTES if model.kind == "gguf" else 0.0
    if model.kind != "gguf" or model.folder is not None:
        return run
    idle = _MAIN_BYTES + workers * PROCESS_BYTES if workers > 1 else PROCESS_BYTES
    return max(run, idle + PROCESS_BYTES + parameters * _CONVERSION_BYTES)


def backbone_bytes(settings: Settings, model: Model, value_bytes: int) -> float:
    """The weights, on their device; quantised, all but embeddings and output matrix."""
    parameters = model.parameters or 0.0
    if settings.model.quantisation == "none":
        return parameters * value_bytes
    shape = shape_of(model)
    whole = min(parameters, 2.0 * shape.vocabulary * shape.width)
    return whole * value_bytes + (parameters - whole) * _NF4_BYTES


def cpu_process_bytes(own: Settings, model: Model, value_bytes: int) -> float:
    """Of `cpu_run_bytes` what one process takes that trains and scores a task, with the task's settings."""
    shape, train = shape_of(model), own.train
    tokens = min(train.max_batch_tokens, train.batch_rows * _TYPICAL_TOKENS)
    scoring = max(train.max_batch_tokens, own.predict.max_batch_tokens) * _SCORING_VALUES
    need = max(tokens * trained_layers(own, shape) * _KEPT_VALUES, scoring) * shape.width * value_bytes
    return PROCESS_BYTES + _TOUCHED * (model.parameters or 0.0) * value_bytes + need + _KERNEL_BYTES[value_bytes]


def training_bytes(settings: Settings, model: Model, value_bytes: int, on_gpu: bool, least: bool = False) -> float:
    """Estimate for one training: weights, adapters with their optimiser, activations and logits of the largest batch.

    `value_bytes` is the size of a weight and of an activation. With `least`, of a batch whose passes are one row each
    and whose layers are run again in the backward pass, as where memory has run out.
    """
    shape, lora = shape_of(model), settings.model.lora
    trained = trained_layers(settings, shape)
    needs = []
    for task in settings.tasks:
        own = task_settings(settings, task)
        longest = own.prompt.longest
        # But for the prompt's fixed words.
        tokens = longest if least else min(own.train.max_batch_tokens, own.train.batch_rows * longest)
        each = kept_bytes(shape, value_bytes, lora.r, bool(lora.dropout), longest, on_gpu)
        # Run again, each layer keeps only its input, and one layer at a time all the rest.
        again = least or settings.model.gradient_checkpointing
        kept = trained * shape.width * value_bytes + each if again else trained * each
        needs.append(tokens * kept + logits_bytes(shape, max(1, tokens // longest), value_bytes))
    state = adapter_state_bytes(shape, lora.r, trained)
    if not lora.enabled:
        state = TRAINED_BYTES * (model.parameters or 0.0)
    return backbone_bytes(settings, model, value_bytes) + state + max(needs)


def trained_layers(settings: Settings, shape: Shape) -> int:
    return min(shape.layers, settings.model.lora.layers or shape.layers)


def shape_of(model: Model) -> Shape:
    """From config.json, else by name, else guessed from the number of parameters: 12 width² to a layer, and a width of
    128 times the layers (assumed; Qwen3-14B, 40 layers of width 5120, would come out as 42 of 5400)."""
    config = _read_json(model.folder / "config.json") if model.folder is not None else {}
    found = shape_of_config(config.get("text_config") or config) or KNOWN_SHAPES.get(model.name)
    if found is not None:
        return found
    width = (128 * (model.parameters or 0.0) / 12) ** (1 / 3)
    return Shape(max(1, round(width / 128)), round(width), round(3.4 * width), round(width), round(width / 5), 151936)


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
