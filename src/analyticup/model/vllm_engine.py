"""A language model held by vLLM, which schedules many prompts at once on a GPU by itself."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from analyticup.errors import UserError
from analyticup.settings.paths import PROJECT

# vLLM would send usage statistics, and write its log between the lines on stdout. This process has threads and may use
# CUDA already, so its processes are not forked. What the user has set stays.
_ENVIRONMENT: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
# It has room for adapters of one of these ranks, or lower.
RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def vllm_fault(key: str, device: str) -> str:
    """Why vLLM cannot be used on cpu, cuda or mps, or ""; `key` is the setting that asks for it. It is not imported."""
    if device != "cuda":
        return f"{key} = vllm: it needs a GPU with CUDA, and models run on {device} here; set it to transformers"
    if find_spec("vllm") is None:
        lock = PROJECT / ".ci" / "requirements-gpu.lock"
        how = f"{sys.executable} -m pip install --no-deps --require-hashes -r {lock}"
        return f"{key} = vllm: the package vllm is not installed; run: {how}; or set it to transformers"
    return ""


def import_vllm() -> Any:
    """The module vllm, with what it must be told before it is imported; raises ImportError where there is none."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return import_module("vllm")


def for_answers(beams: int) -> dict[str, Any]:
    """What vLLM is told besides, to answer with so many beams."""
    # Of each beam it looks at twice as many words as there are beams.
    return {"max_logprobs": max(20, 2 * beams)}


def for_scores(rank: int) -> dict[str, Any]:
    """What vLLM is told besides, to score under adapters of this rank, of which one is in use at a time."""
    return {
        "enable_lora": True,
        "max_lora_rank": next(known for known in RANKS if known >= rank),
        # Else logits are rounded to bf16, where a logit of 20 and the next one are an eighth apart.
        "hf_overrides": {"head_dtype": "float32"},
        # What several prompts begin with is computed once, in blocks of 16 tokens; adapters share no block.
        "enable_prefix_caching": True,
        # As long as memory allows: no prompt comes near the longest text that a model may read.
        "max_model_len": -1,
    }


class VllmEngine:
    """Holds the model of a folder in processes of vLLM's, until it is let go.

    `memory` is the share of each of `gpus` GPUs that vLLM takes; `key` is the prefix of the settings, for errors;
    `options` are from `for_answers` or `for_scores`. Raises UserError where vLLM does not start, or breaks off.
    """

    def __init__(self, key: str, folder: str, *, dtype: str, gpus: int, memory: float, **options: Any) -> None:
        self._key = key
        self._adapters: dict[Path, Any] = {}
        try:
            self._llm: Any = import_vllm().LLM(
                model=folder,
                dtype=dtype,
                tensor_parallel_size=gpus,
                gpu_memory_utilization=memory,
                trust_remote_code=False,
                load_format="safetensors",
                # Else a file of the model's may add ends of its own.
                generation_config="vllm",
                **options,
            )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{key}.engine = vllm: vLLM does not start with {folder} on {gpus} GPU(s): {_said(error)}; its log "
                f"above may say more. Change {key}.memory_share or machine.devices, or set {key}.engine=transformers"
            ) from error
        # Its memory is free for what comes next as soon as this is called, or this object goes, whatever still refers
        # to vLLM's own.
        self.close = weakref.finalize(self, self._llm.llm_engine.engine_core.shutdown)

    def complete(self, prompts: Sequence[Sequence[int]], most: int, beams: int = 1) -> list[list[int]]:
        """The token ids, `most` of them at most, that the model adds to the token ids of each prompt, in order."""
        from vllm import SamplingParams
        from vllm.sampling_params import BeamSearchParams

        with self._telling():
            if beams > 1:
                found = self._llm.beam_search(_asked(prompts), BeamSearchParams(beam_width=beams, max_tokens=most))
                # A beam begins with its prompt.
                return [one.sequences[0].tokens[len(prompt) :] for one, prompt in zip(found, prompts, strict=True)]
            greedy = SamplingParams(temperature=0.0, max_tokens=most, detokenize=False)
            found = self._llm.generate(_asked(prompts), greedy, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in found]

    def log_probabilities(
        self, prompts: Sequence[Sequence[int]], words: Sequence[int], adapter: Path
    ) -> list[list[float]]:
        """Of each word after each prompt, [prompts, words], over the whole vocabulary, under an adapter in PEFT's
        layout."""
        from vllm import SamplingParams

        # `logprobs` would give the likeliest words, before any are ruled out, and not these.
        one_word = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, logprob_token_ids=list(words))
        with self._telling():
            found = self._llm.generate(
                _asked(prompts), one_word, use_tqdm=False, lora_request=self._adapter(adapter.resolve())
            )
        return [[one.outputs[0].logprobs[0][word].logprob for word in words] for one in found]

    def _adapter(self, folder: Path) -> Any:
        """vLLM tells adapters apart by number, and what it keeps of their prompts by name and folder."""
        from vllm.lora.request import LoRARequest

        if folder not in self._adapters:
            self._adapters[folder] = LoRARequest(str(folder), len(self._adapters) + 1, str(folder))
        return self._adapters[folder]

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        # Its errors have several bases; those of its processes are all one, and their log says what happened.
        try:
            yield
        except Exception as error:
            raise UserError(
                f"{self._key}.engine = vllm: vLLM breaks off: {_said(error)}; its log above may say more. Run again, "
                f"with a lower {self._key}.memory_share, or set {self._key}.engine=transformers"
            ) from error


def _asked(prompts: Sequence[Sequence[int]]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": list(prompt)} for prompt in prompts]


def _said(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
