"""A finished run read back: its manifest, settings, stages and report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analyticup.engine.artifacts import Artifact, Unusable
from analyticup.errors import UserError
from analyticup.pipeline import build
from analyticup.report.figures import REPORT, Report
from analyticup.results.manifest import MANIFEST, Manifest, no_manifest
from analyticup.results.verify import read_stages
from analyticup.settings.loading import settings_from_dict
from analyticup.settings.paths import resolve
from analyticup.settings.schema import Settings


@dataclass(frozen=True)
class Finished:
    """`artifacts` by title, in the order of the pipeline."""

    folder: Path
    manifest: Manifest
    settings: Settings
    artifacts: dict[str, Artifact]
    figures: Report


def read_finished(folder: Path) -> Finished:
    """The run whose submissions folder this is; UserError where it is none, was edited, or where stages are gone."""
    manifest, intact = Manifest.load(folder)
    try:
        artifacts = resolve(manifest.config["paths"]["artifacts"])
        path = artifacts / manifest.stages["report-all"].folder / REPORT
    except (KeyError, TypeError):
        raise no_manifest(folder) from None
    if not path.is_file():
        raise UserError(f"{path}: no such file; the run's artifacts are gone, run it again (report.html remains)")
    try:
        figures = Report.load(path)
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not a report; delete its folder and run again") from None
    if not intact:
        raise UserError(f"{folder / MANIFEST}: it was edited, or written by an earlier version; run again")
    settings = settings_from_dict(manifest.config, f"{folder / MANIFEST}: config", [])
    return Finished(folder, manifest, settings, _stages(manifest, settings), figures)


def _stages(manifest: Manifest, settings: Settings) -> dict[str, Artifact]:
    """The manifest lists stages by name; a stage that this version does not know comes last."""
    order = [node.title for node in build(settings, manifest.data)]
    found: dict[str, Artifact] = {}
    for title, stage in read_stages(manifest, settings).items():
        if isinstance(stage, Unusable):
            folder = resolve(settings.paths.artifacts) / manifest.stages[title].folder
            raise UserError(f"{folder}: {stage.reason}; run again, which makes it anew")
        found[title] = stage
    return {title: found[title] for title in sorted(found, key=[*order, *found].index)}
