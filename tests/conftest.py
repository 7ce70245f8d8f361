"""One thread per worker; property tests draw the same examples in every run, whatever the machine's speed; the longest
files first."""

import os

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
