"""What a search looks like: a live table while it runs; a table and pictures at its end."""

from __future__ import annotations

import csv
import io
import logging
import platform
import time
from datetime import date
from typing import Any

import numpy as np
from rich.live import Live
from rich.table import Table

from pipelines.pictures import Image, drawn, panels_of, plain, png_bytes
from pipelines.progress import console
from pipelines.study import Study, Tried
from pipelines.tracking import environment

log = logging.getLogger(__name__)

TABLE, CSV = "trials.md", "trials.csv"
SHOWN = 12  # rows of the live table
STATES = {"running": "runs", "done": "done", "stopped": "stopped early", "failed": "failed"}


class Shown:
    """The search as it goes: a live table on a terminal, a line a trial in a log.

    Args:
        total: trials in all.
    """

    def __init__(self, study: Study, total: int) -> None:
        self._study, self._total, self._start = study, total, time.monotonic()
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=1)

    def __enter__(self) -> Shown:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def ended(self, trial: Tried) -> None:
        """Say how a trial ended."""
        over = sum(t.state != "running" for t in self._study.trials)
        if not console.is_terminal:
            log.info(
                "trial %d: %s%s (%d of %d)",
                trial.number,
                STATES[trial.state],
                "".join(f", {name} {100 * value:.1f}" for name, value in trial.last.items()),
                over,
                self._total,
            )

    def _table(self) -> Table:
        minutes = (time.monotonic() - self._start) / 60
        over = sum(t.state != "running" for t in self._study.trials)
        title = f"{over} of {self._total} trials, {minutes:.1f} minutes"
        return trials_table(self._study, title, SHOWN)


def trials_table(study: Study, title: str, limit: int | None = None) -> Table:
    """The best and the running trials, for a terminal."""
    table = Table(title=title)
    for column in ("trial", "", "epochs", *(f"{name} mAP" for name in study.objectives), "changes"):
        table.add_column(column, justify="left" if column in ("", "changes") else "right")
    for trial in ranked(study)[:limit]:
        table.add_row(*_cells(study, trial))
    return table


def ranked(study: Study) -> list[Tried]:
    """Longest trained first, of those the best in the first objective; failed ones last."""
    first = study.objectives[0]
    return sorted(
        study.trials,
        key=lambda t: (t.state == "failed", -max(t.rungs, default=0), -t.last.get(first, 0.0)),
    )


def _cells(study: Study, trial: Tried) -> list[str]:
    figures = [f"{100 * trial.last[n]:.1f}" if trial.last else "" for n in study.objectives]
    changes = ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in trial.changes.items())
    says = trial.reason or changes or "as it was"
    return [
        str(trial.number),
        STATES[trial.state],
        str(max(trial.rungs, default="")),
        *figures,
        says,
    ]


def render(study: Study, command: str, counts: dict[str, Any]) -> dict[str, bytes]:
    """File name -> content: the trials as Markdown and CSV, and what pictures can be drawn."""
    files = {TABLE: _markdown(study, command, counts).encode(), CSV: _csv(study).encode()}
    if len(study.full()) > 1:
        files["parallel-coordinates.png"] = png_bytes(parallel_coordinates(study))
    importance = study.importance()
    if importance:
        files["importance.png"] = png_bytes(importance_bars(importance))
    if study.members:
        files["population.png"] = png_bytes(population_picture(study))
    if len(study.objectives) > 1 and study.full():
        files["pareto.png"] = png_bytes(pareto_picture(study))
    return files


def _markdown(study: Study, command: str, counts: dict[str, Any]) -> str:
    packages = environment()["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "ray", "optuna"))
    sizes = {name: counts[name]["images"] for name in counts if name != "quarantined"}
    front = [str(trial.number) for trial in study.front()]
    lines = [
        "# Search",
        "",
        f"`{command}`; {date.today()}. {versions}; {platform.machine()}. mAP in percent with "
        "masks, on identities held out of the training set: "
        + ", ".join(f"{name} {size}" for name, size in sizes.items() if size)
        + f". Best: trial {', '.join(front) or 'none'}.",
        "",
    ]
    head = ["trial", "state", "epochs", *study.objectives, "changes"]
    lines += [_row(head), _row(["---:", "---", "---:", *["---:"] * len(study.objectives), "---"])]
    lines += [_row(_cells(study, trial)) for trial in ranked(study)]
    importance = study.importance()
    if importance:
        first = study.objectives[0]
        lines += ["", f"Share of the variation of {first} that a key explains (PED-ANOVA):", ""]
        lines += [f"- {key}: {share:.2f}" for key, share in importance.items()]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _csv(study: Study) -> str:
    text = io.StringIO(newline="")
    keys = list(study.start)
    writer = csv.writer(text)
    writer.writerow(["trial", "state", "epochs", *study.objectives, *keys, "reason"])
    for trial in study.trials:
        values = study.start | trial.changes
        figures = [trial.last.get(name, "") for name in study.objectives]
        epochs = max(trial.rungs, default="")
        row = [trial.number, trial.state, epochs, *figures, *(values[k] for k in keys)]
        writer.writerow([*row, trial.reason])
    return text.getvalue()


def importance_bars(importance: dict[str, float]) -> Image:
    """A bar a key, the most important one on top."""
    figure, (axes,) = panels_of(1, width=6.5, height=0.32 * len(importance) + 1.2)
    keys = list(importance)[::-1]
    axes.barh(
        [plain(key) for key in keys], [100 * importance[key] for key in keys], color="#0072B2"
    )
    axes.set(xlabel="of the objective's variation (%)")
    axes.grid(axis="y", visible=False)
    return drawn(figure)


def parallel_coordinates(study: Study) -> Image:
    """A line a fully trained trial through the values of its keys, coloured by the objective."""
    trials = sorted(study.full(), key=lambda t: t.last[study.objectives[0]])
    keys = study.keys
    figure, (axes,) = panels_of(1, width=1.05 * len(keys) + 2, height=4.6)
    goals = 100 * np.array([trial.last[study.objectives[0]] for trial in trials])
    shades = axes.scatter([], [], c=[], cmap="viridis", vmin=goals.min(), vmax=goals.max())
    for trial, goal in zip(trials, goals, strict=True):
        values = study.start | trial.changes
        heights = [study.height(key, values[key]) for key in keys]
        best, start = trial is trials[-1], trial.unchanged
        axes.plot(
            heights,
            "--" if start else "-",
            color=shades.to_rgba(goal),
            lw=3 if best else 1.5,
            marker="o",
            ms=4,
            label="best" if best else "as it was" if start else None,
        )
    names = [plain(key.replace(".", ".\n")) for key in keys]
    axes.set_xticks(range(len(keys)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks([0, 1], ["lowest", "highest"])
    axes.set_ylim(-0.08, 1.08)
    axes.grid(axis="y", visible=False)
    figure.colorbar(shades, ax=axes, label=f"{study.objectives[0]} mAP (%)")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.12), ncols=2)
    return drawn(figure)


def population_picture(study: Study) -> Image:
    """Every member after every part of the training; copies of others by lines of their own."""
    figure, (axes,) = panels_of(1, width=6, height=4)
    first = study.objectives[0]
    for trial in study.trials:
        if not trial.last:
            continue
        x, y = max(trial.rungs), 100 * trial.last[first]
        color = "#D55E00" if trial.unchanged else "#0072B2"
        axes.plot(x, y, "s" if trial.unchanged else "o", color=color)
        if trial.parent is None:
            continue
        before = study.trials[trial.parent]
        copied = before.number != trial.number - study.members
        axes.plot(
            [max(before.rungs), x], [100 * before.last[first], y], "--" if copied else "-",
            color="#009E73" if copied else color, lw=1.5,
        )  # fmt: skip
    for label, style, color in (
        ("as it was", "-s", "#D55E00"), ("goes on", "-o", "#0072B2"),
        ("copy, at other rates", "--", "#009E73"),
    ):  # fmt: skip
        axes.plot([], [], style, color=color, label=label)
    axes.set_xticks(study.rungs)
    axes.set(xlabel="epochs", ylabel=f"{first} mAP (%)")
    axes.legend(frameon=False)
    return drawn(figure)


def pareto_picture(study: Study) -> Image:
    """All fully trained trials by two objectives; those that none beats in both are joined."""
    figure, (axes,) = panels_of(1, width=5, height=4)
    one, two = study.objectives[:2]

    def points(trials: list[Tried]) -> tuple[list[float], list[float]]:
        return [100 * t.last[one] for t in trials], [100 * t.last[two] for t in trials]

    axes.plot(*points(study.full()), "o", color="#7A7A7A", label="trials")
    axes.plot(*points(study.front()), "-o", color="#0072B2", lw=2, label="Pareto front")
    axes.plot(*points([t for t in study.full() if t.unchanged]), "s", color="#D55E00",
              label="as it was")  # fmt: skip
    for trial in study.front():
        x, y = points([trial])
        axes.annotate(str(trial.number), (x[0], y[0]), (5, 5), textcoords="offset points")
    axes.set(xlabel=f"{one} mAP (%)", ylabel=f"{two} mAP (%)")
    axes.legend(frameon=False)
    return drawn(figure)
