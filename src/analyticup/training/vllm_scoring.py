"""Scoring of dev and test through vLLM (`predict.engine=vllm`): the weights once, each fold's adapter as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from analyticup.engine.cache import batches
from analyticup.engine.progress import track
from analyticup.errors import UserError
from analyticup.model.pins import source_kind
from analyticup.model.prompt import LabelWords
from analyticup.model.vllm_engine import RANKS, VllmEngine, vllm_fault
from analyticup.settings.schema import Settings

# vLLM makes its own batches; so many prompts at once let the progress be seen (assumed).
_PROMPTS: Final = 4096


def scoring_fault(own: Settings, dtype: str, device: str) -> str:
    """Why the engine of `predict` cannot score with a task's settings, weights of that dtype, on cpu, cuda or mps; ""
    where it may."""
    if own.predict.engine != "vllm":
        return ""
    model, rank = own.model, own.model.lora.r
    not_done = {
        "it scores by label words only, and model.head = classifier": model.head == "classifier",
        f"only for a local folder or a hub id, and model.backbone = {model.backbone} is neither": (
            source_kind(model) not in ("local", "hub")
        ),
        f"not with model.quantisation = {model.quantisation}": model.quantisation != "none",
        "not with predict.merge_adapters, as it takes adapters as they are": own.predict.merge_adapters,
        "not with predict.compile_min_rows, as it compiles by itself": own.predict.compile_min_rows is not None,
        f"it takes adapters of rank {RANKS[-1]} at most, and model.lora.r = {rank}": rank > RANKS[-1],
        f"it computes adapters in bfloat16, and the weights are {dtype} here": dtype != "bfloat16",
    }
    if found := [text for text, is_so in not_done.items() if is_so]:
        return f"predict.engine = vllm: {found[0]}; set predict.engine=transformers"
    return vllm_fault("predict.engine", device)


@dataclass(frozen=True)
class VllmAdapter:
    """The adapter in `folder`, in PEFT's layout, on the backbone that an engine holds."""

    engine: VllmEngine
    folder: Path

    def margins(self, prompts: Sequence[Sequence[int]], words: LabelWords, description: str) -> np.ndarray:
        """Logit margins of the label words after each prompt, float32 [prompts]; UserError where one is not finite."""
        found = np.empty(len(prompts), dtype=np.float32)
        # What begins alike comes together.
        order = sorted(range(len(prompts)), key=prompts.__getitem__)
        with track(len(order), f"{description}: rows scored") as progress:
            for batch in batches(order, _PROMPTS):
                asked, both = [prompts[at] for at in batch], (words.positive, words.negative)
                yes, no = np.array(self.engine.log_probabilities(asked, both, self.folder)).T
                # Both have the same normaliser.
                found[batch] = yes - no
                progress.advance(len(batch))
        if broken := int((~np.isfinite(found)).sum()):
            raise UserError(
                f"{description}: {broken} of {len(found)} scores by vLLM are not finite; set "
                f"predict.engine=transformers, or train again with a lower train.lr"
            )
        return found
