"""What `check` estimates for memory and disk of a run, from its settings, its backbone and its number of rows."""

from __future__ import annotations

from typing import Final

from analyticup.checks.footprint import (
    TRAINED_BYTES,
    Shape,
    adapter_state_bytes,
    adapters,
    kept_bytes,
    logits_bytes,
    shape_of_config,
)
from analyticup.checks.models import Model, read_model_file
from analyticup.checks.timing import task_rows
from analyticup.settings.loading import task_settings
from analyticup.settings.schema import Settings
from analyticup.training import models

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
_CONVERSION_BYTES: Final = 7.0
_TOKENIZER_BYTES: Final = 0.47e9
_KERNEL_BYTES: Final = {4: 0.2e9, 2: 0.45e9}
_TOUCHED: Final = 0.5
# More of that code, until passes of all sizes were met: in bf16 chosen to fit what was measured on all real rows of
# small.yaml; in float32, and the number of steps, assumed.
_SIZES_BYTES: Final = {4: 0.1e9, 2: 0.5e9}
_STEPS_OF_ALL_SIZES: Final = 300
# Values per token and unit of width while rows are scored, and the tokens of a prompt and of the longest ones (all
# assumed).
_SCORING_VALUES: Final = 15
_TYPICAL_TOKENS: Final = 40
_LONG_TOKENS: Final = {"QC": 80, "QI": 160}


def adapter_bytes(settings: Settings, model: Model) -> float:
    """Estimate for all adapters of a run, float32: one per fold, and those of the filter."""
    shape, total = shape_of(model), 0.0
    for task in settings.tasks:
        own = task_settings(settings, task)
        count = trained = len(models(own))
        if own.filter.enabled:
            count += {"out-of-fold": own.folds.n, "in-sample": 1, "neighbours": 0}[own.filter.scores]
        count += trained * ((own.train.start_from == "other_task") + bool(own.train.distil))
        weights = adapters(shape, own.model.lora.r, trained_layers(own, shape))
        total += 4.0 * count * (weights if own.model.lora.enabled else model.parameters or 0.0)
    return total


def state_bytes(settings: Settings, model: Model, rows: float, value_bytes: int) -> float:
    """On disk while a run lasts: the states below the adapters of so many prompts; 0 where all layers are trained."""
    if not model.parameters or trained_layers(settings, shape := shape_of(model)) == shape.layers:
        return 0.0
    return rows * _TYPICAL_TOKENS * shape.width * value_bytes


def cpu_run_bytes(settings: Settings, model: Model, value_bytes: int) -> float:
    """Estimate of the most resident bytes of a run on a CPU, over all its processes; mapped weights count for each.

    `model` is the backbone, `value_bytes` the size of a weight and of an activation. Stages without the backbone are
    left out: on all real rows they took less, the bi-encoder too.
    """
    parameters, workers = model.parameters or 0.0, settings.machine.workers
    each = max(cpu_process_bytes(settings, task, model, value_bytes) for task in settings.tasks)
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


def cpu_process_bytes(settings: Settings, task: str, model: Model, value_bytes: int) -> float:
    """Of `cpu_run_bytes` what one process takes that trains and scores a task."""
    own, shape = task_settings(settings, task), shape_of(model)
    train, rows = own.train, task_rows(own, task)
    tokens = min(train.max_batch_tokens, train.batch_rows * _LONG_TOKENS[task])
    scoring = max(train.max_batch_tokens, own.predict.max_batch_tokens) * _SCORING_VALUES
    need = max(tokens * trained_layers(own, shape) * _KEPT_VALUES, scoring) * shape.width * value_bytes
    steps = rows.given * train.epochs / train.batch_rows
    need += min(1.0, steps / _STEPS_OF_ALL_SIZES) * _SIZES_BYTES[value_bytes]
    return PROCESS_BYTES + _TOUCHED * (model.parameters or 0.0) * value_bytes + need + _KERNEL_BYTES[value_bytes]


def training_bytes(settings: Settings, model: Model, value_bytes: int, on_gpu: bool, least: bool = False) -> float:
    """Estimate for one training: weights, adapters with their optimiser, activations and logits of the largest batch.

    `value_bytes` is the size of a weight and of an activation. With `least`, of a batch whose passes are one row each
    and whose layers are run again in the backward pass, as where memory has run out.
    """
    shape = shape_of(model)
    needs = []
    for task in settings.tasks:
        own = task_settings(settings, task)
        lora, trained = own.model.lora, trained_layers(own, shape)
        longest = own.prompt.longest
        # But for the prompt's fixed words.
        tokens = longest if least else min(own.train.max_batch_tokens, own.train.batch_rows * longest)
        each = kept_bytes(shape, value_bytes, lora.r, bool(lora.dropout), longest, on_gpu)
        # Run again, each layer keeps only its input, and one layer at a time all the rest.
        again = least or settings.model.gradient_checkpointing
        kept = trained * shape.width * value_bytes + each if again else trained * each
        state = adapter_state_bytes(shape, lora.r, trained)
        if not lora.enabled:
            state = TRAINED_BYTES * (model.parameters or 0.0)
        needs.append(state + tokens * kept + logits_bytes(shape, max(1, tokens // longest), value_bytes))
    return backbone_bytes(settings, model, value_bytes) + max(needs)


def trained_layers(settings: Settings, shape: Shape) -> int:
    return min(shape.layers, settings.model.lora.layers or shape.layers)


def shape_of(model: Model) -> Shape:
    """From config.json, else by name, else guessed from the number of parameters: 12 width² to a layer, and a width of
    128 times the layers (assumed; Qwen3-14B, 40 layers of width 5120, would come out as 42 of 5400)."""
    config = read_model_file(model.folder / "config.json") if model.folder is not None else {}
    found = shape_of_config(config.get("text_config") or config) or KNOWN_SHAPES.get(model.name)
    if found is not None:
        return found
    width = (128 * (model.parameters or 0.0) / 12) ** (1 / 3)
    return Shape(max(1, round(width / 128)), round(width), round(3.4 * width), round(width), round(width / 5), 151936)
