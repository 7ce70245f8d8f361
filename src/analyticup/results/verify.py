"""Whether the folder of a finished run still is what its manifest says, and what its settings and inputs give."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analyticup.corpus.sample import write_sample
from analyticup.corpus.tables import load_table
from analyticup.engine.artifacts import Artifact, Unusable, foreign_names, read_artifact
from analyticup.engine.files import file_sha256
from analyticup.engine.graph import identities_by
from analyticup.ensembling.threshold import Choice
from analyticup.errors import UserError
from analyticup.model.pins import CONVERTED_DTYPE, WIDENED_DTYPE, converted_folder, read_conversion, source_kind
from analyticup.pipeline import build
from analyticup.report.figures import REPORT, Report
from analyticup.results.expected import compare, figures_by_name
from analyticup.results.manifest import MANIFEST, PAGE, Manifest, make_manifest
from analyticup.settings.loading import settings_from_dict, task_settings
from analyticup.settings.paths import PROJECT, decisions_folder, decisions_name, resolve
from analyticup.settings.schema import Settings, leaves
from analyticup.submission.score import read_predictions
from analyticup.submission.validate import validate_submission
from analyticup.verdict import Item, Verdict

# Locations on this machine; every other setting is the manifest's.
PLACES = ("paths.artifacts", "paths.cache", "data.dir")


@dataclass(frozen=True)
class _Run:
    """What is verified. `places` are the manifest's settings with this machine's paths; `sound` are the published files
    that have their sha256, `inputs` the input files that have theirs, by name; `stages` each stage's artifact, or why
    there is none."""

    folder: Path
    manifest: Manifest
    settings: Settings
    places: Settings
    sound: set[str]
    stages: Mapping[str, Artifact | Unusable]
    inputs: Mapping[str, Path]


def verify_run(folder: Path, overrides: list[str]) -> Iterator[Item]:
    """Every item of a run's folder in turn; writes nothing but a scratch folder of the system's.

    Raises UserError where there is no readable manifest, and for overrides other than PLACES.
    """
    wrong = [text for text in overrides if text.partition("=")[0] not in PLACES]
    if wrong:
        raise UserError(
            f"argument {wrong[0]!r}: the settings are the manifest's; only {', '.join(PLACES)} can be given"
        )
    manifest, intact = Manifest.load(folder)
    sound: set[str] = set()
    for item in _files(folder, manifest.files):
        if item.verdict == Verdict.OK:
            sound.add(item.what.removeprefix("file "))
        yield item
    faults = _unreadable(manifest, intact, folder / MANIFEST)
    yield _said(f"file {MANIFEST}", faults, "unchanged since it was written")
    if faults:
        return
    yield from _zips(folder, manifest.files, sound)
    where = f"{folder / MANIFEST}: config"
    settings = settings_from_dict(manifest.config, where, [])
    places = settings_from_dict(manifest.config, where, overrides)
    decided = {decisions_name(task): decisions_folder(task_settings(places, task)) for task in places.tasks}
    stages = read_stages(manifest, places)
    with _input_folder(settings, places, stages) as given:
        inputs: dict[str, Path] = {}
        for name, digest in manifest.data.items():
            item = _input(name, digest, decided.get(name) or given)
            if item.verdict == Verdict.OK:
                inputs[name] = given / name
            yield item
        run = _Run(folder, manifest, settings, places, sound, stages, inputs)
        yield from _submissions(run)
    graph = stages_by_settings(manifest, settings)
    yield graph
    yield from _stages(run)
    yield _records(run, graph)
    yield from _model(run)
    yield from _figures(run)


def _said(what: str, faults: list[str], fine: str) -> Item:
    return Item(Verdict.FAIL, what, "; ".join(faults)) if faults else Item(Verdict.OK, what, fine)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _unreadable(manifest: Manifest, intact: bool, path: Path) -> list[str]:
    """Why nothing can be checked against a manifest, whatever its form; [] where it can."""
    rest = "nothing but the files was checked"
    if not intact:
        return [f"it was edited, or written by an earlier version: run again, or fetch it anew; {rest}"]
    try:
        settings_from_dict(manifest.config, str(path), [])
    except UserError as error:
        return [f"this version cannot read its settings ({_line(error)}); {rest}"]
    return []


def _files(folder: Path, files: Mapping[str, str]) -> Iterator[Item]:
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            yield Item(Verdict.FAIL, f"file {name}", "missing; run again, or fetch it anew")
        else:
            faults = [] if file_sha256(path) == digest else ["its sha256 is not the manifest's; run again, or fetch it"]
            yield _said(f"file {name}", faults, "sha256 as in the manifest")
    for name in foreign_names(folder, {MANIFEST, *files}):
        yield Item(Verdict.FAIL, f"file {name}", "the manifest does not know it; move it elsewhere")


def _zips(folder: Path, files: Mapping[str, str], sound: set[str]) -> Iterator[Item]:
    for name in (name for name in files if name.endswith("submit.zip")):
        prefix = name.removesuffix("submit.zip")
        loose = [other for other in files if other.startswith(f"{prefix}submit_")]
        if not sound.issuperset([name, *loose]):
            yield Item(Verdict.SKIPPED, f"zip {name}", "not checked, as it or a file in it is damaged")
            continue
        with zipfile.ZipFile(folder / name) as archive:
            packed = {prefix + member: archive.read(member) for member in archive.namelist()}
        differ = {other for other in packed.keys() | set(loose) if packed.get(other) != _content(folder, other, loose)}
        faults = [f"{', '.join(sorted(differ))} not as next to it"] if differ else []
        yield _said(f"zip {name}", faults, f"holds {', '.join(sorted(packed))} as next to it")


def _content(folder: Path, name: str, known: list[str]) -> bytes | None:
    return (folder / name).read_bytes() if name in known else None


@contextmanager
def _input_folder(settings: Settings, places: Settings, stages: Mapping[str, Artifact | Unusable]) -> Iterator[Path]:
    """Where the input files are: `data.dir`, the sample stage's folder, or the sample corpus written anew."""
    sample = stages.get("sample-all")
    if places.data.dir is not None:
        yield Path(places.data.dir).expanduser()
    elif isinstance(sample, Artifact):
        yield sample.folder
    else:
        with tempfile.TemporaryDirectory() as scratch:
            write_sample(settings.data.sample, settings.seed, Path(scratch))
            yield Path(scratch)


def _input(name: str, digest: str, folder: Path) -> Item:
    path = folder / name
    if not path.is_file():
        return Item(Verdict.SKIPPED, f"input {name}", f"not checked: not in {folder}; say where with data.dir=FOLDER")
    faults = [] if file_sha256(path) == digest else [f"{path} is not the file that the run read"]
    return _said(f"input {name}", faults, "sha256 as in the manifest")


def _submissions(run: _Run) -> Iterator[Item]:
    for name in (name for name in run.manifest.files if Path(name).name.startswith("submit_")):
        prefix, _, file = name.rpartition("submit_")
        task, split = file.removesuffix(".txt"), prefix.rstrip("/") or run.manifest.final_split
        yield _valid(run, name, task, f"{split}_{task}.txt")
        yield _predicted(run, name, task, f"{prefix}scores_{task}.parquet")


def _valid(run: _Run, name: str, task: str, given: str) -> Item:
    what = f"submission {name}"
    if name not in run.sound or given not in run.inputs:
        return Item(Verdict.SKIPPED, what, f"not checked against {given}, as one of the two is missing or damaged")
    problems = validate_submission(task, run.inputs[given], run.folder / name)
    faults = [f"line {problem.line} of the {problem.file}: {problem.what}" for problem in problems[:1]]
    faults += [f"{len(problems)} problems in all"] if len(problems) > 1 else []
    return _said(what, faults, f"valid for {given}")


def _predicted(run: _Run, name: str, task: str, scores: str) -> Item:
    """Whether the predictions are what the scores and the threshold give."""
    what = f"predictions {name}"
    if not run.sound.issuperset([name, scores]) or task not in run.manifest.thresholds:
        return Item(Verdict.SKIPPED, what, f"not checked against {scores}, as one of the two is missing or damaged")
    table, value = load_table(run.folder / scores), run.manifest.thresholds[task]
    choice = Choice(value=value, by_language=run.manifest.thresholds_by_language.get(task, {}))
    method = task_settings(run.settings, task).ensemble.method
    decided = dict(zip(table["id"], choice.decide(table["score"], table["language"], method), strict=True))
    written = read_predictions(run.folder / name)
    ids = decided.keys() | written.keys()
    differ = sum(decided.get(row_id) != written.get(row_id) for row_id in ids)
    stored = int((table["prediction"] != table["id"].map(decided)).sum())
    faults = [f"{differ} of {len(ids)} are not what the scores and the threshold give"] if differ else []
    faults += [f"{stored} in {scores} are not what its scores give"] if stored else []
    return _said(what, faults, f"{len(ids)} rows as the scores and the threshold {value:.4g} give")


def stages_by_settings(manifest: Manifest, settings: Settings) -> Item:
    """Whether the manifest's settings and inputs are those that made its stages: they must give the same identities.

    They are computed with the stages' code versions of then; a version that changed since is named.
    """
    stages = manifest.stages
    try:
        nodes = build(settings, manifest.data)
    except UserError as error:
        return Item(Verdict.SKIPPED, "settings", f"not checked: {_line(error)}")
    now = {node.stage.name: node.stage.version for node in nodes}
    then = now | {node.stage.name: stages[node.title].code for node in nodes if node.title in stages}
    wanted = identities_by(nodes, then)
    strange = sorted(wanted.keys() ^ stages.keys())
    other = [title for title in wanted if title in stages and stages[title].identity != wanted[title]]
    faults = [f"the settings and the manifest do not have the same stages: {', '.join(strange)}"] if strange else []
    faults += (
        [f"the settings and inputs are not those that made {other[0]} ({len(other)} such stages)"] if other else []
    )
    if faults and (new := _new_settings(manifest.config)):
        return Item(Verdict.SKIPPED, "settings", f"not checked: the run's version had no {', '.join(new)}")
    changed = [f"{stage} {code}, now {now[stage]}" for stage, code in then.items() if code != now[stage]]
    if changed and not faults:
        return Item(
            Verdict.NEAR,
            "settings",
            f"they made these stages, by earlier versions of their code ({'; '.join(changed)})",
        )
    return _said("settings", faults, f"they and the inputs give the identities of all {len(wanted)} stages")


def _new_settings(config: Mapping[str, Any]) -> list[str]:
    """The settings of this version that a manifest's config lacks: identities from before them cannot be computed."""

    def has(tree: Any, path: list[str]) -> bool:
        return not path or (isinstance(tree, Mapping) and path[0] in tree and has(tree[path[0]], path[1:]))

    return [key for key in leaves() if not has(config, key.split("."))]


def read_stages(manifest: Manifest, places: Settings) -> dict[str, Artifact | Unusable]:
    """Title -> each stage's artifact in `paths.artifacts`, or why there is none."""
    artifacts = resolve(places.paths.artifacts)
    return {title: read_artifact(artifacts / entry.folder, entry.identity) for title, entry in manifest.stages.items()}


def _stages(run: _Run) -> Iterator[Item]:
    """Each stage's folder: its files, its record, and that it was made from the other stages' folders as they are."""
    entries, artifacts = run.manifest.stages, resolve(run.places.paths.artifacts)
    if not any((artifacts / entry.folder).is_dir() for entry in entries.values()):
        yield Item(
            Verdict.SKIPPED,
            "stages",
            f"not checked: none of the {len(entries)} folders is in {artifacts}; say where with paths.artifacts=FOLDER",
        )
        return
    digests = {entry.folder: entry.digest for entry in entries.values()}
    for title, entry in entries.items():
        stage, place = run.stages[title], artifacts / entry.folder
        if isinstance(stage, Unusable):
            fault = stage.reason if place.is_dir() else "the folder is gone"
            yield Item(Verdict.FAIL, f"stage {title}", f"{fault}; the same run makes it again ({place})")
            continue
        record = stage.record
        faults = [] if record.digest == entry.digest else ["its files are not those of this run"]
        faults += [] if record.counts == entry.counts else ["its counts are not the manifest's"]
        made_from = {name: digests.get(record.input_folders[name]) for name in record.inputs}
        foreign = [name for name, digest in record.inputs.items() if made_from[name] != digest]
        faults += [f"it was made from another {', '.join(foreign)}"] if foreign else []
        yield _said(f"stage {title}", faults, f"{len(record.files)} files and the record as they were written")


def _records(run: _Run, graph: Item) -> Item:
    """The manifest against the one that the records give now; times and machine may be those of a repair."""
    what = "manifest and stages"
    stages = {title: stage for title, stage in run.stages.items() if isinstance(stage, Artifact)}
    if graph.verdict == Verdict.FAIL or len(stages) < len(run.stages):
        return Item(Verdict.SKIPPED, what, "not checked, as the settings do not fit, or a stage's folder is unusable")
    made, found = json.loads(json.dumps(asdict(make_manifest(run.settings, stages)))), asdict(run.manifest)
    found["files"] = {name: digest for name, digest in found["files"].items() if name != PAGE}
    names = sorted(made.keys() - {"environment", "seconds", "stages"})
    differ = [name for name in names if made[name] != found[name]]
    faults = [f"{', '.join(differ)} not as the stages' folders say"] if differ else []
    return _said(what, faults, "the published files, thresholds and figures are the stages'")


def _model(run: _Run) -> Iterator[Item]:
    cache, backbone = resolve(run.places.paths.cache), run.settings.model.backbone
    if source_kind(run.settings.model) != "gguf":
        return
    try:
        folders = {dtype: converted_folder(backbone, cache, dtype) for dtype in (CONVERTED_DTYPE, WIDENED_DTYPE)}
    except UserError as error:
        yield Item(Verdict.SKIPPED, "converted model", f"not checked: {_line(error)}")
        return
    if not any(folder.is_dir() for folder in folders.values()):
        yield Item(Verdict.SKIPPED, "converted model", f"none in {cache}; made when a stage needs it")
    for dtype, folder in folders.items():
        if folder.is_dir():
            read = read_conversion(backbone, cache, dtype)
            again = f"the next run that loads it converts it again ({folder})"
            faults = [f"{read.reason}; {again}"] if isinstance(read, Unusable) else []
            yield _said(f"converted model in {dtype}", faults, "as it was converted")


def _figures(run: _Run) -> Iterator[Item]:
    report = run.stages.get("report-all")
    if not isinstance(report, Artifact):
        yield Item(
            Verdict.SKIPPED, "expected figures", "not compared: the folder of the stage report-all is gone or damaged"
        )
        return
    try:
        figures = figures_by_name(Report.load(report.file(REPORT)))
    except (ValueError, RecursionError) as error:
        yield Item(Verdict.SKIPPED, "expected figures", f"not compared: {report.file(REPORT)}: {_line(error)}")
        return
    yield from compare(run.settings.name, run.settings, figures, run.manifest.data, PROJECT / "configs")
