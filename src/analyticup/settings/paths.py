"""The project's root, and the paths of the settings."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]


def resolve(path: str) -> Path:
    """A path of the settings: absolute, or relative to the project's root."""
    return (PROJECT / Path(path).expanduser()).resolve()
