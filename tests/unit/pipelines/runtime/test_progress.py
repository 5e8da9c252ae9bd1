"""What a log shows of long work."""

from __future__ import annotations

import time

import pytest

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
