"""What the kit uses of vLLM 0.32.0, with its names and arguments, computed by Transformers on the CPU in float32.

Prompts are answered one by one, without padding: greedily by hand, word by word, and by Transformers' beams.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from analyticup.model.vllm_engine import _ENVIRONMENT


class SamplingParams:
    def __init__(self, *, temperature=1.0, max_tokens=16, detokenize=True, logprob_token_ids=None):
        assert temperature == 0.0, "only greedy answers are repeatable"
        self.max_tokens, self.scored = max_tokens, logprob_token_ids or []


class BeamSearchParams:
    def __init__(self, beam_width, max_tokens):
        self.beam_width, self.max_tokens = beam_width, max_tokens


class LoRARequest:
    def __init__(self, lora_name, lora_int_id, lora_path):
        assert lora_int_id > 0 and lora_path, "as vLLM asks for"
        self.lora_name, self.lora_int_id, self.lora_path = lora_name, lora_int_id, lora_path


class LLM:
    made: ClassVar[list[LLM]] = []
    known: ClassVar[set[str]] = {
        *("dtype", "tensor_parallel_size", "gpu_memory_utilization", "trust_remote_code", "load_format", "seed"),
        *("generation_config", "max_logprobs", "max_model_len", "enable_lora", "max_lora_rank", "hf_overrides"),
        "enable_prefix_caching",
    }

    def __init__(self, model, **told):
        assert set(told) <= self.known
        self.told = {"model": model, **told}
        self.down = []
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: self.down.append(True)))
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.end = AutoTokenizer.from_pretrained(model).eos_token_id
        self.asked = []
        # Adapters are known by number, and loaded once.
        self.loaded = {}
        LLM.made.append(self)

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        self.asked.append(len(prompts))
        if lora_request is not None:
            self._take(lora_request)
        return [self._greedy(one["prompt_token_ids"], sampling_params) for one in prompts]

    def beam_search(self, prompts, params):
        return [self._beams(one["prompt_token_ids"], params) for one in prompts]

    def _take(self, request):
        """The adapter in use, as vLLM takes one: of PEFT's layout, of a rank that there is room for, and no head."""
        name = str(request.lora_int_id)
        if name not in self.loaded:
            config = json.loads((Path(request.lora_path) / "adapter_config.json").read_text())
            if not self.told.get("enable_lora") or config["r"] > self.told.get("max_lora_rank", 16):
                raise ValueError(f"LoRA rank {config['r']} is greater than max_lora_rank")
            if config["modules_to_save"]:
                raise ValueError("vLLM only supports modules_to_save being None")
            if self.loaded:
                self.model.load_adapter(request.lora_path, adapter_name=name)
            else:
                self.model = PeftModel.from_pretrained(self.model, request.lora_path, adapter_name=name)
            self.loaded[name] = request.lora_path
        self.model.set_adapter(name)

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
    """Makes it what `import vllm` finds; forgets the engines of earlier tests, and what they told vLLM by variables."""
    for name in _ENVIRONMENT:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    package, inner, lora = (ModuleType(name) for name in ("vllm", "vllm.sampling_params", "vllm.lora.request"))
    lora.LoRARequest = LoRARequest
    package.LLM, package.SamplingParams, inner.BeamSearchParams = LLM, SamplingParams, BeamSearchParams
    package.__spec__ = ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", inner)
    monkeypatch.setitem(sys.modules, "vllm.lora", ModuleType("vllm.lora"))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)
    LLM.made.clear()
