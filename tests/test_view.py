"""The display of a run on a terminal: what a frame says, that it fits, and what a terminal gets of it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.console import Console

from analyticup.engine.progress import is_live
from analyticup.engine.view import RunView

TITLES = ["ingest-QC", "train-QC-fold0", "train-QC-fold1", "report-all"]
ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def view_at_work(console: Console) -> RunView:
    """One stage done, two running, each with a bar that has moved, one waiting; 70 seconds after the start."""
    now = [0.0]
    view = RunView(console, TITLES, lambda: now[0])
    view.starts("ingest-QC"), view.ends("ingest-QC")
    for number, title in enumerate(TITLES[1:3]):
        view.starts(title)
        view.receive(((1, number), f"train QC fold{number}: training batches", 0, 100))
    now[0] = 10.0
    view.receive(((1, 0), "train QC fold0: training batches", 40, 100))
    now[0] = 70.0
    return view


def lines_of(view: RunView, console: Console) -> list[str]:
    console.print(view.frame())
    text = console.file.getvalue()
    console.file.seek(0), console.file.truncate()
    return ESCAPES.sub("", text).splitlines()


def test_a_frame_says_how_far_the_run_is() -> None:
    console = Console(file=Terminal(), width=100, force_terminal=True)
    first, running, one, two, waiting = lines_of(view_at_work(console), console)
    assert first.startswith("1 of 4 stages done, 2 running, 1 waiting; 1:10, ") and "B" in first
    assert running.strip() == "running: train-QC-fold0 1:10, train-QC-fold1 1:10" and waiting == "next: report-all"
    assert one.startswith("train QC fold0: training batches") and one.split()[-4:] == [
        "40/100",
        "4.0/s",
        "0:15",
        "left",
    ]
    assert two.split()[-1] == "0/100"


@pytest.mark.parametrize("width", [100, 69, 40, 20, 5])
def test_no_line_of_a_frame_is_wider_than_the_window_whenever_it_changes(width: int) -> None:
    console = Console(file=Terminal(), width=100, force_terminal=True)
    view = view_at_work(console)
    lines_of(view, console)
    console.width = width
    frame = lines_of(view, console)
    assert len(frame) == 5 and max(map(len, frame)) <= width


@pytest.mark.parametrize(
    ("stream", "environment", "live"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {"CI": "true"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_what_moves_is_drawn_on_terminals_alone(monkeypatch, stream, environment, live) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_live(stream) == live


RUN = """
import sys, time
from analyticup.engine.progress import track
from analyticup.engine.view import run_view
from analyticup.terminal import make_console
console = make_console()
with run_view(console, ["one", "two"]) as view:
    if view: view.starts("one")
    for number in track(range(27), "loop"):
        time.sleep(0.1)
        if number == 24: print("a line of a library", file=sys.stderr)
    console.print("    one: done")
console.print("the end")
"""


def run_on_a_terminal(**environment: str) -> str:
    """All that a terminal gets, 80 columns wide and 30 soon after the first bar."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "COLUMNS", "LINES")}
    source = Path(__file__).resolve().parents[1] / "src"
    given = {**plain, "TERM": "xterm-256color", "PYTHONPATH": str(source), **environment}
    process = subprocess.Popen([sys.executable, "-c", RUN], stdin=theirs, stdout=theirs, stderr=theirs, env=given)
    os.close(theirs)
    text, resized = "", False
    while True:
        try:
            text += os.read(ours, 65536).decode()
        except OSError:
            break
        if "loop" in text and not resized:
            resized = True
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    os.close(ours)
    assert process.wait() == 0
    return text


def test_a_terminal_gets_one_display_and_is_left_as_it_was() -> None:
    text = run_on_a_terminal()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    frames = [ESCAPES.sub("", part) for part in text.split("\x1b[2K")]
    assert any("0 of 2 stages done, 1 running, 1 waiting" in part for part in frames)
    assert any(re.match(r"0 of 2 stages done, 1 \w+…\s*$", part.splitlines()[0]) for part in frames if part.strip())
    # The display goes back to the start of its first line before it is drawn over.
    shown = re.split(r"[\r\n]+", ESCAPES.sub("", text))
    assert [shown.count(line) for line in ("a line of a library", "    one: done", "the end")] == [1, 1, 1]


def test_a_log_of_ci_gets_plain_lines() -> None:
    text = run_on_a_terminal(CI="1")
    assert "\x1b" not in text.replace("\x1b[?25h", "")
    assert "loop: " in text and "a line of a library" in text


def test_without_colours_there_are_none() -> None:
    assert not re.search(r"\x1b\[[\d;]*3[0-9;]*m", run_on_a_terminal(NO_COLOR="1"))
