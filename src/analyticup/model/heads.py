"""Classification heads (`model.head=classifier`): two logits above the transformer, for decoders on the last token of
the prompt, for encoders on the pooled first one.

To the rest of the code the two logits are a vocabulary of two words: a row's hidden state is its logits, the output
matrix is the identity. So losses, margins, thresholds and ensembles are those of the label words; `label_nll` is then
the cross-entropy over the two classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from analyticup.model.pins import RANDOM, random_kind
from analyticup.model.prompt import LabelWords

CLASSES = LabelWords(negative=0, positive=1)


def is_encoder(config: PreTrainedConfig) -> bool:
    """Whether each token of such a model sees all others: architectures that are trained on masked words."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def is_encoder_at(place: str) -> bool:
    """The same of a folder or a random model; False where its config cannot be read, which its loading
    says."""
    if place.startswith(RANDOM):
        return random_kind(place) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    try:
        return is_encoder(AutoConfig.from_pretrained(place, trust_remote_code=False))
    except (OSError, ValueError, KeyError):
        return False


def head_names(model: PreTrainedModel) -> list[str]:
    """Names of a classifier's modules above the transformer; none for a language model."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return []
    parts = ((name, part) for name, part in model.named_children() if name != model.base_model_prefix)
    return [name for name, part in parts if next(part.parameters(), None) is not None]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of the transformer, from the lowest on."""
    return model.base_model.encoder.layer if is_encoder(model.config) else model.get_decoder().layers


def layers_path(model: PreTrainedModel) -> str:
    """The name of an encoder's layers in the model."""
    return f"{model.base_model_prefix}.encoder.layer"


def start_heads(model: nn.Module, names: list[str], spread: float) -> None:
    """Gives what is trained as a whole float32, and new heads their start values: normal with that spread, biases zero.
    Draws from torch's generator."""
    for name, part in model.named_modules():
        if not isinstance(part, ModulesToSaveWrapper):
            continue
        trained = part.modules_to_save["default"].float()
        if name.rpartition(".")[2] in names:
            for layer in trained.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=spread)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)


def encoder_logits(model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
    """The two logits of each row, float32 [rows, 2], of an encoder with its head; `batch` as from `collate`.

    Pads are masked; where the model has token types, those from behind the first separator on are of the second text.
    """
    ids, last = batch["ids"], batch["last"]
    mask = torch.arange(ids.shape[1], device=ids.device) <= last[:, None]
    given = {"input_ids": ids, "attention_mask": mask.long()}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        separators = (ids == model.config.sep_token_id).long()
        given["token_type_ids"] = ((separators.cumsum(1) - separators > 0) & mask).long()
    return model(**given).logits.float()


def without_dropout(model: nn.Module) -> None:
    """Switches off the dropout that an encoder brings along (assumed); that of the adapters stays."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
