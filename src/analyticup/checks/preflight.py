"""`./run.sh check`: everything that would block a run, all of it at once. Creates nothing; asks no network but
the W&B host, and that only where tracking is online."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec

from analyticup.augmentation import translates
from analyticup.augmentation.translators import unknown_languages
from analyticup.augmentation.translators.seq2seq import checked_folders, has_placeholders
from analyticup.checks.access import access_findings, tracking_findings
from analyticup.checks.data import data_findings
from analyticup.checks.finding import Finding
from analyticup.checks.machine import (
    SLOW,
    device_findings,
    disk_findings,
    engine_findings,
    look_at_machine,
    memory_findings,
)
from analyticup.checks.models import label_word_findings, model_findings, needed_models, uses_embedder
from analyticup.checks.rows import row_findings, rows_beyond_the_first
from analyticup.checks.timing import time_findings
from analyticup.checks.weights import adapter_findings, weight_findings
from analyticup.errors import UserError
from analyticup.model.backbone import NO_BITSANDBYTES, NOT_MERGED, quantisation_fault
from analyticup.settings.loading import task_settings
from analyticup.settings.paths import resolve
from analyticup.settings.schema import Settings
from analyticup.verdict import Verdict


def findings(settings: Settings) -> list[Finding]:
    """All findings in a fixed order; a check that fails does not stop the others."""
    models = needed_models(settings, resolve(settings.paths.cache))
    machine = look_at_machine(settings.machine)
    checks: list[Callable[[], Iterable[Finding]]] = [
        lambda: data_findings(settings),
        lambda: rows_beyond_the_first(settings),
        lambda: settings_findings(settings),
        lambda: pair_findings(settings),
        lambda: model_findings(models),
        lambda: weight_findings(settings, models),
        lambda: adapter_findings(settings),
        lambda: label_word_findings(settings, models[0]),
        lambda: engine_findings(settings.machine),
        lambda: device_findings(settings, machine),
        lambda: memory_findings(settings, models, machine),
        lambda: time_findings(settings, models[0].parameters, machine.device == "cuda"),
        lambda: disk_findings(settings, models, machine),
        lambda: access_findings(settings),
        lambda: tracking_findings(settings),
    ]
    return list(dict.fromkeys(finding for check in checks for finding in _all_of(check)))


def blockers(settings: Settings, loads_models: bool = True) -> list[Finding]:
    """What would end a run later: rows and headers of weights are read, nothing is hashed, as the stages do that. And
    the notes that cost most where they are not read. Without `loads_models`, only what stages without a model need."""
    checks: list[Callable[[], Iterable[Finding]]] = [
        lambda: access_findings(settings),
        lambda: tracking_findings(settings),
    ]
    if loads_models:
        models, machine = needed_models(settings, resolve(settings.paths.cache)), look_at_machine(settings.machine)
        # A package's model is hashed when it is converted or loaded, which comes first.
        looked_at = [model for model in models if model.kind != "gguf"]
        checks += [
            lambda: settings_findings(settings),
            lambda: model_findings(looked_at),
            lambda: weight_findings(settings, looked_at),
            lambda: adapter_findings(settings),
            lambda: row_findings(settings),
            lambda: device_findings(settings, machine),
            lambda: memory_findings(settings, models, machine),
            lambda: disk_findings(settings, models, machine),
        ]
    found = list(dict.fromkeys(finding for check in checks for finding in _all_of(check)))
    return [one for one in found if one.verdict == Verdict.FAIL or one.text.startswith(SLOW)]


def _all_of(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check())
    except (UserError, OSError, ImportError) as error:
        found.append(Finding(Verdict.FAIL, " ".join(str(error).split())))
    return found


def settings_findings(settings: Settings) -> Iterable[Finding]:
    """Settings that are each fine but not together, or not with what is installed."""
    if settings.model.quantisation == "nf4" and find_spec("bitsandbytes") is None:
        yield Finding(Verdict.FAIL, NO_BITSANDBYTES)
    if fault := quantisation_fault(settings.model):
        yield Finding(Verdict.FAIL, fault)
    for task in settings.tasks:
        own = task_settings(settings, task)
        translator = own.translate.translator if translates(own) else ""
        kind = own.embedder.kind
        if uses_embedder(own) and find_spec(kind.replace("-", "_")) is None:
            yield Finding(
                Verdict.FAIL, f"embedder.kind = {kind}: the package is not installed; run: pip install {kind}"
            )
        if translator == "lexicon" and settings.data.dir is not None:
            yield Finding(
                Verdict.NOTE,
                f"{task}: translate.translator = lexicon knows only the words of the embedded sample corpus and will "
                f"translate little of {settings.data.dir}; mined needs no translator at all",
            )
        if own.predict.merge_adapters and settings.model.quantisation != "none":
            yield Finding(Verdict.FAIL, f"{task}: {NOT_MERGED}")
        if translator and (fault := unknown_languages(own.translate, own.translate.languages or [])):
            yield Finding(Verdict.FAIL, f"{task}: translate.languages: {fault}; leave them out")


def pair_findings(settings: Settings) -> Iterable[Finding]:
    """Where a translator has a model per pair of languages: raises UserError for folders that a run would refuse."""
    for task in settings.tasks:
        own = task_settings(settings, task)
        given = own.translate
        if translates(own) and given.translator == "seq2seq" and has_placeholders(given.seq2seq.model or ""):
            checked_folders(given.seq2seq.model or "", given.seq2seq.revision)
    return ()
