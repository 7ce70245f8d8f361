"""How a command can fail; `__main__` turns these into exit codes."""

from __future__ import annotations

import errno
import json


def show_value(value: object) -> str:
    """A value as JSON in ASCII, shortened: no control or right-to-left character disturbs a terminal."""
    try:
        text = json.dumps(value[:60] if isinstance(value, str) else value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= 80 else text[:77] + "..."


class UserError(Exception):
    """The user's input or settings are wrong, or the machine failed: one clear line (what, where, what to do); exit
    code 2."""


class CheckFailed(Exception):
    """A check or verdict failed on well-formed input; exit code 1."""


ADVICE = "finished stages are kept, and the same command resumes from there"
# Of the CUDA libraries that allocate for themselves, the last ones.
_NO_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory"),
    *("cublas_status_alloc_failed", "cudnn_status_alloc_failed"),
)
# Libraries report the same trouble in exceptions of their own, with these words or as an errno.
_TROUBLES = (
    (
        (errno.ENOSPC, errno.EDQUOT),
        ("no space left", "disk is full", "disk quota"),
        "the disk is full ({}); free some space or move paths.artifacts, paths.cache or paths.submissions",
    ),
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        ("permission denied", "read-only file system", "readonly database"),
        "no permission ({}); fix the folder's permissions or move paths.artifacts, paths.cache or paths.submissions",
    ),
    (
        (errno.EAGAIN, errno.EMFILE, errno.ENFILE),
        ("can't start new thread", "too many open files"),
        "the machine allows no more threads, processes or files ({}); raise its limits (ulimit -u, -n, -v)",
    ),
    (
        (errno.ENOMEM,),
        (*_NO_MEMORY, "process pool was terminated abruptly"),
        "out of memory ({}); lower train.max_batch_tokens, then predict.max_batch_tokens, or end other programs",
    ),
)


def out_of_memory(error: Exception) -> bool:
    """Whether less work at once could help."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _NO_MEMORY)


def machine_trouble(error: Exception) -> str | None:
    """One line for a failure of the machine: disk full, no permission, out of memory, any other OSError; else None."""
    if isinstance(error, UserError | CheckFailed):
        return None
    text = " ".join(str(error).split())[:300] or type(error).__name__
    low = "out of memory" if isinstance(error, MemoryError) else text.lower()
    for numbers, words, line in _TROUBLES:
        if getattr(error, "errno", None) in numbers or any(word in low for word in words):
            return f"{line.format(text)}; {ADVICE}"
    return text if isinstance(error, OSError) else None
