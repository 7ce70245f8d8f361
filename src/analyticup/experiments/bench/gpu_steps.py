"""The steps of `./run.sh bench --only gpu`: generators of measurements, each run in a process of its own (see gpu)."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from analyticup import errors
from analyticup.experiments.bench.flops import Shape, backward_flops, forward_flops, prompts_load, shape_of
from analyticup.model import module
from analyticup.model.backbone import add_adapter, bare, load_backbone, merge_into_copies
from analyticup.model.batches import EncodedRows, collate, training_batches
from analyticup.model.checkpoint import StepCheckpoint
from analyticup.model.fused import fuse_adapters
from analyticup.model.module import label_hidden, output_matrix, recompute
from analyticup.model.objective import label_nll
from analyticup.model.packing import collate_packed, enable_packing, packed_batches
from analyticup.model.prompt import LabelWords
from analyticup.settings.loading import load_settings
from analyticup.settings.paths import PROJECT
from analyticup.settings.schema import LoraSettings, ModelSettings, Settings
from analyticup.training.fold import train_fold
from analyticup.training.source import Machine, ModelSource

Values = dict[str, Any]
WORDS = LabelWords(positive=5, negative=6)
# Of Qwen3-14B-Base.
_SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_TINY_SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def device() -> str:
    return "cuda" if Machine("auto", None).device == "cuda" else "cpu"


def _recipe() -> Settings:
    return load_settings(PROJECT / "configs" / "paper.yaml", [])


def random_model(
    tiny: bool, dtype: torch.dtype = torch.bfloat16, layers: int | None = None, vocabulary: int | None = None
) -> PreTrainedModel:
    """The paper's architecture with random weights, made on the device in its dtype: nothing passes through the
    host."""
    shape = _TINY_SHAPE if tiny else _SHAPE
    changed = {"num_hidden_layers": layers, "vocab_size": vocabulary}
    config = Qwen3Config(**{**shape, **{name: value for name, value in changed.items() if value}})
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    with torch.device(device()):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = Qwen3ForCausalLM(config)
        finally:
            torch.set_default_dtype(default)
    return model.eval()


def prompts(tiny: bool, count: int) -> list[list[int]]:
    """Token ids as of real rows: three targets to a query, 35 tokens on average, the query first."""
    random = np.random.default_rng(0)
    top = (_TINY_SHAPE if tiny else _SHAPE)["vocab_size"] - 1
    found: list[list[int]] = []
    while len(found) < count:
        query = random.integers(20, top, size=max(2, round(random.normal(9, 2)))).tolist()
        for _ in range(3):
            target = random.integers(20, top, size=max(4, round(random.normal(20, 5)))).tolist()
            found.append([7, 8, *query, 9, 10, *target, 11, 12])
    return found[:count]


def encoded(tokens: list[list[int]]) -> EncodedRows:
    return EncodedRows(tokens, [number % 2 for number in range(len(tokens))])


def _moved(batch: Any) -> Any:
    return move_data_to_device(batch, torch.device(device()))


def _wait() -> float:
    """The time, once the device has done all that it was given."""
    if device() == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _fresh() -> None:
    gc.collect()
    if device() == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_gb() -> float | None:
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device() == "cuda" else None


def _matrix_rate(tiny: bool, repeats: int = 10) -> float:
    """Operations per second of square bf16 products."""
    size = 256 if tiny else 8192
    left, right = (torch.randn(size, size, device=device()).to(torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    started = _wait()
    for _ in range(repeats):
        left @ right
    return repeats * 2 * size**3 / (_wait() - started)


def facts(tiny: bool) -> Iterator[Values]:
    """What this machine is, and its matrix rate."""
    packages = ("torch", "transformers", "peft", "lightning", "numpy")
    found: Values = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    found |= {"device": device(), "tiny": tiny}
    if device() == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {"gpu": about.name, "gb": round(about.total_memory / 1e9, 1), "cuda": torch.version.cuda}
    yield {**found, "tflops": round(_matrix_rate(tiny) / 1e12, 3)}


def packed_equals_plain(tiny: bool) -> Iterator[Values]:
    """States and gradients of packed prompts through fused adapters against padded ones through PEFT's, relative, four
    layers at full width."""
    rows = encoded(prompts(tiny, 24))
    for dtype, most in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        found = {}
        for packing in (False, True):
            model = random_model(tiny, dtype, None if tiny else 4)
            if packing:
                enable_packing(model)
            adapted = add_adapter(model, LoraSettings(r=32, alpha=64), 0).train()
            _fill_adapter(adapted)
            if packing:
                fuse_adapters(adapted)
            given = collate_packed(rows, range(24)) if packing else collate(rows, range(24), 0)
            batch = _moved(given)
            hidden = label_hidden(adapted, batch)
            label_nll(hidden, output_matrix(adapted), WORDS, batch["labels"]).backward()
            parts = [value.grad.flatten().float() for value in adapted.parameters() if value.requires_grad]
            found[packing] = hidden.detach().float()[torch.argsort(batch["rows"])], torch.cat(parts)
            del model, adapted
            _fresh()
        pairs = zip(found[True], found[False], strict=True)
        states, gradients = (float((one - other).norm() / other.norm()) for one, other in pairs)
        yield {"dtype": str(dtype), "states": states, "gradients": gradients, "equal": max(states, gradients) < most}


def _fill_adapter(model: PeftModel) -> None:
    """Values that matter in place of zeros, the same in every call."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02)


@dataclass(frozen=True)
class Variant:
    """How training steps are run."""

    rows: int
    checkpointing: bool = False
    dropout: float = 0.1
    fused: bool = True
    compiled: bool = False


VARIANTS = (
    Variant(32),
    Variant(32, checkpointing=True),
    Variant(32, fused=False),
    Variant(64),
    Variant(64, dropout=0.0),
    Variant(128, checkpointing=True),
    Variant(256, checkpointing=True),
)
TINY_VARIANTS = VARIANTS[:3]


def training(tiny: bool) -> Iterator[Values]:
    """Rows per second, share of the matrix rate (recomputation not counted) and peak memory of training steps."""
    yield from _trained(TINY_VARIANTS if tiny else VARIANTS, tiny)


def compiled(tiny: bool) -> Iterator[Values]:
    """The same of compiled layers; the first step takes the compilation."""
    yield from _trained((Variant(32, fused=False, compiled=True),), tiny)


def _trained(variants: tuple[Variant, ...], tiny: bool) -> Iterator[Values]:
    try:
        rate, base = _matrix_rate(tiny), random_model(tiny)
    except Exception as error:
        yield _lacking(error)
        return
    enable_packing(base)
    yield {"weights_gb": _peak_gb()}
    rows = encoded(prompts(tiny, 256 if tiny else 2048))
    for variant in variants:
        _fresh()
        model = add_adapter(base, LoraSettings(r=32, alpha=64, dropout=variant.dropout), 0).train()
        try:
            yield {**vars(variant), **_training_rates(model, rows, variant, rate)}
        except Exception as error:
            yield {**vars(variant), **_lacking(error)}
        finally:
            base = bare(model.get_base_model())
            del model


def _lacking(error: Exception) -> Values:
    """What did not fit, which a smaller GPU may say of some lines; raises any other error."""
    if not errors.out_of_memory(error):
        raise error
    return {"out_of_memory": " ".join(str(error).split())[:300]}


def _training_rates(model: PeftModel, rows: EncodedRows, variant: Variant, rate: float) -> Values:
    base, layers = model.get_base_model(), model.get_base_model().get_decoder().layers
    recompute(model, variant.checkpointing)
    if variant.fused:
        fuse_adapters(model)
    if variant.compiled:
        for layer in layers:
            layer.forward = torch.compile(layer.forward, dynamic=True)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=device() == "cuda")
    batches = training_batches(rows, 0, 0, variant.rows)[:6]
    # The first two warm up; two of the others come again at the end.
    timed, again = batches[2:], batches[2:4]
    shape, seconds, launches = shape_of(base, _recipe().model.lora), [], []
    try:
        for batch in [*batches, *again]:
            given = _moved(collate_packed(rows, batch, share=not variant.dropout))
            started = _wait()
            loss = label_nll(label_hidden(model, given), output_matrix(model), WORDS, given["labels"])
            loss.backward()
            launches.append(time.perf_counter() - started)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            seconds.append(_wait() - started)
    finally:
        for layer in layers if variant.compiled else ():
            del layer.forward
    took, took_first, took_again = sum(seconds[2 : len(batches)]), sum(seconds[2:4]), sum(seconds[len(batches) :])
    return {
        "rows_per_s": round(variant.rows * len(timed) / took, 2),
        # A batch of a new length asks the libraries for kernels. So what such batches take a second time, beside the
        # first, is of interest where a process has them for the first time.
        "again": round(took_again / took_first, 3),
        "tokens_per_step": round(np.mean([sum(len(rows.tokens[row]) for row in batch) for batch in timed])),
        "of_matrix_rate": round(_training_flops(shape, rows, timed) / took / rate, 3),
        "launched_after": round(sum(launches[2 : len(batches)]) / took, 3),
        "first_step_s": round(seconds[0], 2),
        "peak_gb": _peak_gb(),
        "loss": float(loss.detach()),
    }


def _training_flops(shape: Shape, rows: EncodedRows, batches: list[list[int]]) -> float:
    load = prompts_load([len(rows.tokens[row]) for batch in batches for row in batch])
    return forward_flops(shape, load, shape.layers, shape.layers) + backward_flops(shape, load, shape.layers)


def scoring(tiny: bool) -> Iterator[Values]:
    """Rows per second of scoring, adapters merged into the weights and not."""
    try:
        base = random_model(tiny)
    except Exception as error:
        yield _lacking(error)
        return
    enable_packing(base)
    rows = encoded(prompts(tiny, 96 if tiny else 4096))
    for merged, size in itertools.product((False, True), (8192, 32768)):
        _fresh()
        given = {"merged": merged, "tokens": size}
        model = add_adapter(base, LoraSettings(r=32, alpha=64), 0).eval()
        try:
            yield {**given, **_scoring_rates(model, rows, **given)}
        except Exception as error:
            yield {**given, **_lacking(error)}
        finally:
            base = bare(model.get_base_model())
            del model


def _scoring_rates(model: PeftModel, rows: EncodedRows, merged: bool, tokens: int) -> Values:
    if merged:
        merge_into_copies(model)
    else:
        fuse_adapters(model)
    batches = packed_batches(rows.tokens, tokens)
    with torch.inference_mode():
        label_hidden(model, _moved(collate_packed(rows, batches[0])))
        started = _wait()
        for batch in batches:
            label_hidden(model, _moved(collate_packed(rows, batch))).float().cpu()
        took = _wait() - started
    return {"rows_per_s": round(len(rows.tokens) / took, 1), "peak_gb": _peak_gb()}


def four_bit(tiny: bool) -> Iterator[Values]:
    """Training steps on NF4 weights, loaded as the pipeline does it: two layers at full width, few words."""
    if find_spec("bitsandbytes") is None:
        yield {"left_out": "bitsandbytes is not installed"}
        return
    with tempfile.TemporaryDirectory() as folder:
        random_model(tiny, layers=2, vocabulary=_TINY_SHAPE["vocab_size"]).save_pretrained(folder)
        _fresh()
        settings = ModelSettings(backbone=folder, quantisation="nf4")
        base = load_backbone(settings, Path(folder), torch.bfloat16, device=device())
        enable_packing(base)
        model = add_adapter(base, LoraSettings(r=32, alpha=64, dropout=0.1), 0).train()
        rows = encoded(prompts(True, 256))
        layer = type(base.get_decoder().layers[0].mlp.up_proj.get_base_layer()).__name__
        yield {"layer": layer, **_training_rates(model, rows, Variant(32), _matrix_rate(tiny))}


class _Killed(Exception):
    pass


def _tiny_training(folder: Path, checkpoint: StepCheckpoint | None = None) -> tuple[Tensor, np.ndarray]:
    """The pipeline's own training on a small model: adapters as one vector, and margins of rows it never saw."""
    recipe = _recipe()
    settings = recipe.replace(
        **{"model.backbone": "random:qwen3", "model.revision": None, "train.batch_rows": 8, "train.lr": 1e-3}
    )
    rows = pd.DataFrame(
        {
            "query": [f"query {number}" for number in range(96)],
            "target": [f"a,b{number % 9}" for number in range(96)],
            "label": [number % 2 for number in range(96)],
        }
    )
    source = ModelSource(settings, folder, Machine("auto", None))
    held_out = rows.head(16).assign(label=pd.NA)
    model, margins = train_fold(rows, held_out, settings, source, 5, "gpu check", None, checkpoint)
    parts = [value.detach().cpu().flatten() for value in model.parameters() if value.requires_grad]
    return torch.cat(parts), margins


def _failing(error: Exception, at: int) -> Any:
    """`label_hidden`, failing in its call number `at`, from 0."""
    calls = itertools.count()

    def failing(*given: Any, **named: Any) -> Tensor:
        if next(calls) == at:
            raise error
        return label_hidden(*given, **named)

    return failing


def out_of_memory(tiny: bool) -> Iterator[Values]:
    """Whether a training that runs out of memory goes on, and how far its result is from that of one that did not; on a
    GPU, also what torch itself raises there."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as told:
        whole = _tiny_training(Path(folder))
        module.label_hidden = _failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), 5)
        found = _compared(whole, _tiny_training(Path(folder)))
        module.label_hidden = label_hidden
        lines = [line for line in told.getvalue().splitlines() if "out of memory" in line]
        yield {**found, "goes_on": len(lines) == 1 and found["margins_differ"] < 0.01, "told": lines}
    if device() == "cuda":
        try:
            torch.empty(2**42, device=device())
        except torch.OutOfMemoryError as error:
            yield {"told": errors.machine_trouble(error)}


def resume(tiny: bool) -> Iterator[Values]:
    """A training that is killed between two steps and goes on from its checkpoint, against one that was not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = _tiny_training(folder)
        checkpoint = StepCheckpoint(folder / "step.safetensors", "gpu check", 1e-9)
        module.label_hidden = _failing(_Killed(), 7)
        try:
            _tiny_training(folder, checkpoint)
        except _Killed:
            module.label_hidden = label_hidden
        yield _same(whole, _tiny_training(folder, checkpoint))


def repeat(tiny: bool) -> Iterator[Values]:
    """The same training twice."""
    with tempfile.TemporaryDirectory() as folder:
        yield _same(_tiny_training(Path(folder)), _tiny_training(Path(folder)))


def _same(one: tuple[Tensor, np.ndarray], other: tuple[Tensor, np.ndarray]) -> Values:
    found = _compared(one, other)
    return {**found, "equal": found["same_bytes"]}


def _compared(one: tuple[Tensor, np.ndarray], other: tuple[Tensor, np.ndarray]) -> Values:
    return {
        "same_bytes": bool(torch.equal(one[0], other[0])) and bool(np.array_equal(one[1], other[1])),
        "adapters_differ": float((one[0] - other[0]).abs().max()),
        "margins_differ": float(np.abs(one[1] - other[1]).max()),
    }
