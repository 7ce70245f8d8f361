"""The locks hold what requirements.txt pins, each line with a hash; the bill of materials says the same."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from analyticup.model.pins import PACKAGED_SHA256

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    *(".ci/requirements.lock", ".ci/requirements-cpu.lock", ".ci/requirements-cuda.lock"),
    *(".ci/requirements-ray.lock", ".ci/requirements-gpu.lock"),
)
EXTRAS = (".ci/requirements-gpu.txt", ".ci/requirements-ray.txt")
RELEASE = re.compile(r'([\w.-]+)==([\w.+]+)( ; python_version == "3\.1[12]")?((?: --hash=sha256:[0-9a-f]{64})+)')


def lines(name: str) -> list[str]:
    """The lines of a requirements file, continued ones joined, without comments and options."""
    text = re.sub(r"\s*\\\n\s*", " ", (ROOT / name).read_text(encoding="utf-8"))
    return [line for line in text.splitlines() if line and not line.startswith(("#", "--"))]


def releases(name: str) -> dict[tuple[str, str], list[str]]:
    """(name, version) to its hashes; fails on a line that is no pin with hashes."""
    found = {}
    for line in lines(name):
        match = RELEASE.fullmatch(line)
        assert match, f"{name}: no pin with sha256 hashes: {line}"
        found[match[1], match[2]] = re.findall("[0-9a-f]{64}", match[4])
    return found


def test_every_line_is_a_pin_with_hashes_and_each_extra_adds_to_the_first_locks() -> None:
    locks = [releases(name) for name in NAMES]
    assert [len(lock) for lock in locks] == [len(lines(name)) for name in NAMES]
    base, ray, gpu = {**locks[0], **locks[1], **locks[2]}, *locks[3:]
    assert len(base) == sum(map(len, locks[:3]))
    for extra in (ray, gpu):
        assert not {name for name, _ in extra} & {name for name, _ in base}
    # Both can be installed: what they share is one release.
    assert len({name for name, _ in ray.keys() | gpu.keys()}) == len(ray.keys() | gpu.keys())


def test_every_direct_pin_is_locked_in_that_version() -> None:
    direct = {tuple(line.split("==")) for file in ("requirements.txt", *EXTRAS) for line in lines(file)}
    assert direct <= set().union(*map(releases, NAMES))


def imported(file: Path) -> Iterator[str]:
    """The top-level names that a source file imports, inside its functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_every_imported_package_is_named_in_the_requirements() -> None:
    names = {name for file in (ROOT / "src").rglob("*.py") for name in imported(file)}
    # What is not installed, as an extra may not be, goes by its import name.
    distributions = packages_distributions()
    wanted = {name: distributions.get(name, [name]) for name in names - sys.stdlib_module_names - {"analyticup"}}
    named = {line.split("==")[0] for file in ("requirements.txt", *EXTRAS) for line in lines(file)}
    assert {"torch", "sklearn"} <= wanted.keys()
    assert {name for name, found in wanted.items() if named.isdisjoint(map(normalised, found))} == set()


def test_torch_is_locked_in_one_version_for_both_builds_and_both_pythons() -> None:
    shared, cpu, cuda, *_ = map(releases, NAMES)
    ((version, hashes),) = [(release[1], found) for release, found in cuda.items() if release[0] == "torch"]
    assert list(cpu) == [("torch", f"{version}+cpu")]
    assert len(hashes) == len(cpu["torch", f"{version}+cpu"]) == 2
    assert not [name for name, _ in shared if name == "torch" or name.startswith(("nvidia-", "cuda-"))]
    assert {"nvidia-cublas", "triton"} <= {name for name, _ in cuda}


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_takes_wheels_only_and_names_no_index(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "--only-binary :all:" in text.splitlines()
    assert "://" not in text and "index-url" not in text and "find-links" not in text


def bill(kind: str) -> list[dict]:
    document = json.loads((ROOT / ".ci" / "sbom.cdx.json").read_text(encoding="utf-8"))
    return [component for component in document["components"] if component["type"] == kind]


def test_bill_of_materials_is_that_of_the_locks() -> None:
    billed = {
        (component["name"], component["version"]): [entry["content"] for entry in component["hashes"]]
        for component in bill("library")
    }
    assert billed == {release: hashes for name in NAMES for release, hashes in releases(name).items()}


def test_bill_of_materials_names_the_weights_with_licence_and_pin() -> None:
    models = {component["bom-ref"].removeprefix("model:"): component for component in bill("machine-learning-model")}
    assert all(model["licenses"][0]["license"]["name"] for model in models.values())
    hashes = {name: model["hashes"][0]["content"] for name, model in models.items() if "hashes" in model}
    assert hashes == PACKAGED_SHA256
    paper = OmegaConf.load(ROOT / "configs" / "paper.yaml")
    assert models[paper.model.backbone]["version"] == paper.model.revision
    assert models[paper.embedder.model]["version"] == paper.embedder.revision
    assert models[paper.translate.seedx.model].get("version") == paper.translate.seedx.revision
