"""A model is what its files say, whole: what is missing, left over, misshapen or no number is refused, not made up."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from analyticup.errors import UserError, machine_trouble

# Models are published with heads, and with or without a pooler, that embedders and classifiers do not use; a classifier
# gets a new head.
_BESIDE_AN_ENCODER: Final = re.compile(
    r"(^|\.)(pooler|cls|classifier|score|lm_head|(lm_|mask_)?predictions)\.|(position_ids|\.inv_freq)$"
)
_SHOWN: Final = 4


def load_whole(auto_class: Any, place: str, what: str, **options: Any) -> Any:
    """`auto_class.from_pretrained(place, **options)`, in eval mode, where the files hold exactly the model's tensors.

    `what` names the model in errors. Raises UserError where tensors are missing, left over, of another shape or not
    finite, or where the files cannot be read as a model.
    """
    model = _loaded(auto_class, place, what, **options)
    check_finite(model, what)
    return model.eval()


def check_files(auto_class: Any, place: str, what: str, **options: Any) -> Any:
    """As `load_whole`, by the headers of the files alone: no weight is read. The model is without values, too."""
    return _loaded(auto_class, place, what, device_map="meta", **options)


def check_finite(model: torch.nn.Module, what: str) -> None:
    """Raises UserError where a weight is NaN or infinite."""
    bad = [name for name, value in model.named_parameters() if not value.is_meta and not _is_finite(value)]
    if bad:
        raise UserError(f"{what}: not all weights are finite numbers: {_named(bad)}; {_GET_AGAIN}")


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Raises UserError where the model has no embedding for a word that the tokenizer may give.

    Added tokens beyond the embeddings are common (Gemma's for images): no text becomes one of them.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    added = set(tokenizer.get_added_vocab().values()) - {tokenizer.bos_token_id}
    highest = max((number for number in tokenizer.get_vocab().values() if number not in added), default=-1)
    if highest >= rows:
        raise UserError(
            f"{what}: its tokenizer has words up to number {highest:,}, but there are only {rows:,} embeddings; "
            f"tokenizer and weights are not of one model"
        )


_GET_AGAIN: Final = "the files are damaged or not those of this model: get them again"


def _loaded(auto_class: Any, place: str, what: str, **options: Any) -> Any:
    if Path(place, "adapter_config.json").is_file():
        # Transformers would load the base model that it names, from anywhere, and put the adapter onto it.
        raise UserError(
            f"{what}: there is an adapter (adapter_config.json); merge it into its base model and give that, or move "
            f"it out of the folder"
        )
    try:
        model, report = auto_class.from_pretrained(
            place, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
        )
    except SafetensorError as error:
        raise UserError(f"{what}: its *.safetensors cannot be read ({error}); {_GET_AGAIN}") from None
    except Exception as error:
        # Anything may be in a folder that calls itself a model.
        if isinstance(error, UserError) or machine_trouble(error):
            raise
        fault = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{what} cannot be loaded ({type(error).__name__}: {fault}); {_GET_AGAIN}") from error
    _refuse(report, what, headless=auto_class in (AutoModel, AutoModelForSequenceClassification))
    return model


def _refuse(report: dict[str, Any], what: str, headless: bool) -> None:
    beside = _BESIDE_AN_ENCODER.search if headless else lambda name: None
    faults = {
        "missing": [name for name in report["missing_keys"] if not beside(name)],
        "not part of the model": [name for name in report["unexpected_keys"] if not beside(name)],
        "of another shape than in config.json": [name for name, *_ in report["mismatched_keys"]],
        "not to be read": report["error_msgs"],
    }
    said = [f"{len(names)} {fault}: {_named(names)}" for fault, names in faults.items() if names]
    if said:
        raise UserError(f"{what}: tensors do not fit config.json: {'; '.join(said)}; {_GET_AGAIN}")


def _named(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


def _is_finite(value: torch.Tensor) -> bool:
    # A sum is NaN or infinite where a part is, and takes no memory; only very large values need a look at each.
    return math.isfinite(value.detach().sum(dtype=torch.float32)) or bool(torch.isfinite(value).all())
