"""Memory: the peak of a stage in its process and of a run over all its processes, and freeing what is unused."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
import threading
from pathlib import Path

import psutil

# How often a run's processes are looked at, in seconds.
INTERVAL = 1.0
# As malloc.h numbers it, and bytes.
_M_MMAP_THRESHOLD, _LARGE = -3, 16 << 20


def reset_peak() -> None:
    """Starts `peak` anew, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes of this process that were resident since `reset_peak`, or else since its start."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    # Bytes on macOS, kilobytes elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep() -> None:
    """Leaves what is there now out of every later collection: of imported modules nothing is ever freed, and going
    through their half a million objects after each stage takes longer than a small stage."""
    gc.freeze()


def let_go() -> None:
    """Frees what is no longer used: models in reference cycles, and what the allocators keep of them."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    # The C library may be another one than glibc.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_at_once() -> None:
    """From here on this process hands large buffers back to the system when they are freed, where run.sh lets it keep
    them: for work that takes each size once. Only glibc does both."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def halved(size: int, what: str, setting: str) -> int:
    """Half of a batch size with which memory ran out; says so on stderr, after letting go of what is unused.

    To be called when the error's handler has ended: until then the error holds the batch.
    """
    let_go()
    less = f"goes on with {size // 2} ({setting} sets that from the start)"
    print(f"{what}: out of memory with {size} texts at once; {less}", file=sys.stderr, flush=True)
    return size // 2


class Watch:
    """Within, looks at this process and all that it started; `now` are the resident bytes of all of them as it last
    looked, `peak` the most that it saw.

    What processes share, as they do a mapped model, counts for each of them.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stops.set()
        self._thread.join()

    def _look(self) -> None:
        own = psutil.Process()
        while True:
            self.now = sum(map(_resident, [own, *own.children(recursive=True)]))
            self.peak = max(self.peak, self.now)
            if self._stops.wait(INTERVAL):
                return


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
