"""Results as a person reads them on a terminal."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.report import results_table, robustness_table

SHOWN = 20


def show_result(result: dict[str, Any]) -> None:
    """The tables and places of a pipeline's result."""
    console = Console()
    show_data(result)
    stages = Table(title="Stages")
    for column in ("stage", "seconds", ""):
        stages.add_column(column, justify="right" if column == "seconds" else "left")
    for stage in result["stages"]:
        reused = "reused" if stage["reused"] else ""
        stages.add_row(stage["name"], f"{stage['seconds']:.1f}", reused)
    console.print(stages)
    if "metrics" in result:
        console.print(results_table(result["metrics"]))
    if "robustness" in result:
        console.print(robustness_table(result["robustness"]))
    places = {
        "report": result.get("report"),
        "model": result.get("model_uri") or result.get("model"),
        "MLflow": f"mlflow ui --backend-store-uri {result['tracking_uri']}",
    }
    for name, place in places.items():
        if place:
            console.print(f"{name + ':':8}{place}", soft_wrap=True, highlight=False, markup=False)


def show_data(result: dict[str, Any]) -> None:
    """Counts, quarantined files by name, warnings."""
    console = Console()
    table = Table(title="Data")
    counts = {name: v for name, v in result["counts"].items() if name != "quarantined"}
    columns = list(dict.fromkeys(key for values in counts.values() for key in values))
    for column in ("set", *columns):
        table.add_column(column, justify="left" if column == "set" else "right")
    for name, values in counts.items():
        table.add_row(name, *(f"{values.get(column, 0):,}" for column in columns))
    console.print(table)
    rows = result["quarantined"]
    if rows:
        reasons = Counter(row["reason"] for row in rows)
        listed = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        console.print(f"{len(rows)} left out: {listed}", highlight=False)
    for row in rows[:SHOWN]:
        line = f"  {row['path']}: {row['reason']} ({row['detail']})"
        console.print(escape(line), highlight=False, soft_wrap=True)
    if len(rows) > SHOWN:
        console.print(f"  ... and {len(rows) - SHOWN} more, in quarantine.parquet", highlight=False)
    for warning in result["warnings"]:
        console.print(f"warning: {escape(warning)}", highlight=False, soft_wrap=True)


def show_demo(result: dict[str, Any]) -> None:
    """What was generated, and where."""
    listed = ", ".join(f"{number} in {name}" for name, number in result["images"].items())
    Console().print(f"{result['root']}: {listed}, {result['seconds']:.1f} s", highlight=False)


def show_synthesis(result: dict[str, Any]) -> None:
    """What was written, by band."""
    console = Console()
    made = result["synthesis"]
    table = Table(title="Hidden")
    for column in ("percent", "pictures", "not possible", "mean hidden"):
        table.add_column(column, justify="left" if column == "percent" else "right")
    for name, band in made["bands"].items():
        mean = "" if band["hidden_mean"] is None else f"{100 * band['hidden_mean']:.1f}"
        table.add_row(name, f"{band['images']:,}", f"{band['missed']:,}", mean)
    console.print(table)
    listed = ", ".join(f"{number:,} in {name}" for name, number in made["files"].items())
    console.print(f"{made['root']}: {listed}", highlight=False, markup=False, soft_wrap=True)
