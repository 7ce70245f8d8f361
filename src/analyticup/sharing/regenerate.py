"""`./run.sh regenerate`: the submission once more from a bundle, at one of three depths."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from analyticup.checks import NEEDS
from analyticup.console import exclusive_run, run_stages
from analyticup.corpus.official import official_names, row_names
from analyticup.engine.artifacts import Artifact
from analyticup.engine.checksums import SUMS
from analyticup.engine.environment import describe
from analyticup.engine.files import file_sha256, publish_folder, write_json
from analyticup.engine.graph import Node, Status
from analyticup.engine.workers import InProcess, Runner, make_runner
from analyticup.errors import CheckFailed, UserError
from analyticup.model.pins import identity
from analyticup.pipeline import MODELS, build, build_from_scores
from analyticup.results.manifest import data_sha256, published_files
from analyticup.results.verify import stages_by_settings
from analyticup.settings.loading import task_settings
from analyticup.settings.paths import PROJECT, resolve
from analyticup.settings.schema import Settings, decisive
from analyticup.sharing.compare import compare
from analyticup.sharing.layout import DATA, DECISIONS, Bundle
from analyticup.training import PRECISION
from analyticup.verdict import Item, Verdict

if TYPE_CHECKING:
    from rich.console import Console

# The deepest last.
DEPTHS: Final = ("decide", "predict", "train")
# The settings that may differ from the bundle's; what does not change a figure may always.
MAY_CHANGE: Final = {
    "decide": ("ensemble.", "threshold."),
    "predict": ("ensemble.", "threshold.", "predict."),
    "train": ("ensemble.", "threshold.", "predict."),
}
# Judged by the weights they stand for: a local model is elsewhere on another machine.
_WEIGHTS: Final = ("model.backbone", "model.revision", "model.adapters")
COMPARISON: Final = "comparison.json"


def deepest(bundle: Bundle, settings: Settings) -> tuple[str, str]:
    """The deepest depth that the given parts allow without a download, and why not a deeper one ("" for `train`)."""
    # Imports Transformers, which `decide` goes without.
    from analyticup.checks.models import needed_models

    try:
        identity(settings.model)
    except UserError as error:
        return "decide", str(error)
    base, *others = needed_models(settings, resolve(settings.paths.cache))
    absent = [model.name for model in (base, *others) if model.kind == "hub" and model.folder is None]
    faults = [f"{name} is not on this machine" for name in absent] + _data_faults(bundle, settings, "train")
    if not faults:
        return "train", ""
    only_others = len(faults) == len(absent) and base.name not in absent
    return ("predict" if only_others and bundle.has_adapters else "decide"), faults[0]


def _data_faults(bundle: Bundle, settings: Settings, depth: str) -> list[str]:
    """What is wrong with the official files that a depth reads; the sample corpus is written anew and judged later."""
    if settings.data.dir is None:
        return []
    folder, faults = Path(settings.data.dir).expanduser(), []
    for task in settings.tasks:
        for name in row_names(task)[1 if depth == "decide" else 0 :]:
            path, known = folder / name, bundle.manifest.data.get(name)
            if known is None and path.is_file():
                faults.append(f"{path}: the run that was bundled had no such file; move it elsewhere")
            elif known is not None and not path.is_file():
                faults.append(f"{path}: no such file; say where the competition's files are with data.dir=FOLDER")
            elif known is not None and file_sha256(path) != known:
                faults.append(f"{path}: is not the file that the run read (its sha256 is another)")
    return faults


def changed_settings(bundle: Bundle, settings: Settings) -> list[str]:
    """The settings that can change a figure and are not the bundle's, in full; those that name the weights left out."""
    base, found = bundle.settings(), dict[str, None]()
    for task in base.tasks:
        then, now = (_leaves(decisive(task_settings(each, task))) for each in (base, settings))
        names = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
        found |= dict.fromkeys(key for key in names if key not in _WEIGHTS)
    return list(found)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a depth runs: the nodes, with which settings, and what is given to them."""

    settings: Settings
    nodes: list[Node]
    given: list[Status]
    runner: Callable[[], Runner]


def regenerate(
    path: Path, bundle: Bundle, depth: str, settings: Settings, console: Console
) -> tuple[list[Item], Path | None]:
    """Runs a depth and compares; (what came of it, the folder that holds the submission). No folder where an item
    fails: nothing is written then.

    Raises UserError or CheckFailed, before anything runs, for settings, files, a base model or adapters that are not
    the bundle's. An interrupted one resumes; one that ended begins anew.
    """
    changed = changed_settings(bundle, settings)
    _refuse(bundle, path, depth, settings, changed)
    work = resolve(settings.paths.artifacts) / "regenerated" / f"{settings.name}-{depth}"
    target = resolve(settings.paths.submissions) / f"{settings.name}-{depth}"
    if target.exists() and not (target / COMPARISON).is_file():
        raise UserError(f"{target}: is there already and was not regenerated; move it elsewhere")
    plan = _plan(bundle, depth, settings.replace(**{"paths.artifacts": str(work), "tracking.mode": "disabled"}))
    with exclusive_run(plan.settings, console), plan.runner() as runner:
        artifacts = run_stages(plan.settings, plan.nodes, describe(PROJECT), runner, console, plan.given)
    made = published_files(artifacts)
    decisions = {task: artifacts[f"threshold-{task}"] for task in settings.tasks}
    items = [*_inputs(bundle, artifacts), *_code(bundle, depth), *_precision(bundle, artifacts)]
    items += compare(bundle, depth, made, decisions, changed)
    failed = any(item.verdict == Verdict.FAIL for item in items)
    if not failed:
        _publish(target, made, {"bundle": _name(bundle), "depth": depth, "changed": changed, "items": items})
    shutil.rmtree(work)
    return items, None if failed else target


def _refuse(bundle: Bundle, path: Path, depth: str, settings: Settings, changed: Sequence[str]) -> None:
    others = [key for key in changed if not key.startswith(MAY_CHANGE[depth])]
    if others:
        raise UserError(
            f"{', '.join(others)}: not the bundle's, and at depth {depth} only {', '.join(MAY_CHANGE[depth])}* may "
            f"change; for another run take ./run.sh run --config {path}/settings.yaml"
        )
    if faults := _data_faults(bundle, settings, depth):
        raise CheckFailed("\n".join(faults))
    if depth == "decide":
        return
    ours, then = identity(settings.model), bundle.manifest.model
    if other := sorted(name for name in ours if ours[name] != then.get(name)):
        raise CheckFailed(
            f"model.backbone: {settings.model.backbone} is not the base model of the bundle, "
            f"{then['backbone']} ({', '.join(other)} differ)"
        )
    if depth == "predict" and not bundle.has_adapters:
        raise UserError("the bundle was made without adapters (bundle.adapters=false); take the depth decide or train")


def _plan(bundle: Bundle, depth: str, settings: Settings) -> Plan:
    if depth == "decide":
        nodes = build_from_scores(settings, bundle.manifest.data)
        return Plan(settings, nodes, list(_given(bundle, nodes)), lambda: InProcess(f"{__name__}:no_models"))
    # Those that the run took, and not what this machine has for a run of that name.
    decided = bundle.folder / DECISIONS
    settings = settings.replace(**{"filter.decisions": str(decided) if decided.is_dir() else None})
    if depth == "predict":
        settings = settings.replace(**{"model.adapters": str(bundle.folder)})
    return Plan(settings, build(settings), [], lambda: make_runner(settings, MODELS, NEEDS))


def no_models(settings: Settings) -> None:
    """The models of stages that load none, so that torch is not imported for them."""


def _given(bundle: Bundle, nodes: Sequence[Node]) -> Iterator[Status]:
    """What the nodes need that is not among them, from the bundle."""
    own = {node.identity for node in nodes}
    needed = {other.identity: other for node in nodes for other in node.inputs.values() if other.identity not in own}
    for node in needed.values():
        artifact = bundle.artifact(node.title)
        yield Status(node, artifact.folder, artifact, "given by the bundle")


def _inputs(bundle: Bundle, artifacts: Mapping[str, Artifact]) -> Iterator[Item]:
    """The sample corpus, which was written anew, against the files that the run read."""
    if "sample-all" not in artifacts:
        return
    made = data_sha256(artifacts)
    read = {name for task in bundle.settings().tasks for name in official_names(task)} & bundle.manifest.data.keys()
    differ = sorted(name for name in read if made.get(name) != bundle.manifest.data[name])
    text = f"{', '.join(differ)} not as the run read them" if differ else "the files that the run read"
    yield Item(Verdict.FAIL if differ else Verdict.OK, "sample corpus", text)


def _code(bundle: Bundle, depth: str) -> Iterator[Item]:
    """Whether the bundle's settings still give the identities of its stages; at `decide` no model is asked for one."""
    if depth != "decide":
        item = stages_by_settings(bundle.manifest, bundle.settings())
        # Another version of the code is judged by what it gives.
        yield dataclasses.replace(item, verdict=Verdict.NOTE) if item.verdict == Verdict.FAIL else item


def _precision(bundle: Bundle, artifacts: Mapping[str, Artifact]) -> Iterator[Item]:
    """Where models ran in another precision than the run's: why bytes may differ."""
    now = {title: artifact.record.counts.get(PRECISION) for title, artifact in artifacts.items()}
    then = {title: entry.counts.get(PRECISION) for title, entry in bundle.manifest.stages.items()}
    pairs = {(then[title], now[title]) for title in now.keys() & then.keys() if then[title] and now[title]}
    if other := sorted(pair for pair in pairs if pair[0] != pair[1]):
        text = "; ".join(f"{here} here, {there} in the run" for there, here in other)
        yield Item(Verdict.NOTE, PRECISION, f"{text}: scores may differ in their last digits")


def _name(bundle: Bundle) -> dict[str, str]:
    return {"name": bundle.manifest.name, "sha256_of_checksums": file_sha256(bundle.folder / SUMS)}


def _publish(target: Path, made: Mapping[str, Path], comparison: dict[str, Any]) -> None:
    plain = {**comparison, "items": [dataclasses.asdict(item) for item in comparison["items"]]}
    with publish_folder(target) as scratch:
        for name, source in made.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, scratch / name)
        write_json(scratch / COMPARISON, {**plain, "environment": describe(PROJECT)})


def reached(depth: str, items: Sequence[Item], changed: Sequence[str]) -> str:
    """What a regeneration has shown, in the words of ACM's badges (Artifact Review and Badging 1.1)."""
    worst = {item.verdict for item in items}
    if Verdict.FAIL in worst:
        return "nothing was reproduced"
    if changed:
        return "settings were changed, so this is no reproduction"
    how = "near, within the tolerance" if Verdict.NEAR in worst else "identical bytes"
    return f"{BADGES[depth]} ({how})"


BADGES: Final = {
    "decide": "artifacts functional: the stored scores give the submission",
    "predict": "results reproduced in part: the authors' adapters score the rows again",
    "train": "results reproduced: from the data and the base model",
}


def data_in(bundle: Bundle, overrides: Sequence[str]) -> list[str]:
    """The overrides, with the bundle's own rows as data.dir where it has them and no other folder is named."""
    named = any(text.partition("=")[0].strip() == "data.dir" for text in overrides)
    if named or not bundle.has_rows:
        return list(overrides)
    return [*overrides, f"data.dir={bundle.folder / DATA}"]
