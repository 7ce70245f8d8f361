"""The page of a run: what its report, records and manifest say, with the texts of a few rows where these may be
shown."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analyticup.checks.machine import loaded_dtype, look_at_machine
from analyticup.checks.memory import cpu_process_bytes
from analyticup.checks.models import DTYPE_BYTES, needed_models
from analyticup.corpus.rows import SPLITS, load_rows
from analyticup.corpus.tables import training_rows
from analyticup.engine.artifacts import Artifact, StageRecord
from analyticup.report.charts import StageCost
from analyticup.report.figures import REPORT, Report
from analyticup.report.page import Facts, Figure, Grid, to_html
from analyticup.results.expected import compare, expectations, figures_by_name
from analyticup.results.manifest import PAGE, Manifest
from analyticup.settings.loading import load_settings
from analyticup.settings.paths import PROJECT, resolve
from analyticup.settings.schema import TASKS, Section, Settings, split_task

SAMPLE_CAVEAT = "The sample corpus shows that the kit works, not how good the method is."
SHIPPED = ("sample.yaml", "small.yaml", "paper.yaml")
# What YAML takes for a text and for nothing else.
_BARE = re.compile(r"[A-Za-z_./][A-Za-z0-9_./:-]*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "."}
# The stages that hold the backbone, whose memory `check` estimates.
_WITH_BACKBONE = ("train", "filter_model", "judge", "predict")


def run_page(manifest: Manifest, settings: Settings, artifacts: Mapping[str, Artifact]) -> str:
    """The HTML of a finished run; the same run, settings and machine give the same bytes."""
    figures, configs = Report.load(artifacts["report-all"].file(REPORT)), PROJECT / "configs"
    given = (manifest.name, settings, manifest.data, configs)
    expected = expectations(*given)
    texts, no_texts = _texts(figures, settings, artifacts)
    facts = Facts(
        name=manifest.name,
        command=command_line(settings),
        costs=_costs(settings, artifacts),
        verdicts=compare(manifest.name, settings, figures_by_name(figures), manifest.data, configs),
        expected={} if isinstance(expected, str) else expected,
        texts=texts,
        no_texts=no_texts,
        caveat="" if settings.data.dir else SAMPLE_CAVEAT,
        provenance=list(_provenance(manifest, settings, artifacts)),
    )
    return to_html(figures, facts)


# ---------------------------------------------------------------- settings as a command


def command_line(settings: Settings) -> str:
    """A command that gives these settings: the shipped config that they differ least from, and what differs."""
    found = []
    for config in SHIPPED:
        changed = _changes(settings, load_settings(PROJECT / "configs" / config, []))
        found.append(["./run.sh", "run", "--config", f"configs/{config}", *changed])
    return shlex.join(min(found, key=len))


def changed_settings(settings: Settings) -> dict[str, Any]:
    """Full key -> value of all settings that are not at their default."""
    own, usual = _flat(settings), _flat(Settings())
    return {key: value for key, value in own.items() if key not in usual or usual[key] != value}


def _changes(settings: Settings, base: Settings) -> list[str]:
    """`key=value` for what differs."""
    own, usual = _flat(settings), _flat(base)
    # What only the base says of a task alone is as for both.
    own |= {key: own[split_task(key)[1]] for key in usual.keys() - own.keys()}
    return [f"{key}={value_text(value)}" for key, value in own.items() if key not in usual or usual[key] != value]


def _flat(section: Section, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section:
        if isinstance(value, Section):
            found |= _flat(value, f"{prefix}{name}.")
        elif name in TASKS:
            # A manifest's are sorted.
            found |= {f"{name}.{key}": value[key] for key in sorted(value)}
        else:
            found[f"{prefix}{name}"] = value
    return found


def value_text(value: Any) -> str:
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------- rows, costs


def _texts(
    figures: Report, settings: Settings, artifacts: Mapping[str, Artifact]
) -> tuple[dict[tuple[str, str], tuple[str, str]], str]:
    """Query and target of the rows that the report names, by task and row id; and why there are none."""
    allowed = settings.report.rows
    if allowed is None:
        allowed = settings.data.dir is None
    if not allowed:
        return {}, "Texts are left out, as report.rows does not allow them."
    found = {}
    for task in settings.tasks:
        named = [example["row_id"] for example in figures.suspects.get(task, [])]
        named += [
            row["row_id"] for title, own in figures.pictures.items() if title.endswith(task) for row in own["errors"]
        ]
        found |= {(task, row_id): texts for row_id, texts in _texts_of(set(named), task, artifacts)}
    return found, ""


def _texts_of(wanted: set[str], task: str, artifacts: Mapping[str, Artifact]) -> Iterator[tuple[str, tuple[str, str]]]:
    ingested = artifacts[f"ingest-{task}"]
    tables = [load_rows(path) for split in SPLITS if (path := ingested.file(f"{split}.parquet")).is_file()]
    made = [f"{stage}-{task}" for stage in ("translate", "negatives")]
    tables += [training_rows(artifacts[name]) for name in made if name in artifacts]
    for table in tables:
        for row in table[table["row_id"].isin(wanted)].itertuples():
            yield row.row_id, (row.query, row.target)


def _costs(settings: Settings, artifacts: Mapping[str, Artifact]) -> list[StageCost]:
    """Of each stage, in the order given, what it took and what `check` estimates for its process; that only on CPUs."""
    machine = look_at_machine(settings.machine)
    backbone = needed_models(settings, resolve(settings.paths.cache))[0]
    estimates: dict[str, float] = {}
    if machine.device == "cpu" and backbone.parameters:
        size = DTYPE_BYTES[loaded_dtype(backbone, settings, machine.device)]
        estimates = {task: cpu_process_bytes(settings, task, backbone, size) for task in settings.tasks}
    costs = []
    starts = _starts([artifact.record for artifact in artifacts.values()])
    for (title, artifact), start in zip(artifacts.items(), starts, strict=True):
        record = artifact.record
        estimate = estimates.get(record.task) if record.stage in _WITH_BACKBONE else None
        costs.append(StageCost(title, record.seconds, record.memory, estimate, start))
    return costs


def _starts(records: Sequence[StageRecord]) -> list[float]:
    """When each stage started, in seconds from the first start; time in which none ran, as between two commands, is
    left out. One after another where a record of an earlier version does not say when."""
    if not all(record.started for record in records):
        return [sum(record.seconds for record in records[:place]) for place in range(len(records))]
    starts, paused, end = [0.0] * len(records), 0.0, 0.0
    for place in sorted(range(len(records)), key=lambda place: records[place].started):
        record = records[place]
        paused += max(0.0, record.started - end)
        starts[place] = record.started - paused
        end = max(end, record.started + record.seconds)
    return starts


# ---------------------------------------------------------------- provenance


def _provenance(manifest: Manifest, settings: Settings, artifacts: Mapping[str, Artifact]) -> Iterator[Figure]:
    yield Figure("Command", code=command_line(settings), wide=True)
    # All sorted, as they are in a manifest that is read again.
    environment = manifest.environment
    facts = [
        ["git revision", str(environment.get("git", "unknown"))],
        ["Python", str(environment.get("python", ""))],
        ["platform", str(environment.get("platform", ""))],
        *([f"model: {name}", str(value)] for name, value in sorted(manifest.model.items()) if value is not None),
        ["final split", manifest.final_split],
        *([f"threshold, {task}", f"{value:g}"] for task, value in sorted(manifest.thresholds.items())),
    ]
    yield Figure("Code, machine, model", grid=Grid(["what", "value"], facts, 2))
    versions = [[name, str(version)] for name, version in sorted(environment.get("packages", {}).items())]
    yield Figure("Package versions", grid=Grid(["package", "version"], versions, 2), folded=True)
    changed = [[key, value_text(value)] for key, value in changed_settings(settings).items()]
    yield Figure("Settings that are not at their default", grid=Grid(["setting", "value"], changed, 2), folded=True)
    yield _hashes("Input files, sha256", manifest.data)
    others = {name: digest for name, digest in manifest.files.items() if name != PAGE}
    yield _hashes("Published files, sha256", others)
    stages = [
        [title, str(own.record.code), own.record.identity[:16], own.record.digest[:16]]
        for title, own in artifacts.items()
    ]
    columns = ["stage", "code version", "identity", "sha256 of its files"]
    yield Figure("Stages", grid=Grid(columns, stages, 4), folded=True)


def _hashes(title: str, files: Mapping[str, str]) -> Figure:
    return Figure(title, grid=Grid(["file", "sha256"], [list(pair) for pair in sorted(files.items())], 2), folded=True)
