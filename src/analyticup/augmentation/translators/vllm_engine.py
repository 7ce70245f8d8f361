"""A language model held by vLLM, which schedules many prompts at once on a GPU by itself."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
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


class VllmEngine:
    """Holds the model of a folder in processes of vLLM's, until it is let go. It answers greedily where `beams` is 1.

    `memory` is the share of each of `gpus` GPUs that vLLM takes; `key` is the prefix of the settings, for errors.
    Raises UserError where vLLM does not start.
    """

    def __init__(self, key: str, folder: str, beams: int, *, dtype: str, gpus: int, memory: float) -> None:
        self._beams = beams
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
                # Of each beam it looks at twice as many words as there are beams.
                max_logprobs=max(20, 2 * beams),
            )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{key}.engine = vllm: vLLM does not start with {folder} on {gpus} GPU(s): {said}; its log above may "
                f"say more. Change {key}.memory_share or machine.devices, or set {key}.engine=transformers"
            ) from error
        # Its memory is free for what comes next as soon as this object goes, whatever still refers to vLLM's own.
        weakref.finalize(self, self._llm.llm_engine.engine_core.shutdown)

    def complete(self, prompts: Sequence[list[int]], most: int) -> list[list[int]]:
        """The token ids, `most` of them at most, that the model adds to the token ids of each prompt, in order."""
        from vllm import SamplingParams
        from vllm.sampling_params import BeamSearchParams

        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        if self._beams > 1:
            found = self._llm.beam_search(asked, BeamSearchParams(beam_width=self._beams, max_tokens=most))
            # A beam begins with its prompt.
            return [one.sequences[0].tokens[len(prompt) :] for one, prompt in zip(found, prompts, strict=True)]
        greedy = SamplingParams(temperature=0.0, max_tokens=most, detokenize=False)
        return [list(one.outputs[0].token_ids) for one in self._llm.generate(asked, greedy, use_tqdm=False)]
