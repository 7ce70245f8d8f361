"""Backbones: where the weights come from, how they are loaded, and their LoRA adapters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from analyticup.errors import UserError
from analyticup.model.drawing import enable_dropout
from analyticup.model.fused import unfuse
from analyticup.model.gguf import converted_gguf, quiet_transformers
from analyticup.model.heads import (
    head_names,
    is_encoder,
    is_encoder_at,
    layers_of,
    layers_path,
    start_heads,
    without_dropout,
)
from analyticup.model.pins import CONVERTED_DTYPE, RANDOM_MODELS, checked_kind, loadable, source_kind
from analyticup.model.stand_ins import random_model, random_tokenizer
from analyticup.model.weights import load_whole
from analyticup.settings.schema import LoraSettings, ModelSettings

# The class of Transformers that loads the backbone, by `model.head`.
AUTO_CLASSES = {"label_word": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}
NO_BITSANDBYTES = (
    "model.quantisation = nf4: bitsandbytes is not installed; run: pip install bitsandbytes (the version in "
    ".ci/requirements-gpu.txt)"
)

NOT_MERGED = "predict.merge_adapters: weights of 4 bits take no adapters; set it to false"


@dataclass(frozen=True)
class Precision:
    """The dtype of the frozen weights, and why it was chosen."""

    dtype: str
    reason: str


def choose_precision(wanted: str, device: str) -> Precision:
    """bf16 where the machine has it. `wanted` is auto, float32 or bfloat16; `device` is cpu, cuda or mps."""
    if wanted != "auto":
        return Precision(wanted, "model.dtype says so")
    if device == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision("bfloat16" if able else "float32", f"this GPU {'has' if able else 'lacks'} bf16")
    if device == "cpu" and cpu_has_bf16():
        return Precision("bfloat16", "this CPU has bf16 instructions")
    return Precision("float32", f"no bf16 instructions found on {device}")


def numbered(device: str) -> torch.device:
    """The device of that name which is this process's: Transformers loads weights in threads, which have GPU 0."""
    return torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)


def cpu_has_bf16() -> bool:
    capabilities = torch.backends.cpu.get_cpu_capability()
    if "AVX512" in capabilities or "AMX" in capabilities:
        return bool(torch.cpu._is_avx512_bf16_supported())
    return False


def sums_vary_with_rows(device: str, dtype: torch.dtype) -> bool:
    """Whether the bits of a matrix product's row depend on how many rows there are. On a CPU with matrix tiles (AMX)
    those of bf16 do, up to some 700 rows: oneDNN adds up in another order. On CPUs without none did, on Intel's with
    what run.sh asks of MKL; GPUs were not looked at."""
    return device == "cpu" and dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


def local_folder(settings: ModelSettings, cache: Path, dtype: str = CONVERTED_DTYPE) -> str:
    """The folder where Transformers finds the weights; fetches a hub model and converts a GGUF file (to `dtype`)."""
    kind = checked_kind(settings)
    if kind == "gguf":
        quiet_transformers()
        return str(converted_gguf(settings.backbone, cache, dtype))
    return loadable(settings.backbone, settings.revision)


def load_tokenizer(settings: ModelSettings, cache: Path) -> PreTrainedTokenizerBase:
    """The whole tokenizer, as Transformers loads it."""
    quiet_transformers()
    if source_kind(settings) == "random":
        return random_tokenizer(pairs=is_encoder_at(settings.backbone))
    return AutoTokenizer.from_pretrained(local_folder(settings, cache), trust_remote_code=False)


def load_backbone(
    settings: ModelSettings, cache: Path, dtype: torch.dtype, converted: bool = False, device: str = "cpu"
) -> PreTrainedModel:
    """The frozen backbone, in eval mode, on the device (cpu, cuda or mps), to which each weight goes straight: a causal
    language model, or with `model.head=classifier` a model with a head for two classes, whose start values
    `add_adapter` draws. UserError as from `load_whole`, and for an encoder without that head.

    `converted` says that the folder is a copy of a GGUF file, which was checked when it was made and is hashed before
    each use: its weights are mapped, and not all of them need be read.
    """
    quiet_transformers()
    # A head that is in no file draws its values, which must not move what a training draws.
    with torch.random.fork_rng():
        model = _loaded(settings, cache, dtype, converted, device)
    check_head(model, settings)
    if settings.own_dropout:
        enable_dropout(model)
    elif is_encoder(model.config):
        without_dropout(model)
    return model


def check_head(model: PreTrainedModel, settings: ModelSettings) -> None:
    """Raises UserError for an encoder that is to say a label word, and for a decoder whose own dropout is wanted."""
    if settings.own_dropout and not is_encoder(model.config):
        raise UserError(
            f"model.own_dropout = true: only for encoders, and {settings.backbone} is none; set it to false"
        )
    if settings.head == "label_word" and is_encoder(model.config):
        raise UserError(
            f"model.backbone = {settings.backbone}: {model.config.model_type} is an encoder, which says no next word; "
            f"set model.head=classifier"
        )


def _loaded(settings: ModelSettings, cache: Path, dtype: torch.dtype, converted: bool, device: str) -> PreTrainedModel:
    auto_class: Any = AUTO_CLASSES[settings.head]
    if fault := quantisation_fault(settings):
        raise UserError(fault)
    if source_kind(settings) == "random":
        model = random_model(settings.backbone, len(load_tokenizer(settings, cache)), auto_class)
        return model.to(device, dtype).eval()
    place, options = local_folder(settings, cache), {"dtype": dtype}
    if settings.head == "classifier":
        options["num_labels"] = 2
    if settings.quantisation == "nf4":
        options["quantization_config"] = _nf4(dtype)
    if device != "cpu" or settings.quantisation != "none":
        # Without it Transformers maps the file, which is what a CPU wants.
        options["device_map"] = {"": numbered(device)}
    if converted or source_kind(settings) == "gguf":
        return auto_class.from_pretrained(place, trust_remote_code=False, use_safetensors=True, **options).eval()
    model = load_whole(auto_class, place, f"model.backbone = {place}", use_safetensors=True, **options)
    for part in model.modules():
        # On a CPU with bf16, bitsandbytes (0.50.2) packs weights for inference at the first pass in eval mode, and a
        # training on packed weights has wrong gradients, without a word.
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    return model


def quantisation_fault(settings: ModelSettings) -> str:
    """Why these weights cannot be quantised as the settings want; "" where they can, or need not."""
    if settings.quantisation == "none" or source_kind(settings) in ("local", "hub"):
        return ""
    return (
        f"model.quantisation = {settings.quantisation}: only for a local folder or a hub id, and model.backbone = "
        f"{settings.backbone} is neither; set it to none"
    )


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    if find_spec("bitsandbytes") is None:
        raise UserError(NO_BITSANDBYTES)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def random_qwen3(vocabulary: int) -> PreTrainedModel:
    """A random two-layer Qwen3, the architecture of the paper's model."""
    return random_model(RANDOM_MODELS[0], vocabulary, AutoModelForCausalLM)


def add_adapter(model: PreTrainedModel, settings: LoraSettings, seed: int) -> PeftModel:
    """A fresh LoRA adapter in float32 on the frozen backbone, and the head of a classifier; start values depend only on
    the seed. With `model.lora.enabled=false` copies of all of an encoder's weights, which are trained instead.

    Raises UserError where a target is the name of no linear module.
    """
    frozen, heads = frozen_layers(model, settings), head_names(model)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=lora_targets(model, settings),
        layers_to_transform=list(range(frozen, len(layers_of(model)))) if frozen else None,
        modules_to_save=(heads if settings.enabled else [model.base_model_prefix, *heads]) or None,
        task_type="SEQ_CLS" if heads else "CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = _without_input_casts(get_peft_model(model, config))
        start_heads(adapted, heads, model.config.initializer_range)
        return adapted


def _without_input_casts(model: PeftModel) -> PeftModel:
    """Keeps PEFT from casting each layer's input to the adapter's float32: a fifth of the training time on a CPU."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.cast_input_dtype_enabled = False
    return model


def merge_into_copies(model: PeftModel) -> None:
    """Adds the adapters to copies of the weights; `bare` puts the weights themselves back, bit for bit."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and not layer.merged:
            base = layer.get_base_layer()
            if not base.weight.is_floating_point():
                raise UserError(NOT_MERGED)
            # In a tuple, or it would count as another parameter of the layer.
            layer.weights_before = (base.weight,)
            base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            layer.merge()


def bare(model: PreTrainedModel) -> PreTrainedModel:
    """Takes off the model what a training or scoring put on it: adapters, merged, fused or neither, heads, and
    recomputation."""
    for name, part in list(model.named_modules()):
        if isinstance(part, AuxiliaryTrainingWrapper):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, part.original_module)
    unfuse(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            base = layer.get_base_layer()
            if hasattr(layer, "weights_before"):
                (base.weight,) = layer.weights_before
            assert not layer.merged or hasattr(layer, "weights_before"), name
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, base)
    if hasattr(model, "peft_config"):
        del model.peft_config
    if model.is_gradient_checkpointing:
        model.gradient_checkpointing_disable()
    return model.eval()


def frozen_layers(model: PreTrainedModel, settings: LoraSettings) -> int:
    """Number of layers below the lowest adapter; 0 where `layers` is null or names all of them. UserError for an
    encoder, whose layers all get adapters."""
    if settings.layers and is_encoder(model.config):
        raise UserError(f"model.lora.layers = {settings.layers}: only for decoders; set it to null")
    return max(0, len(layers_of(model)) - settings.layers) if settings.layers else 0


def lora_targets(model: PreTrainedModel, settings: LoraSettings) -> str | list[str]:
    """PEFT's `target_modules`; raises UserError where a target is the name of no linear module of an adapted layer, and
    for a decoder without adapters."""
    frozen = frozen_layers(model, settings)
    if not settings.enabled:
        if not is_encoder(model.config):
            raise UserError("model.lora.enabled = false: all weights are trained for encoders only; set it to true")
        return DUMMY_TARGET_MODULES
    heads, encoder = head_names(model), is_encoder(model.config)
    if settings.targets == "all-linear" and not frozen and not heads:
        return settings.targets
    modules = layers_of(model)[frozen:].named_modules()
    there = [name for name, module in modules if isinstance(module, torch.nn.Linear)]
    ends = sorted({name.rpartition(".")[2] for name in there})
    if settings.targets == "all-linear":
        # PEFT takes no "all-linear" together with a choice of layers, and would take the heads' too. In full, as an
        # encoder's head has names that its layers have.
        return [f"{layers_path(model)}.{name}" for name in there] if encoder else ends
    targets = sorted({part.strip() for part in settings.targets.split(",")})
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in there)]
    if unknown:
        raise UserError(
            f"model.lora.targets: no linear module of the layers is called {', '.join(map(repr, unknown))}; "
            f"there are {', '.join(ends)}"
        )
    if encoder:
        meant = [name for name in there if any(f".{name}".endswith(f".{target}") for target in targets)]
        return [f"{layers_path(model)}.{name}" for name in meant]
    return targets


def save_adapter(model: PeftModel, folder: Path, base_name: str) -> None:
    """Adapter in PEFT's own layout (loads with PeftModel.from_pretrained), with reproducible bytes."""
    state = {name: value.detach().cpu().contiguous() for name, value in get_peft_model_state_dict(model).items()}
    save_file(dict(sorted(state.items())), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    # PEFT keeps sets, whose order changes from process to process, and the path that the base was loaded from.
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    plain |= {"base_model_name_or_path": base_name, "inference_mode": True}
    text = json.dumps(plain, indent=1, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """A saved adapter on its backbone; raises UserError where any adapter tensor is missing or left over."""
    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    names = ("r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform", "modules_to_save", "task_type")
    known = {key: saved.get(key) for key in names}
    adapted = _without_input_casts(get_peft_model(model, LoraConfig(**known)))
    start_heads(adapted, [], 0.0)
    fill_adapter(adapted, folder)
    return adapted.eval()


def fill_adapter(model: PeftModel, folder: Path) -> None:
    """Puts a saved adapter's tensors into a model with one of the same shape; raises UserError as `load_adapter`."""
    try:
        state = load_file(folder / "adapter_model.safetensors")
    except SafetensorError as error:
        raise UserError(f"{folder}: adapter cannot be read ({error}); delete the folder and run again") from None
    try:
        result = set_peft_model_state_dict(model, state)
    except RuntimeError as error:
        fault = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{folder}: adapter does not fit the backbone ({fault}); delete the folder and run again"
        ) from None
    bad = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise UserError(f"{folder}: adapter has values that are no finite numbers ({bad[0]}); delete it and run again")
    missing = [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    if missing or result.unexpected_keys:
        raise UserError(
            f"{folder}: adapter does not fit the backbone ({len(missing)} tensors missing, "
            f"{len(result.unexpected_keys)} unknown); delete the folder and run again"
        )
