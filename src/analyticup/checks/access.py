"""Whether the run's folders can be written, and W&B be reached where it is used."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from analyticup.checks.finding import Finding, nearest_existing
from analyticup.settings.paths import resolve
from analyticup.settings.schema import Settings
from analyticup.verdict import Verdict

_W_AND_B_SECONDS: Final = 5


def access_findings(settings: Settings) -> Iterable[Finding]:
    for name in ("artifacts", "submissions", "cache"):
        path = resolve(getattr(settings.paths, name))
        place = nearest_existing(path)
        if not place.is_dir():
            yield Finding(Verdict.FAIL, f"paths.{name} = {path}: {place} is not a folder; give another path")
        elif not os.access(place, os.W_OK | os.X_OK):
            yield Finding(Verdict.FAIL, f"paths.{name} = {path}: no write access to {place}; give another path")
        else:
            yield Finding(Verdict.OK, f"paths.{name}: {path} can be written")


def tracking_findings(settings: Settings) -> Iterable[Finding]:
    mode = settings.tracking.mode
    if mode == "disabled":
        yield Finding(Verdict.OK, "tracking: disabled")
    elif mode == "offline":
        folder = resolve(settings.paths.artifacts) / "wandb"
        yield Finding(Verdict.OK, f"tracking: offline: runs are kept in {folder}, nothing leaves this machine")
    elif wish := _wish_to_stay():
        yield Finding(
            Verdict.FAIL,
            f"tracking.mode = online, but {wish} is set: nothing is sent against it; unset it, or use "
            f"tracking.mode=offline",
        )
    elif not _has_wandb_login():
        yield Finding(
            Verdict.FAIL,
            "tracking.mode = online: no W&B login was found here; set WANDB_API_KEY or run `wandb login`, or use "
            "tracking.mode=offline",
        )
    elif fault := _unreachable(*_wandb_host()):
        yield Finding(Verdict.FAIL, f"tracking.mode = online: {fault}; fix the network, or use tracking.mode=offline")
    else:
        yield Finding(Verdict.OK, f"tracking: online, project {settings.tracking.project}, {_wandb_host()[0]} answers")


def _wish_to_stay() -> str:
    """The variable, with its value, that would keep other programs from sending anything to W&B; "" = none."""
    given = {name: os.environ.get(name, "") for name in ("WANDB_MODE", "WANDB_DISABLED")}
    off = {"WANDB_MODE": ("offline", "dryrun", "disabled"), "WANDB_DISABLED": ("true", "1", "yes", "on")}
    return next((f"{name}={value}" for name, value in given.items() if value.lower() in off[name]), "")


def _wandb_host() -> tuple[str, int]:
    address = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    return address.hostname or "", address.port or (80 if address.scheme == "http" else 443)


def _unreachable(host: str, port: int) -> str:
    """Why nothing listens there; "" where something does."""
    try:
        socket.create_connection((host, port), timeout=_W_AND_B_SECONDS).close()
    except OSError as error:
        return f"{host}:{port} cannot be reached ({error})"
    return ""


def _has_wandb_login() -> bool:
    """Whether W&B would find a key in the environment or the netrc file; the key itself is not used."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        file = netrc(os.environ.get("NETRC") or str(Path("~/.netrc").expanduser()))
    except (OSError, NetrcParseError):
        return False
    return _wandb_host()[0] in file.hosts
