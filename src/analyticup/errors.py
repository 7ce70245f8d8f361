"""The two ways a command can end badly, as exceptions; `__main__` turns them into exit codes."""


class UserError(Exception):
    """The user's input or settings are wrong: one clear line (what, where, what to do); exit code 2."""


class CheckFailed(Exception):
    """A check or verdict failed on well-formed input; exit code 1."""
