"""`check`: what would block a run, and what it would take."""

from __future__ import annotations

from typing import Final

# By name, as the checks import torch.
NEEDS: Final = "analyticup.checks.machine:worker_bytes"
