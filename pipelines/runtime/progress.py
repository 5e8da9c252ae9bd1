"""Progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)
console = Console(stderr=True)
LINE_SECONDS = 10.0


class Bar:
    """One piece of work. `update(done, note)` may be called as often as one likes."""

    def __init__(self, title: str, total: int, progress: Progress | None) -> None:
        self._title, self._total, self._progress = title, total, progress
        self._task = progress.add_task(title, total=total, note="") if progress else None
        self._last, self._shown = time.monotonic(), 0
        self._first: tuple[float, int] | None = None  # continued work does not start at 0

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        start, before = self._first = self._first or (now, done)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)
        elif done > self._shown and (now - self._last >= LINE_SECONDS or done == self._total):
            self._last, self._shown = now, done
            line = f"  {self._title}: {done}/{self._total} {note}".rstrip()
            if before < done < self._total:
                left = (now - start) * (self._total - done) / (done - before)
                line += f", {datetime.timedelta(seconds=round(left))} left"
            console.print(line, highlight=False)


@contextmanager
def bar(title: str, total: int) -> Iterator[Bar]:
    """Show the progress of `total` items of work."""
    if not console.is_terminal:
        yield Bar(title, total, None)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(title, total, progress)


@ray.remote(num_cpus=0)
class TrainingMonitor:
    """Where a train worker writes how far it is, and reads whether it should stop."""

    def __init__(self) -> None:
        self._step, self._note, self._stopping = 0, "", False
        self._news: list[tuple[str, Any]] = []

    def step(self, step: int, note: str) -> None:
        self._step, self._note = step, note

    def figures(self, epoch: int, values: dict[str, float]) -> None:
        self._news.append(("figures", (epoch, values)))

    def say(self, sentence: str) -> None:
        self._news.append(("say", sentence))

    def stop(self) -> None:
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping

    def read(self, seen: int) -> tuple[int, str, list[tuple[str, Any]]]:
        """Steps done, a note, and what was reported after the first `seen` things."""
        return self._step, self._note, self._news[seen:]


def start_board() -> Any:
    """A board on this node, so that it lives as long as who reads it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return TrainingMonitor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


@contextmanager
def follow(
    board: Any, title: str, total: int, on_figures: Callable[[int, dict[str, float]], None]
) -> Iterator[None]:
    """Show a board's progress while the block runs; hand each epoch's figures to `on_figures`."""
    over = threading.Event()

    def watch() -> None:
        seen = 0
        with bar(title, total) as shown:
            while True:
                ended = over.wait(1.0)  # one last look after the end
                try:
                    step, note, news = ray.get(board.read.remote(seen), timeout=5)
                except Exception:  # a lost board must not stop the work it shows
                    if ended:
                        return
                    continue
                seen += len(news)
                shown.update(step, note)
                for kind, value in news:
                    if kind == "figures":
                        on_figures(*value)
                    else:
                        log.warning("training: %s", value)
                if ended:
                    return

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=15)
