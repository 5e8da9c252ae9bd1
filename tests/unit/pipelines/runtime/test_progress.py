"""What a log and a terminal show of long work."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from pipelines.runtime import progress


def test_a_line_tells_how_much_is_done_and_when_the_rest_will_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 60))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress.progress_bar("images checked", 10) as shown:
        shown.update(2)  # as a continued run starts
        shown.update(2)  # nothing new, nothing said
        shown.update(3)  # the first steps are slow: not told how long the rest takes
        shown.update(4)
        shown.update(7, "fast")
        shown.update(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "  images checked: 2/10",
        "  images checked: 3/10",
        "  images checked: 4/10",
        "  images checked: 7/10 fast, 0:01:00 left",
        "  images checked: 10/10",
    ]


def test_a_bar_shows_no_time_left_before_the_third_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 600, 660, 720, 780, 840, 900])  # the first step takes ten times as long
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", terminal)
    seen = {}
    with progress.progress_bar("training", 10) as shown:
        for done in (1, 2, 3, 4, 7, 10):
            before = len(screen.getvalue())
            shown.update(done, "fast")
            assert shown._progress is not None
            shown._progress.refresh()
            drawn = screen.getvalue()[before:]
            assert "fast" in drawn
            seen[done] = re.findall(r"[-\d]+:[-\d]{2}:[-\d]{2}(?: left)?", drawn)[-1:]
    assert seen == {1: [], 2: [], 3: [], 4: ["0:06:00 left"], 7: ["0:01:30 left"], 10: []}
