import io

import pytest

from analyticup.engine.progress import track


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_work_under_two_seconds_is_silent():
    stream, clock = io.StringIO(), Clock()
    with track(10, "embed", stream=stream, clock=clock) as progress:
        for _ in range(10):
            clock.now += 0.19
            progress.advance()
    assert stream.getvalue() == ""


def test_off_a_terminal_a_line_comes_every_five_seconds_and_at_the_end():
    stream, clock = io.StringIO(), Clock()
    with track(120, "embed", stream=stream, clock=clock) as progress:
        for _ in range(12):
            clock.now += 1.0
            progress.advance(10)
    assert stream.getvalue().splitlines() == [
        "embed: 20/120, 10.0/s, 2 s, 10 s left",
        "embed: 70/120, 10.0/s, 7 s, 5 s left",
        "embed: 120/120, 10.0/s, 12 s",
    ]


def test_an_iterable_passes_through_and_is_counted_by_its_length():
    stream, clock = io.StringIO(), Clock()
    seen = []
    for item in track(["a", "b", "c"], "read", stream=stream, clock=clock):
        seen.append(item)
        clock.now += 3.0
    assert seen == ["a", "b", "c"]
    assert stream.getvalue().splitlines()[0] == "read: 1/3, 0.3/s, 3 s, 6 s left"


def test_an_error_in_the_work_is_raised_and_no_closing_line_is_written():
    stream, clock = io.StringIO(), Clock()
    with (
        pytest.raises(RuntimeError, match="broken"),
        track(3, "embed", stream=stream, clock=clock) as progress,
    ):
        clock.now += 3.0
        progress.advance()
        progress.advance()
        raise RuntimeError("broken")
    assert len(stream.getvalue().splitlines()) == 1


def test_on_a_terminal_a_bar_is_drawn():
    stream, clock = Terminal(), Clock()
    with track(2, "embed", stream=stream, clock=clock) as progress:
        clock.now += 3.0
        progress.advance()
    assert "embed" in stream.getvalue() and "1/2" in stream.getvalue()
