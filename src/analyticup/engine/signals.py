"""Signals that end a process by an exception, none of which is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection
from types import FrameType
from typing import NoReturn

# Exit status of what a signal has ended, as a shell gives it for Ctrl-C.
INTERRUPTED = 130


def end_by(numbers: Collection[int], act: Callable[[int], NoReturn]) -> None:
    """From now on these signals call `act`, which raises. Takes SIGALRM, too."""

    def handle(number: int, frame: FrameType | None) -> None:
        # Of what runs at a process's end an exception would only be printed.
        if not threading.main_thread().is_alive():
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(INTERRUPTED)
        while frame is not None:
            if frame.f_code.co_name == "__del__":
                # An exception that is raised in there is lost: again in a moment.
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                return
            frame = frame.f_back
        act(number)

    for number in (*numbers, signal.SIGALRM):
        signal.signal(number, handle)
