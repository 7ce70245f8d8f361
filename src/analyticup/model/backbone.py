"""Backbones: where the weights come from, how they are loaded, and their LoRA adapters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from analyticup.errors import UserError
from analyticup.model.gguf import converted_gguf, quiet_transformers
from analyticup.model.pins import CONVERTED_DTYPE, checked_kind, loadable, source_kind
from analyticup.model.weights import load_whole
from analyticup.settings.schema import LoraSettings, ModelSettings

NO_BITSANDBYTES = (
    "model.quantisation = nf4: bitsandbytes is not installed; run: pip install bitsandbytes (the version in "
    ".ci/requirements-gpu.txt)"
)


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
        able = torch.cuda.is_bf16_supported()
        return Precision("bfloat16" if able else "float32", f"this GPU {'has' if able else 'lacks'} bf16")
    if device == "cpu" and cpu_has_bf16():
        return Precision("bfloat16", "this CPU has bf16 instructions")
    return Precision("float32", f"no bf16 instructions found on {device}")


def cpu_has_bf16() -> bool:
    capabilities = torch.backends.cpu.get_cpu_capability()
    if "AVX512" in capabilities or "AMX" in capabilities:
        return bool(torch.cpu._is_avx512_bf16_supported())
    return False


def local_folder(settings: ModelSettings, cache: Path, dtype: str = CONVERTED_DTYPE) -> str:
    """Where Transformers finds the weights: a folder, or the hub id; converts a GGUF file to `dtype` on first use."""
    kind = checked_kind(settings)
    if kind == "gguf":
        quiet_transformers()
        return str(converted_gguf(settings.backbone, cache, dtype))
    return loadable(settings.backbone)


def load_tokenizer(settings: ModelSettings, cache: Path) -> PreTrainedTokenizerBase:
    """The whole tokenizer, as Transformers loads it."""
    quiet_transformers()
    if source_kind(settings) == "random":
        return random_tokenizer()
    return AutoTokenizer.from_pretrained(
        local_folder(settings, cache), revision=settings.revision, trust_remote_code=False
    )


def load_backbone(
    settings: ModelSettings, cache: Path, dtype: torch.dtype, converted: bool = False, device: str = "cpu"
) -> PreTrainedModel:
    """The frozen causal language model, in eval mode, on the device (cpu, cuda or mps), to which each weight goes
    straight; UserError as from `load_whole`.

    `converted` says that the folder is a copy of a GGUF file, which was checked when it was made and is hashed before
    each use: its weights are mapped, and not all of them need be read.
    """
    quiet_transformers()
    if settings.quantisation != "none" and source_kind(settings) not in ("local", "hub"):
        raise UserError(
            f"model.quantisation = {settings.quantisation}: only for a local folder or a hub id, and model.backbone = "
            f"{settings.backbone} is neither; set it to none"
        )
    if source_kind(settings) == "random":
        model = random_qwen3(len(load_tokenizer(settings, cache)))
        return model.to(device, dtype).eval()
    place, options = local_folder(settings, cache), {"revision": settings.revision, "dtype": dtype}
    if settings.quantisation == "nf4":
        options["quantization_config"] = _nf4(dtype)
    if device != "cpu" or settings.quantisation != "none":
        # Without it Transformers maps the file, which is what a CPU wants.
        options["device_map"] = {"": device}
    if converted or source_kind(settings) == "gguf":
        return AutoModelForCausalLM.from_pretrained(
            place, trust_remote_code=False, use_safetensors=True, **options
        ).eval()
    model = load_whole(AutoModelForCausalLM, place, f"model.backbone = {place}", use_safetensors=True, **options)
    for part in model.modules():
        # On a CPU with bf16, bitsandbytes (0.50.2) packs weights for inference at the first pass in eval mode, and a
        # training on packed weights has wrong gradients, without a word.
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    return model


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
    """A random two-layer Qwen3, the architecture of the paper's model, for tests of the code path."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config)


def random_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer that knows the two label words as single tokens; no download, no training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in ("Ġyes", "Ġno"):
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary.setdefault(word[:end], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def add_adapter(model: PreTrainedModel, settings: LoraSettings, seed: int) -> PeftModel:
    """A fresh LoRA adapter in float32 on the frozen backbone; its start values depend only on the seed.

    Raises UserError where a target is the name of no linear module.
    """
    frozen = frozen_layers(model, settings)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=lora_targets(model, settings),
        layers_to_transform=list(range(frozen, len(model.get_decoder().layers))) if frozen else None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _without_input_casts(get_peft_model(model, config))


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
                raise UserError("predict.merge_adapters: weights of 4 bits take no adapters; set it to false")
            # In a tuple, or it would count as another parameter of the layer.
            layer.weights_before = (base.weight,)
            base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            layer.merge()


def bare(model: PreTrainedModel) -> PreTrainedModel:
    """Takes off the model what a training or scoring put on it: adapters, merged, fused or neither, and
    recomputation."""
    if (hook := vars(model.get_decoder()).pop("fills_adapters", None)) is not None:
        hook.remove()
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
    """Number of layers below the lowest adapter; 0 where `layers` is null or names all of them."""
    return max(0, len(model.get_decoder().layers) - settings.layers) if settings.layers else 0


def lora_targets(model: PreTrainedModel, settings: LoraSettings) -> str | list[str]:
    """PEFT's `target_modules`; raises UserError where a target is the name of no linear module of an adapted layer."""
    frozen = frozen_layers(model, settings)
    if settings.targets == "all-linear" and not frozen:
        return settings.targets
    modules = model.get_decoder().layers[frozen:].named_modules()
    there = [name for name, module in modules if isinstance(module, torch.nn.Linear)]
    ends = sorted({name.rpartition(".")[2] for name in there})
    if settings.targets == "all-linear":
        # PEFT takes no "all-linear" together with a choice of layers.
        return ends
    targets = sorted({part.strip() for part in settings.targets.split(",")})
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in there)]
    if unknown:
        raise UserError(
            f"model.lora.targets: no linear module of the layers is called {', '.join(map(repr, unknown))}; "
            f"there are {', '.join(ends)}"
        )
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
    names = ("r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform", "task_type")
    known = {key: saved[key] for key in names}
    adapted = _without_input_casts(get_peft_model(model, LoraConfig(**known)))
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
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        raise UserError(
            f"{folder}: adapter does not fit the backbone ({len(missing)} tensors missing, "
            f"{len(result.unexpected_keys)} unknown); delete the folder and run again"
        )
