"""The submission folder of a run: copies of the submission artifact's files, the report's page, and the manifest."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from analyticup.engine.artifacts import Artifact
from analyticup.engine.files import file_sha256, remove_unfinished, replace_together
from analyticup.engine.workers import Runner
from analyticup.errors import UserError
from analyticup.results.manifest import MANIFEST, PAGE, Manifest, make_manifest, published_files
from analyticup.settings.schema import Settings

# By name, as it imports torch.
RUN_PAGE: Final = "analyticup.results.page:run_page"


def publish(folder: Path, settings: Settings, artifacts: Mapping[str, Artifact], runner: Runner) -> Manifest:
    """Makes `submissions/<name>` hold the run's files; unchanged files are not touched, files of an earlier run that
    this one does not have are removed. Returns the manifest.

    The final split (test where it was given, else dev) is at the top, the other one in a folder `dev`. No file takes
    its place before all are written; the manifest, with the sha256 of each, is the last. The page is drawn where stages
    run, which have loaded what that takes.
    """
    sources, manifest = published_files(artifacts), make_manifest(settings, artifacts)
    page = _drawn(folder, manifest) or runner.ask(RUN_PAGE, manifest, settings, dict(artifacts))
    for place in (folder, folder / "dev"):
        remove_unfinished(place)
    earlier = _earlier_files(folder)
    with replace_together() as scratch_for:
        for name, source in sources.items():
            if not _same(source, folder / name):
                shutil.copyfile(source, scratch_for(folder / name))
        for name, text in _texts(manifest, page).items():
            if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode("utf-8"):
                scratch_for(folder / name).write_text(text, encoding="utf-8", newline="\n")
        for name in sorted(set(earlier) - {*sources, PAGE}):
            (folder / name).unlink(missing_ok=True)
    return manifest


def _drawn(folder: Path, manifest: Manifest) -> str:
    """The page in a folder, where it belongs to this very manifest; else "". To draw it again takes seconds of imports
    and would change nothing but what `configs/expected.yaml` or the templates say by now."""
    try:
        page, known = ((folder / name).read_text(encoding="utf-8") for name in (PAGE, MANIFEST))
    except (OSError, ValueError):
        return ""
    return page if _texts(manifest, page)[MANIFEST] == known else ""


def publish_page(folder: Path, manifest: Manifest, page: str) -> None:
    """The page of a finished run made anew, and the manifest that knows it."""
    with replace_together() as scratch_for:
        for name, text in _texts(manifest, page).items():
            scratch_for(folder / name).write_text(text, encoding="utf-8", newline="\n")


def _texts(manifest: Manifest, page: str) -> dict[str, str]:
    """The page and, last, the manifest, by their names."""
    digest = hashlib.sha256(page.encode("utf-8")).hexdigest()
    return {PAGE: page, MANIFEST: replace(manifest, files={**manifest.files, PAGE: digest}).text}


def _earlier_files(folder: Path) -> list[str]:
    """Names that the manifest in a folder lists; none where it was edited, as they are going to be deleted."""
    try:
        manifest, intact = Manifest.load(folder)
    except UserError:
        return []
    return list(manifest.files) if intact else []


def _same(source: Path, target: Path) -> bool:
    return target.is_file() and file_sha256(target) == file_sha256(source)
