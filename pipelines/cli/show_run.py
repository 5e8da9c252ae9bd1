"""The end of a run at a terminal: a short result, and what to do now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from dpmpp_core.percent import format_percent
from dpmpp_core.redaction import one_line
from pipelines.cli.show import describe_tracking, show_left_out

QUERY_SETS = {"occluded": "occluded", "holistic": "whole"}  # in a user's words


def show_summary(result: dict[str, Any]) -> None:
    """Print the result of a training in a few lines, then the next steps."""
    console = Console()
    people, stages = result["counts"]["train"], result["stages"]
    seconds = sum(stage["seconds"] for stage in stages if not stage["reused"])
    reused = sum(stage["reused"] for stage in stages)
    show_left_out(console, result["quarantined"], listed=0)
    for warning in result["warnings"]:
        _print_line(console, f"warning: {warning}")
    _print_line(
        console,
        f"trained on {people['identities']:,} persons, {people['images']:,} images: "
        f"{seconds:,.0f} s" + (f" ({reused} of {len(stages)} stages reused)" if reused else ""),
    )
    if "metrics" in result:
        _print_line(console, describe_metrics(result["metrics"]))
    if "model_uri" in result:
        _print_line(console, f"registered: {result['model_uri']}")
    _print_line(console, f"MLflow: {describe_tracking(result['tracking_uri'])}")
    show_next_steps(result)


def show_next_steps(result: dict[str, Any]) -> None:
    """Print what to do with a trained model, as commands with its real paths."""
    console = Console()
    _print_line(console, "What now:")
    for what, command in _list_steps(result).items():
        _print_line(console, f"{what}:", indent=2)
        _print_line(console, command, indent=4)


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """Return one line of mAP in percent: occluded and whole queries, with masks and without."""
    parts = [
        f"{QUERY_SETS[name]} queries {format_percent(values['masked']['mAP'])} with masks, "
        f"{format_percent(values['unmasked']['mAP'])} without"
        for name, values in metrics.items()
        if name in QUERY_SETS  # baselines stand there too
    ]
    return f"mAP (%): {'; '.join(parts)}"


def _list_steps(result: Mapping[str, Any]) -> dict[str, str]:
    from pipelines.runtime.storage import shorten_path

    steps = {step["what"]: step["command"] for step in result["next"]}
    if "report" not in result:
        return steps
    report = result["report"]
    return {"open the report": report if "://" in report else shorten_path(report)} | steps


def _print_line(console: Console, text: str, indent: int = 0) -> None:
    line = " " * indent + one_line(text)
    console.print(line, highlight=False, markup=False, soft_wrap=True)
