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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

log = logging.getLogger(__name__)
console = Console(stderr=True)
LINE_SECONDS = 10.0
WARM_UP_UPDATES = 3  # before time left is shown


class ProgressBar:
    """The progress of one piece of work."""

    def __init__(self, title: str, total: int, progress: Progress | None) -> None:
        self._title, self._total, self._progress = title, total, progress
        self._task = progress.add_task(title, total=total, note="", left="") if progress else None
        self._last, self._shown = time.monotonic(), 0
        # The first steps take longest, and resumed work does not start at 0.
        self._seen: list[tuple[float, int]] = []

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` items are finished; cheap enough to be called after each of them."""
        now = time.monotonic()
        left = self._estimate_left(now, done)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note, left=left)
        elif done > self._shown and (now - self._last >= LINE_SECONDS or done == self._total):
            self._last, self._shown = now, done
            line = f"  {self._title}: {done}/{self._total} {note}".rstrip()
            console.print(f"{line}, {left}" if left else line, highlight=False)

    def _estimate_left(self, now: float, done: int) -> str:
        """Return how long the rest takes, in words; nothing before it can be known."""
        if len(self._seen) < WARM_UP_UPDATES and (not self._seen or done > self._seen[-1][1]):
            self._seen.append((now, done))
        start, before = self._seen[-1]
        if len(self._seen) < WARM_UP_UPDATES or not before < done < self._total:
            return ""
        left = (now - start) * (self._total - done) / (done - before)
        return f"{datetime.timedelta(seconds=round(left))} left"


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[ProgressBar]:
    """Show the progress of `total` items of work."""
    if not console.is_terminal:
        yield ProgressBar(title, total, None)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),  # rich's own column estimates from the first step
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield ProgressBar(title, total, progress)


@ray.remote(num_cpus=0)
class TrainingMonitor:
    """Actor through which a train worker reports progress and learns that it should stop."""

    def __init__(self) -> None:
        self._step, self._note, self._stop_requested, self._fault = 0, "", False, ""
        self._reports: list[tuple[int, dict[str, float]] | str] = []

    def report_step(self, step: int, note: str) -> None:
        """Record how many steps are done, with a note for the progress bar."""
        self._step, self._note = step, note

    def report_epoch(self, epoch: int, values: dict[str, float]) -> None:
        """Record the metrics of an epoch."""
        self._reports.append((epoch, values))

    def log_warning(self, message: str) -> None:
        """Record a warning for the driver's log."""
        self._reports.append(message)

    def request_stop(self) -> None:
        """Request that the workers write a checkpoint and end."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Return whether `request_stop` was called."""
        return self._stop_requested

    def report_fault(self, message: str) -> None:
        """Record why the training must end; the first reason counts."""
        self._fault = self._fault or message

    def fault(self) -> str:
        """Return what `report_fault` recorded; empty if nothing."""
        return self._fault

    def read(self, seen: int) -> tuple[int, str, list[tuple[int, dict[str, float]] | str]]:
        """Return the steps done, their note, and the reports after the first `seen`."""
        return self._step, self._note, self._reports[seen:]


def start_monitor() -> Any:
    """Start a `TrainingMonitor` on this node, so that it lives as long as its reader."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return TrainingMonitor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


@contextmanager
def follow_training(
    monitor: Any, title: str, total: int, on_epoch: Callable[[int, dict[str, float]], None]
) -> Iterator[None]:
    """Show a monitor's progress while the block runs; pass each epoch's metrics to `on_epoch`."""
    over = threading.Event()

    def watch() -> None:
        seen = 0
        with progress_bar(title, total) as shown:
            while True:
                ended = over.wait(1.0)  # one last look after the end
                try:
                    step, note, reports = ray.get(monitor.read.remote(seen), timeout=5)
                except Exception:  # a lost monitor must not stop the training that it shows
                    reports = []
                else:
                    shown.update(step, note)
                seen += len(reports)
                for report in reports:
                    if isinstance(report, str):
                        log.warning("training: %s", report)
                    else:
                        on_epoch(*report)
                if ended:
                    return

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=15)
