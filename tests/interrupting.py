"""The command line of a run with workers, in which one of them sends the signal that ends the run.

The variable below says, as JSON, where: `when` a stage whose title begins with `stage` begins ("before"), has written
its files but not its record ("after"), or, in a training, at its third optimiser step ("step"). Titles in the file
`seen` do not count, and the title is added there. The `signal` goes to the process that shows the run, or with `all` to
every process of its session, as a terminal and a batch system do it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analyticup.engine import execution
from analyticup.engine.workers import imported
from analyticup.settings.schema import Settings

VARIABLE = "INTERRUPTING"


def models(settings: Settings) -> Any:
    """In a worker, before its first stage: the models of a run, and from now on the signal."""
    told = json.loads(os.environ.get(VARIABLE, "{}"))
    if told:
        known = execution.imported
        execution.imported = lambda name: _interrupting(known(name), told)
    return imported("analyticup.training.source:model_source")(settings)


def _interrupting(known: Callable[[Any], Any], told: dict[str, Any]) -> Callable[[Any], Any]:
    def run(job: Any) -> Any:
        title = job.made.title
        if told["when"] == "step" and job.made.stage in ("train", "filter_model"):
            _at_a_step(title, told)
        if told["when"] == "before":
            _signal(title, told)
        counts = known(job)
        if told["when"] == "after":
            _signal(title, told)
        return counts

    return run


def _at_a_step(title: str, told: dict[str, Any]) -> None:
    from torch.optim import AdamW

    known, left = AdamW.step, [3]

    def step(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            _signal(title, told)
        return known(*arguments, **options)

    AdamW.step = step


def _signal(title: str, told: dict[str, Any]) -> None:
    seen = Path(told["seen"])
    if not title.startswith(told.get("stage", "")) or title in seen.read_text().splitlines():
        return
    try:
        # One of several workers, and once in a run.
        os.close(os.open(seen.with_suffix(f".{os.getppid()}"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    with seen.open("a") as stream:
        stream.write(f"{title}\n")
    number = signal.Signals[told["signal"]]
    if told.get("all"):
        os.killpg(os.getpgrp(), number)
    else:
        os.kill(os.getppid(), number)
    # Until this process is ended.
    time.sleep(60)


if __name__ == "__main__":
    from analyticup import commands
    from analyticup.__main__ import heed_sigterm, main

    # A shell starts what it puts into the background deaf to Ctrl-C, these tests maybe too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    heed_sigterm()
    commands.MODELS = "interrupting:models"
    sys.exit(main(sys.argv[1:]))
