"""What the kit uses of vLLM 0.32.0, with its names and arguments, computed by Transformers on the CPU in float32.

Prompts are answered one by one, without padding: greedily by hand, word by word, and by Transformers' beams.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class SamplingParams:
    def __init__(self, *, temperature=1.0, max_tokens=16, detokenize=True, logprob_token_ids=None):
        assert temperature == 0.0, "only greedy answers are repeatable"
        self.max_tokens, self.scored = max_tokens, logprob_token_ids or []


class BeamSearchParams:
    def __init__(self, beam_width, max_tokens):
        self.beam_width, self.max_tokens = beam_width, max_tokens


class LLM:
    made: ClassVar[list[LLM]] = []

    def __init__(
        self,
        model,
        *,
        dtype="auto",
        tensor_parallel_size=1,
        gpu_memory_utilization=0.92,
        trust_remote_code=False,
        load_format="auto",
        generation_config="auto",
        max_logprobs=20,
        max_model_len=None,
        seed=0,
    ):
        self.told = {name: value for name, value in locals().items() if name != "self"}
        self.down = []
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: self.down.append(True)))
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.end = AutoTokenizer.from_pretrained(model).eos_token_id
        self.asked = []
        LLM.made.append(self)

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        self.asked.append(len(prompts))
        return [self._greedy(one["prompt_token_ids"], sampling_params) for one in prompts]

    def beam_search(self, prompts, params):
        return [self._beams(one["prompt_token_ids"], params) for one in prompts]

    def _greedy(self, prompt, params):
        ids, logprobs = list(prompt), []
        with torch.inference_mode():
            while len(ids) < len(prompt) + params.max_tokens and ids[len(prompt) :][-1:] != [self.end]:
                scores = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                ids.append(int(scores.argmax()))
                # The word that was taken is always among them.
                wanted = [ids[-1], *params.scored]
                logprobs.append({word: SimpleNamespace(logprob=float(scores[word])) for word in wanted})
        made = SimpleNamespace(token_ids=tuple(ids[len(prompt) :]), logprobs=logprobs if params.scored else None)
        return SimpleNamespace(outputs=[made])

    def _beams(self, prompt, params):
        options = {"num_beams": params.beam_width, "max_new_tokens": params.max_tokens, "do_sample": False}
        made = self.model.generate(torch.tensor([prompt]), **options, eos_token_id=self.end, pad_token_id=self.end)
        return SimpleNamespace(sequences=[SimpleNamespace(tokens=made[0].tolist())])


def install(monkeypatch):
    """Makes it what `import vllm` finds; forgets the engines of earlier tests."""
    package, inner = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    package.LLM, package.SamplingParams, inner.BeamSearchParams = LLM, SamplingParams, BeamSearchParams
    package.__spec__ = ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", inner)
    LLM.made.clear()
