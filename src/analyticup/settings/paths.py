"""The project's root, and the paths of the settings."""

from __future__ import annotations

from pathlib import Path

from analyticup.settings.schema import Settings

PROJECT = Path(__file__).resolve().parents[3]


def resolve(path: str) -> Path:
    """A path of the settings: absolute, or relative to the project's root."""
    return (PROJECT / Path(path).expanduser()).resolve()


def decisions_name(task: str) -> str:
    """Name of the file with people's decisions on a task's training rows."""
    return f"decisions_{task}.jsonl"


def decisions_folder(own: Settings) -> Path | None:
    """Where a task's file of decisions is, or may come to be; None where the settings want none."""
    given = own.filter.decisions
    return None if given is None else resolve(given.replace("{name}", own.name))
