"""A sequence-to-sequence translation model through Transformers: Marian (a model per pair of languages) or NLLB."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from analyticup.augmentation.translators.base import Translation
from analyticup.augmentation.translators.generation import GeneratingTranslator
from analyticup.augmentation.translators.outputs import first_line, judged
from analyticup.corpus.languages import ISO
from analyticup.errors import UserError
from analyticup.model.pins import check_pinned, model_identity
from analyticup.settings.schema import Seq2SeqSettings, read_mapping

if TYPE_CHECKING:
    from analyticup.training.source import Machine

_KEY = "translate.seq2seq"


class Seq2SeqTranslator(GeneratingTranslator[Seq2SeqSettings]):
    """Loads a model when its languages are asked for, bf16 on CUDA and float32 elsewhere."""

    name: ClassVar[str] = "seq2seq"
    key: ClassVar[str] = _KEY
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    any_language: ClassVar[bool] = True
    uses_source = True

    def __init__(self, settings: Seq2SeqSettings, machine: Machine) -> None:
        """Raises UserError for models that are not there or not pinned."""
        super().__init__(settings, machine)
        self._codes = _codes(settings)
        self._folders = pair_folders(settings.model) if settings.model and has_placeholders(settings.model) else None

    @classmethod
    def models(cls, settings: Seq2SeqSettings) -> list[str]:
        """The model, or of one per pair of languages those whose folders are there; none of them: the name as it is."""
        name = settings.model or ""
        folders = sorted(set(pair_folders(name).values())) if has_placeholders(name) else []
        return [str(folder) for folder in folders] or [name]

    @classmethod
    def _weights(cls, settings: Seq2SeqSettings) -> str:
        model, revision = settings.model, settings.revision
        if not model:
            raise UserError(f"{_KEY}.model is not set; give a local folder, or a hub id with its revision")
        if not has_placeholders(model):
            check_pinned(model, revision, key=_KEY)
            return model_identity(model, revision)
        folders = checked_folders(model, revision)
        names = {folder: model_identity(str(folder), None) for folder in set(folders.values())}
        return ",".join(f"{source}-{target}={names[at]}" for (source, target), at in sorted(folders.items()))

    @classmethod
    def _how(cls, settings: Seq2SeqSettings) -> str:
        prefix = f",prefix={settings.prefix!r}" if settings.prefix else ""
        return f"codes={sorted(_codes(settings).items())}{prefix}"

    def translate(
        self, texts: list[str], target_language: str, sources: Sequence[str] | None = None
    ) -> list[Translation]:
        """See `Translator.translate`. A pair without a model of its own is refused.

        Raises UserError without `sources`, and for a language whose code the model does not know.
        """
        if sources is None:
            raise UserError("translate.translator=seq2seq needs the source languages, but none were given")
        results = [Translation(None, refused="no model for its languages")] * len(texts)
        for source in sorted(set(sources)):
            model = self._model_for(source, target_language)
            if model is None:
                continue
            indexes = [index for index, language in enumerate(sources) if language == source]
            complete = partial(self._complete, model=model, source=source, target=target_language)
            outputs = self._batches.answers([texts[index] for index in indexes], complete)
            for index, output in zip(indexes, outputs, strict=True):
                results[index] = judged(texts[index], first_line(output), target_language)
        return results

    def _model_for(self, source: str, target: str) -> str | None:
        if self._folders is None:
            return self._settings.model
        folder = self._folders.get((source, target))
        return str(folder) if folder else None

    def _complete(self, texts: list[str], model: str, source: str, target: str) -> list[str]:
        self._load(model)
        languages = self._languages(source, target)
        # A line break may mean the end of the text to the model.
        prefix = self._settings.prefix
        prefix = prefix.replace("{target}", self._code(target)) if "{target}" in prefix else prefix
        lines = [prefix + " ".join(text.split()) for text in texts]
        inputs = self._tokenizer(lines, return_tensors="pt", padding=True, truncation=True)
        return self._decode(self._generate(inputs, **languages))

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


def _codes(settings: Seq2SeqSettings) -> dict[str, str]:
    return read_mapping(settings.codes, f"{_KEY}.codes")


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


def checked_folders(model: str, revision: str | None) -> dict[tuple[str, str], Path]:
    """`pair_folders` of a name with placeholders; UserError where there are none, or a revision is given, too."""
    if revision is not None:
        raise UserError(
            f"{_KEY}.revision: one commit cannot pin a model per pair of languages; download the models, name their "
            f"folders in {_KEY}.model and set the revision to null"
        )
    folders = pair_folders(model)
    if not folders:
        raise UserError(
            f"{_KEY}.model: no folder of the form {model} is there; download the models of the pairs into such folders"
        )
    return folders
