"""A sequence-to-sequence translation model through Transformers: Marian (a model per pair of languages) or NLLB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyticup.augment import read_mapping
from analyticup.augment.translators.base import Translation
from analyticup.augment.translators.outputs import RULES, first_line, judged
from analyticup.cache import batches
from analyticup.corpus.languages import ISO
from analyticup.embed import model_identity
from analyticup.errors import UserError
from analyticup.settings.schema import MachineTranslationSettings

_KEY = "translate.machine"


class MachineTranslator:
    """Keeps one model loaded, bf16 on a GPU and float32 on the CPU; the last one used."""

    selective = False
    uses_source = True

    def __init__(self, settings: MachineTranslationSettings) -> None:
        """Raises UserError for numbers out of range, and for models that are not there or not pinned."""
        for name in ("beams", "batch_size", "max_new_tokens"):
            if getattr(settings, name) < 1:
                raise UserError(f"{_KEY}.{name} is {getattr(settings, name)}; it must be at least 1")
        if not settings.model:
            raise UserError(f"{_KEY}.model is not set; give a local folder, or a hub id with its revision")
        self._settings = settings
        self._codes = read_mapping(settings.codes, f"{_KEY}.codes")
        self._by_pair = has_placeholders(settings.model)
        self._folders = _checked_folders(settings) if self._by_pair else {}
        how = f"beams={settings.beams},max={settings.max_new_tokens},codes={sorted(self._codes.items())},rules={RULES}"
        self.identity = f"marian:{self._weights(settings.model)}:{how}"
        self._loaded: str | None = None
        self._model: Any = None
        self._tokenizer: Any = None

    def _weights(self, model: str) -> str:
        if not self._by_pair:
            return model_identity(model, self._settings.revision, key=_KEY)
        names = {folder: model_identity(str(folder), None, key=_KEY) for folder in set(self._folders.values())}
        return ",".join(f"{source}-{target}={names[at]}" for (source, target), at in sorted(self._folders.items()))

    def translate(
        self, texts: list[str], target_language: str, sources: Sequence[str] | None = None
    ) -> list[Translation]:
        """See `Translator.translate`. A pair without a model of its own is refused.

        Raises UserError without `sources`, and for a language whose code the model does not know.
        """
        if sources is None:
            raise UserError("translate.translator=marian needs the source languages, but none were given")
        results = [Translation(None, refused="no model for its languages")] * len(texts)
        for source in sorted(set(sources)):
            model = self._model_for(source, target_language)
            indexes = [index for index, language in enumerate(sources) if language == source and model]
            # Texts of like length share a batch, which keeps padding small.
            indexes.sort(key=lambda index: (len(texts[index]), texts[index]))
            for batch in batches(indexes, self._settings.batch_size):
                outputs = self._complete([texts[index] for index in batch], str(model), source, target_language)
                for index, output in zip(batch, outputs, strict=True):
                    results[index] = judged(texts[index], first_line(output), target_language)
        return results

    def _model_for(self, source: str, target: str) -> str | None:
        if not self._by_pair:
            name = str(self._settings.model)
            return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
        folder = self._folders.get((source, target))
        return str(folder) if folder else None

    def _complete(self, texts: list[str], model: str, source: str, target: str) -> list[str]:
        import torch

        self._load(model)
        languages = self._languages(source, target)
        # A line break may mean the end of the text to the model.
        lines = [" ".join(text.split()) for text in texts]
        inputs = self._tokenizer(lines, return_tensors="pt", padding=True, truncation=True)
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs.to(self._model.device),
                **languages,
                do_sample=False,
                num_beams=self._settings.beams,
                max_new_tokens=self._settings.max_new_tokens,
            )
        return self._tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _languages(self, source: str, target: str) -> dict[str, int]:
        """Tells a tokenizer of many languages the source; returns what makes the model begin with the target."""
        if not hasattr(self._tokenizer, "src_lang"):
            return {}
        ids = [self._tokenizer.convert_tokens_to_ids(self._code(language)) for language in (source, target)]
        for language, number in zip((source, target), ids, strict=True):
            if number is None or number == self._tokenizer.unk_token_id:
                raise UserError(
                    f"{_KEY}.codes: {self._settings.model} knows no language {self._code(language)!r} "
                    f"(for {language}); give its own code for it"
                )
        self._tokenizer.src_lang = self._code(source)
        return {"forced_bos_token_id": ids[1]}

    def _code(self, language: str) -> str:
        if language not in self._codes:
            raise UserError(f"{_KEY}.codes has no {language!r}; add {language}=CODE, the model's name for it")
        return self._codes[language]

    def _load(self, model: str) -> None:
        if self._loaded == model:
            return
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        on_gpu = torch.cuda.is_available()
        where = {"revision": self._settings.revision, "trust_remote_code": False}
        # The old model goes before the new one comes, so that never two need memory.
        self._loaded = self._model = self._tokenizer = None
        tokenizer = AutoTokenizer.from_pretrained(model, **where)
        dtype = torch.bfloat16 if on_gpu else torch.float32
        loaded = AutoModelForSeq2SeqLM.from_pretrained(model, dtype=dtype, use_safetensors=True, **where)
        self._model, self._tokenizer = loaded.to("cuda" if on_gpu else "cpu").eval(), tokenizer
        self._loaded = model


def has_placeholders(model: str) -> bool:
    return "{source}" in model or "{target}" in model


def pair_folders(model: str) -> dict[tuple[str, str], Path]:
    """(source, target) in competition codes -> the folder that `model` names for them, where there is one."""
    found = {}
    for source in ISO:
        for target in ISO:
            name = model.replace("{source}", ISO[source]).replace("{target}", ISO[target])
            if source != target and Path(name).expanduser().is_dir():
                found[source, target] = Path(name).expanduser()
    return found


def _checked_folders(settings: MachineTranslationSettings) -> dict[tuple[str, str], Path]:
    if settings.revision is not None:
        raise UserError(
            f"{_KEY}.revision: one commit cannot pin a model per pair of languages; download the models, name their "
            f"folders in {_KEY}.model and set the revision to null"
        )
    folders = pair_folders(settings.model or "")
    if not folders:
        raise UserError(
            f"{_KEY}.model: no folder of the form {settings.model} is there; download the models of the pairs into "
            f"such folders"
        )
    return folders
