"""Promotions for people at a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpmpp_core.redaction import one_line


def show_promotion(result: dict[str, Any], gate: str, explain: bool) -> None:
    """Print every check and its verdict; with `explain` as sentences, with the gate's settings."""
    from pipelines.registry.promotion import format_value

    console = Console()
    checks = result.get("checks", [])
    if explain:
        _print_explanation(console, gate, checks)
    elif checks:
        table = Table(title=f"{result['name']} version {result['version']}")
        for column in ("check", "", "value", "threshold"):
            right = column in ("value", "threshold")
            table.add_column(column, justify="right" if right else "left", no_wrap=True)
        for check in checks:
            verdict = "passed" if check["passed"] else "[bold red]failed[/]"
            cells = (format_value(check["value"]), format_value(check["threshold"]))
            table.add_row(escape(check["name"]), verdict, *cells)
        console.print(table)
        for check in checks:
            if not check["passed"]:
                _print_line(console, f"{check['name']}: {check['says']}")
    for note in result.get("notes", []):
        _print_line(console, note)
    if not result.get("refused"):
        _print_line(console, _describe_outcome(result))


def _describe_outcome(result: dict[str, Any]) -> str:
    name, version = result["name"], result["version"]
    if result["changed"]:
        before = result["previous"]
        return f"{name}: version {version} is the champion" + (
            f", version {before} the previous one" if before else ", the first one"
        )
    if result["champion"] == version:
        return f"{name}: version {version} is the champion already"
    return f"{name}: version {version} passes; nothing was changed"


def _print_explanation(console: Console, gate_name: str, checks: list[dict[str, Any]]) -> None:
    from dpmpp_core.config.gate import Gate, load_gate

    gate = load_gate(gate_name)
    for check in checks:
        mark = "passed" if check["passed"] else "FAILED"
        _print_line(console, f"{mark} {check['name']}: {check['says']}")
    if gate.reproduce is not None:
        _print_line(console, "not checked from records: images, loads, reproduces, latency")
    _print_line(console, "")
    for key, field in Gate.model_fields.items():
        value = getattr(gate, key)
        _print_line(
            console, f"{key} = {'off' if value in (None, {}) else value}: {field.description}"
        )


def _print_line(console: Console, text: str) -> None:
    console.print(one_line(text), highlight=False, markup=False, soft_wrap=True)
