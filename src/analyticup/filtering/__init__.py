"""Self-validation filtering: models judge the training rows, rules find suspect labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analyticup.engine.graph import Stage
from analyticup.errors import UserError
from analyticup.settings.loading import task_settings
from analyticup.settings.paths import decisions_folder, decisions_name
from analyticup.settings.schema import Settings, decisive
from analyticup.training import held_out_cut, training_settings

# The file of suspects in the filter's folder.
SUSPECTS = "suspects.jsonl"


def filter_settings(own: Settings) -> dict[str, Any]:
    """Without the number of rounds: each round is its own stage. A filter that is off only takes people's decisions."""
    if not own.filter.enabled:
        return {"enabled": False}
    return {name: value for name, value in decisive(own.filter).items() if name != "rounds"}


def decision_files(settings: Settings) -> dict[str, Path]:
    """File name -> path of the files with people's decisions on the tasks' rows, where there are any.

    Raises UserError for a folder that is not there, unless it is one that each run may have, by its name.
    """
    found = {}
    for task in settings.tasks:
        own = task_settings(settings, task)
        folder, name = decisions_folder(own), decisions_name(task)
        if folder is not None and (folder / name).is_file():
            found[name] = folder / name
        elif folder is not None and not folder.is_dir() and "{name}" not in (own.filter.decisions or ""):
            raise UserError(f"filter.decisions: {folder} is not a folder; correct the path, or use null for none")
    return found


JUDGE = Stage("filter_model", 5, "analyticup.filtering.stage:judge", training_settings, held_out_cut)
FILTER = Stage("filter", version=2, run="analyticup.filtering.stage:filter_rows", settings=filter_settings, model=False)
