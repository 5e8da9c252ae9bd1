"""Show a search while it runs: a live table on a terminal, one line per trial in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from rich.live import Live
from rich.table import Table

from pipelines.runtime.progress import console
from pipelines.tuning.spaces import SearchSpec, TrialRecord

log = logging.getLogger(__name__)

MAX_LIVE_ROWS = 12
STATE_LABELS = {"running": "runs", "done": "done", "stopped": "stopped early", "failed": "failed"}


class SearchProgress:
    """The search as it runs: a live table on a terminal, one line per trial in a log.

    Args:
        total: trials in all.
    """

    def __init__(self, spec: SearchSpec, total: int) -> None:
        self._spec, self._total, self._start = spec, total, time.monotonic()
        self._records: Sequence[TrialRecord] = ()
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=1)

    def __enter__(self) -> SearchProgress:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def update(self, records: Sequence[TrialRecord]) -> None:
        """Take the trials as they are now."""
        self._records = records

    def end(self, record: TrialRecord) -> None:
        """Log how a trial ended."""
        if record.state == "failed":
            log.warning("trial %d failed: %s", record.number, record.reason)
        if not console.is_terminal:
            measured = "".join(f", {name} {100 * v:.1f}" for name, v in record.last.items())
            ended, state = self._ended(), STATE_LABELS[record.state]
            log.info("trial %d: %s%s (%s)", record.number, state, measured, ended)

    def _ended(self) -> str:
        return f"{sum(r.state != 'running' for r in self._records)} of {self._total}"

    def _table(self) -> Table:
        minutes = (time.monotonic() - self._start) / 60
        table = Table(title=f"{self._ended()} trials, {minutes:.1f} minutes")
        for column in column_titles(self._spec):
            table.add_column(column, justify="left" if column in ("state", "changes") else "right")
        for record in rank_trials(self._spec, self._records)[:MAX_LIVE_ROWS]:
            table.add_row(*format_cells(self._spec, record))
        return table


def rank_trials(spec: SearchSpec, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Sort trials: the longest trained first, then by the first objective; failed ones last."""
    first = spec.objectives[0]
    return sorted(
        records,
        key=lambda t: (t.state == "failed", -max(t.rungs, default=0), -t.last.get(first, 0.0)),
    )


def column_titles(spec: SearchSpec) -> list[str]:
    """Return the titles of the columns of a table of trials."""
    return ["trial", "state", "epochs", *(f"{name} mAP" for name in spec.objectives), "changes"]


def format_cells(spec: SearchSpec, record: TrialRecord) -> list[str]:
    """Return a trial's row of that table; figures are mAP in percent."""
    figures = [f"{100 * record.last[n]:.1f}" if record.last else "" for n in spec.objectives]
    changes = ", ".join(f"{k.rsplit('.', 1)[-1]} {v}" for k, v in record.changes.items())
    epochs = str(max(record.rungs, default=""))
    text = record.reason or changes or "as it was"
    return [str(record.number), STATE_LABELS[record.state], epochs, *figures, text]
