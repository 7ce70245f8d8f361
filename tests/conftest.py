"""One thread per worker; property tests draw the same examples in every run, whatever the machine's speed; the longest
files first."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Workers share the cores; the tiny models of the tests gain nothing from a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    # A test's temporary folder may serve all of its examples; generating long texts takes a while on a busy machine.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with `slow` tests first: the file that starts last should be a short one, or the other workers wait."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Any], None]:
    """replaced(known, other) puts `other` in the place of a function or constant, in every module that has imported
    it by name."""

    def replace(known: Any, other: Any) -> None:
        for module in [one for name, one in sys.modules.items() if name.startswith("analyticup.")]:
            for alias in [alias for alias, value in vars(module).items() if value is known]:
                monkeypatch.setattr(module, alias, other)

    return replace


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB, which the checks before a run find large enough."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    # A worker may still have a file open.
    subprocess.run(["umount", "-l", str(folder)], check=True)
