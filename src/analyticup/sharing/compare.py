"""A regenerated submission against the one that a bundle was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from analyticup.corpus.tables import load_table
from analyticup.engine.artifacts import Artifact
from analyticup.engine.files import file_sha256
from analyticup.ensembling.threshold import DECISION, Decision
from analyticup.sharing.layout import Bundle
from analyticup.verdict import Item, Verdict


@dataclass(frozen=True)
class Tolerance:
    """How far a depth may be off and still be called near: the share of predictions that differ, the mean difference
    of the scores (0..1), and the difference of the out-of-fold F1 in its standard errors; and why that far."""

    predictions: float
    scores: float
    standard_errors: float
    reason: str


# By depth. Measured: src/analyticup/sharing/README.md.
TOLERANCES: Final = {
    "decide": Tolerance(0, 1e-9, 0, "the same numbers are combined in double precision"),
    "predict": Tolerance(0.03, 0.01, 0, "another processor rounds the same weights differently"),
    "train": Tolerance(0.3, 0.2, 3, "where numbers round differently a training takes another path"),
}


def compare(
    bundle: Bundle, depth: str, made: Mapping[str, Path], decisions: Mapping[str, Artifact], changed: list[str]
) -> Iterator[Item]:
    """An item for each submission file, then for what each task's threshold came to.

    `made` are the regenerated files by their published name, `decisions` the threshold stages by task. Where settings
    were `changed`, differences are noted and not judged.
    """
    for name in (name for name in bundle.manifest.files if Path(name).name.startswith("submit_")):
        yield _told(_submission(bundle, depth, name, made), changed)
    for name in (name for name in bundle.manifest.files if name.endswith("submit.zip")):
        if made[name].is_file() and file_sha256(made[name]) == bundle.manifest.files[name]:
            yield Item(Verdict.OK, name, "identical bytes")
    for task, artifact in decisions.items():
        yield _told(_decision(bundle, depth, task, Decision.load(artifact.file(DECISION))), changed)


def _told(item: Item, changed: list[str]) -> Item:
    if item.verdict == Verdict.OK or not changed:
        return item
    return Item(Verdict.NOTE, item.what, f"{item.text.partition('; allowed')[0]}; {', '.join(changed)} changed")


def _submission(bundle: Bundle, depth: str, name: str, made: Mapping[str, Path]) -> Item:
    if file_sha256(made[name]) == bundle.manifest.files[name]:
        return Item(Verdict.OK, name, "identical bytes")
    scores = name.replace("submit_", "scores_").replace(".txt", ".parquet")
    ours, theirs = load_table(made[scores]), load_table(bundle.published(scores))
    if ours["id"].tolist() != theirs["id"].tolist():
        return Item(Verdict.FAIL, name, "its rows are not those of the bundle's scores")
    apart = np.abs(ours["score"].to_numpy(dtype=float) - theirs["score"].to_numpy(dtype=float))
    differ = int((ours["prediction"] != theirs["prediction"]).sum())
    allowed = TOLERANCES[depth]
    near = differ <= allowed.predictions * len(ours) and float(apart.mean()) <= allowed.scores
    text = (
        f"{differ} of {len(ours)} predictions differ; scores are {apart.mean():.2g} apart on average, "
        f"{apart.max():.2g} at most; allowed: {allowed.predictions:.0%} and {allowed.scores:g} on average, as "
        f"{allowed.reason}"
    )
    return Item(Verdict.NEAR if near else Verdict.FAIL, name, text)


def _decision(bundle: Bundle, depth: str, task: str, made: Decision) -> Item:
    manifest = bundle.manifest
    theirs = manifest.out_of_fold[task]
    by_language = manifest.thresholds_by_language.get(task, {})
    what = f"threshold {task}"
    text = f"{made.value:g}, out-of-fold F1 {made.out_of_fold['f1']:.4f}"
    same = (made.value, made.by_language, made.out_of_fold) == (manifest.thresholds[task], by_language, theirs)
    if same:
        return Item(Verdict.OK, what, f"{text}, as in the bundle")
    said = f"{text}; the bundle says {manifest.thresholds[task]:g} and {theirs['f1']:.4f}"
    if (made.value, theirs["f1"]) == (manifest.thresholds[task], made.out_of_fold["f1"]):
        said += "; another figure of the out-of-fold rows, or a language's threshold, is not the same"
    allowed = TOLERANCES[depth]
    apart = abs(made.out_of_fold["f1"] - theirs["f1"])
    near = bool(allowed.standard_errors) and apart <= allowed.standard_errors * theirs["f1_se"]
    errors = f"{allowed.standard_errors:g} standard errors of F1" if allowed.standard_errors else "none"
    return Item(Verdict.NEAR if near else Verdict.FAIL, what, f"{said}; allowed: {errors}, as {allowed.reason}")
