"""`check` on the models' files: whether they hold the tensors that config.json asks for. Only headers are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import transformers

from analyticup.augmentation.translators import TRANSLATORS
from analyticup.checks.finding import Finding
from analyticup.checks.models import Model, weight_files
from analyticup.errors import UserError
from analyticup.model.backbone import AUTO_CLASSES, check_head, lora_targets
from analyticup.model.gguf import quiet_transformers
from analyticup.model.pins import RANDOM_MODELS
from analyticup.model.stand_ins import random_model
from analyticup.model.weights import check_files, check_vocabulary
from analyticup.settings.loading import task_settings
from analyticup.settings.schema import Settings
from analyticup.training import models
from analyticup.training.adopt import published_training
from analyticup.training.published import on_hub
from analyticup.verdict import Verdict


def weight_findings(settings: Settings, models: list[Model]) -> Iterable[Finding]:
    """One per model that is on this machine; NaN and infinite weights are seen only when a run loads it."""
    quiet_transformers()
    for model in models:
        # `model_findings` says of an unknown random model.
        if model.name in RANDOM_MODELS or (model.folder is not None and weight_files(model.folder)):
            yield _of(settings, model)


def adapter_findings(settings: Settings) -> Iterable[Finding]:
    """Whether the adapters of `model.adapters` are whole, and of this base model and prompt, where they are on this
    machine."""
    adapters = settings.model.adapters
    if adapters is None or on_hub(adapters):
        return
    for task in settings.tasks:
        own = task_settings(settings, task)
        try:
            for name in models(own):
                published_training(Path(adapters).expanduser(), f"train-{task}-{name}", own)
        except UserError as error:
            yield Finding(Verdict.FAIL, str(error))
        else:
            yield Finding(
                Verdict.OK, f"model.adapters: {task}: {len(models(own))} adapters of this base model in {adapters}"
            )


def _of(settings: Settings, model: Model) -> Finding:
    what = f"{model.key}.{'backbone' if model.use == 'backbone' else 'model'} = {model.name}"
    try:
        if model.kind == "random":
            loaded = random_model(model.name, 8, AUTO_CLASSES[settings.model.head])
            check_head(loaded, settings.model)
            return Finding(Verdict.OK, f"{model.use}: LoRA targets: {', '.join(_checked_targets(settings, loaded))}")
        loaded = check_files(_auto_class(settings, model), str(model.folder), what, local_files_only=True)
        if (tokenizer := _tokenizer(model)) is not None:
            check_vocabulary(loaded, tokenizer, what)
        if model.use == "backbone":
            check_head(loaded, settings.model)
            _checked_targets(settings, loaded)
    except UserError as error:
        return Finding(Verdict.FAIL, str(error))
    tensors = len(loaded.state_dict())
    return Finding(Verdict.OK, f"{model.use}: {model.folder}: {tensors} tensors, as config.json asks for")


def _checked_targets(settings: Settings, loaded: transformers.PreTrainedModel) -> list[str]:
    """The tasks' LoRA targets, each once; raises UserError where the model has them not."""
    own = {task: task_settings(settings, task).model.lora for task in settings.tasks}
    for task, lora in own.items():
        try:
            lora_targets(loaded, lora)
        except UserError as error:
            raise error if lora == settings.model.lora else UserError(f"{task}.{error}") from None
    return list(dict.fromkeys(lora.targets for lora in own.values()))


def _auto_class(settings: Settings, model: Model) -> type:
    """The class of Transformers that a run loads it with."""
    if model.use == "translator":
        (name,) = {kind.auto_class for kind, section in TRANSLATORS.values() if model.key == f"translate.{section}"}
        return getattr(transformers, name)
    return AUTO_CLASSES[settings.model.head] if model.use == "backbone" else transformers.AutoModel


def _tokenizer(model: Model) -> transformers.PreTrainedTokenizerBase | None:
    """None where it is the backbone's and cannot be read, which `label_word_findings` tells."""
    try:
        return transformers.AutoTokenizer.from_pretrained(str(model.folder), local_files_only=True)
    except (OSError, ValueError) as error:
        if model.use == "backbone":
            return None
        fault = (str(error).splitlines() or [""])[0]
        raise UserError(f"{model.use}: {model.folder}: its tokenizer cannot be loaded: {fault}") from None
