"""Weights & Biases: one run per fold in a group per pipeline run, and a summary run; always closed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyticup.settings.schema import Settings, TrackingSettings

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run


@contextlib.contextmanager
def tracked_run(
    settings: TrackingSettings, folder: Path, group: str, name: str, config: Mapping[str, Any]
) -> Iterator[Run | None]:
    """One W&B run, or None where tracking is disabled; it is finished whatever happens inside.

    offline keeps everything under `folder`/wandb (`wandb sync` uploads it later); nothing leaves the machine.
    """
    if settings.mode == "disabled":
        yield None
        return
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    # W&B would otherwise keep its own cache and log folders in the user's home.
    for variable in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        os.environ.setdefault(variable, str(folder / "wandb"))
    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        group=group,
        name=name,
        dir=str(folder),
        mode="online" if settings.mode == "online" else "offline",
        config=dict(config),
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, save_code=False, disable_git=True),
    )
    failed = True
    try:
        yield run
        failed = False
    finally:
        run.finish(exit_code=int(failed))


def log_table(settings: Settings, folder: Path, name: str, columns: Sequence[str], rows: list[list[Any]]) -> None:
    """One run that holds a table."""
    with tracked_run(settings.tracking, folder, name, name, {"rows": len(rows)}) as tracked:
        if tracked is not None:
            import wandb

            tracked.log({"table": wandb.Table(columns=list(columns), data=rows)})
