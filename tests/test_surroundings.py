"""Strange machines: closed streams, a deleted folder, variables of others, limits, a hub that refuses. The same bytes,
or one line."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT

from analyticup import __main__, commands
from analyticup.console import exclusive_run
from analyticup.settings.schema import Settings
from analyticup.terminal import make_console


def shell(line: str, folder: Path, code: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """A line of sh in which {kit} is the command line, or a Python program."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "analyticup"])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **more}
    line = line.replace("{kit}", shlex.join(command))
    return subprocess.run(["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


# ---------------------------------------------------------------- streams


CLOSED = """
import os, sys
from analyticup.__main__ import open_closed_streams
open_closed_streams()
with open("mine.txt", "w") as mine:
    print("to stdout"), print("to stderr", file=sys.stderr, flush=True)
    os.write(1, b"a library's word"), os.write(2, b"a library's word")
    mine.write(f"mine {sys.stdin.read()!r}")
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path, closed):
    assert shell(f"{{kit}} {closed}", tmp_path, CLOSED).returncode == 0
    assert (tmp_path / "mine.txt").read_text() == "mine ''"


def test_a_command_without_any_stream_does_its_work(tmp_path):
    # stdout is closed, so that only the exit code can say it.
    assert shell("{kit} plan name=a/b <&- >&- 2>&-", tmp_path).returncode == 2
    assert shell("{kit} plan name=ab <&- >&- 2>&-", tmp_path).returncode == 0


def test_what_cannot_be_written_is_said_and_not_lost_at_the_exit(monkeypatch, capsys, tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    monkeypatch.setattr(sys, "stdout", (tmp_path / "full").open("w"))
    monkeypatch.setattr(commands, "plan", lambda _: print("much") or 0)
    assert __main__.main(["plan"]) == 2
    assert capsys.readouterr().err.startswith("error: the disk is full (")
    # Python closes it at the exit.
    sys.stdout.close()


def test_a_run_whose_reader_is_gone_says_so(monkeypatch, capsys, tmp_path):
    own = Settings().replace(**{f"paths.{name}": str(tmp_path / name) for name in ("artifacts", "cache")})

    def run(_: object) -> int:
        with exclusive_run(own, make_console()):
            raise BrokenPipeError

    monkeypatch.setattr(commands, "run", run)
    assert __main__.main(["run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nobody reads this program's output any more") and "resumes from there" in line


def test_a_deleted_folder_is_named(tmp_path):
    done = shell("mkdir gone; cd gone; rmdir ../gone; {kit} check", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the current folder was deleted; change to one")
