"""Adapters that somebody published: `model.adapters`, a bundle's folder or a commit of a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from analyticup.engine.checksums import SUMS
from analyticup.engine.files import file_sha256
from analyticup.errors import UserError

# Of a bundle: stages/<title> holds what a stage wrote.
STAGES = "stages"
HUB = "hub:"


class HubFiles(NamedTuple):
    """A repository of models on the hub, at a full commit."""

    repository: str
    commit: str


def on_hub(adapters: str) -> HubFiles | None:
    """Repository and commit that a value of `model.adapters` names; None where it is a folder.

    Raises UserError for one that begins with "hub:" and has another form.
    """
    if not adapters.startswith(HUB):
        return None
    match = re.fullmatch(r"hub:(\w[\w.-]*/\w[\w.-]*)@([0-9a-f]{40})", adapters, re.ASCII)
    if not match:
        raise UserError(f"model.adapters: {adapters} is not of the form hub:OWNER/NAME@COMMIT, with all 40 hex digits")
    return HubFiles(*match.groups())


def adapters_identity(adapters: str) -> str:
    """What decides the bytes of published adapters: repository and commit, or the sha256 of a bundle's SHA256SUMS."""
    if on_hub(adapters):
        return adapters
    path = Path(adapters).expanduser() / SUMS
    if not path.is_file():
        raise UserError(f"model.adapters: no file {path}; give the folder of a bundle, or hub:OWNER/NAME@COMMIT")
    return file_sha256(path)
