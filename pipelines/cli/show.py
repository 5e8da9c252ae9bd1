"""Results for people at a terminal."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpmpp_core.percent import format_percent
from dpmpp_core.redaction import one_line

MAX_LISTED_FILES = 20
WIDEST = 1000  # characters of a table that is not to be broken
MODEL_FIGURES = {"occluded": "mAP OCCLUDED", "holistic": "mAP WHOLE"}  # by query set


def show_result(result: dict[str, Any]) -> None:
    """Print the tables of a pipeline's result, and where its files are."""
    from pipelines.reporting.html import build_results_table, build_robustness_table

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
        console.print(build_results_table(result["metrics"]))
        show_breakdowns(result)
    if "robustness" in result:
        console.print(build_robustness_table(result["robustness"]))
    places = {
        "report": result.get("report"),
        "model": result.get("model_uri") or result.get("model"),
        "MLflow": describe_tracking(result["tracking_uri"]),
    }
    for name, place in places.items():
        if place:
            console.print(f"{name + ':':8}{place}", soft_wrap=True, highlight=False, markup=False)


def describe_tracking(uri: str) -> str:
    """Return the address of an MLflow server, or the command that shows a database."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def show_breakdowns(result: dict[str, Any]) -> None:
    """Print confidence intervals, and figures by subset of queries."""
    from pipelines.reporting.tables import (
        build_intervals_table,
        build_tracklet_rows,
        build_tracklets_table,
        summarise_cameras,
    )

    console = Console()
    console.print(build_intervals_table(result["intervals"], result["strata"]))
    for name, tables in result["strata"].items():
        line = summarise_cameras(name, tables)
        if line:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if "multi_shot" not in result:
        return
    if build_tracklet_rows(result["multi_shot"]):
        console.print(build_tracklets_table(result["multi_shot"]))
    else:
        console.print("no person has several queries of one camera: no tracklets to measure")


def show_data(result: dict[str, Any]) -> None:
    """Print counts, quarantined files by name, warnings."""
    console = Console()
    table = Table(title="Data")
    counts = {name: v for name, v in result["counts"].items() if name != "quarantined"}
    columns = list(dict.fromkeys(key for values in counts.values() for key in values))
    for column in ("set", *columns):
        table.add_column(column, justify="left" if column == "set" else "right")
    for name, values in counts.items():
        table.add_row(name, *(f"{values.get(column, 0):,}" for column in columns))
    console.print(table)
    show_left_out(console, result["quarantined"])
    for warning in result["warnings"]:
        console.print(f"warning: {escape(one_line(warning))}", highlight=False, soft_wrap=True)
    show_hint(console, result)


def show_hint(console: Console, result: dict[str, Any]) -> None:
    """Print the question whether pictures are whole scenes, if there is one."""
    if result.get("hint"):
        console.print(escape(one_line(result["hint"])), highlight=False, soft_wrap=True)


def show_left_out(
    console: Console, rows: Sequence[dict[str, Any]], listed: int = MAX_LISTED_FILES
) -> None:
    """Print how many files are quarantined for which reason, and the first `listed` by name."""
    if rows:
        reasons = Counter(row["reason"] for row in rows)
        why = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        console.print(f"{len(rows)} left out: {why}", highlight=False)
    for row in rows[:listed]:
        line = f"{row['path']}: {row['reason']} ({row['detail']})"
        console.print(escape(f"  {one_line(line)}"), highlight=False, soft_wrap=True)
    if len(rows) > listed > 0:
        console.print(
            f"  ... and {len(rows) - listed} more, in quarantine.parquet", highlight=False
        )


def show_keys(result: dict[str, Any]) -> None:
    """Print what each configuration key means, and its value in a recipe."""
    console = Console()
    for key in result["keys"]:
        stages = ", ".join(key["stages"])
        lines = (
            f"  {key['description']}",
            f"  {key['type']}" + (f": {key['allowed']}" if key["allowed"] else ""),
            f"  default {json.dumps(key['default'])}; {result['config']} has "
            f"{json.dumps(key['value'])}; "
            + (f"read by: {stages}" if stages else "changes no result"),
        )
        console.print(key["key"], style="bold", highlight=False, markup=False)
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_models(result: dict[str, Any]) -> None:
    """Print a table of models by the names that `--model` takes; names are never broken."""
    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "KIND", "TRAINED ON", "DATE", *MODEL_FIGURES.values()):
        table.add_column(column, justify="right" if "mAP" in column else "left", no_wrap=True)
    for model in result["models"]:
        kind = " ".join((model["kind"], *(f"@{alias}" for alias in model["aliases"])))
        figures = (100 * model["mAP"][n] if n in model["mAP"] else None for n in MODEL_FIGURES)
        cells = (model["name"], kind, model["trained_on"], model["date"])
        table.add_row(*(escape(one_line(c)) for c in cells), *map(_percent, figures))
    Console(width=WIDEST, highlight=False).print(table)
    Console().print(
        "mAP (%): of the test persons of the same data, with masks; - = not known",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def show_demo(result: dict[str, Any]) -> None:
    """Print what was generated, and where."""
    listed = ", ".join(f"{number} in {name}" for name, number in result["images"].items())
    Console().print(f"{result['root']}: {listed}, {result['seconds']:.1f} s", highlight=False)


def show_export(result: dict[str, Any]) -> None:
    """Print the file, its inputs and outputs, and its largest difference from the model."""
    console = Console()
    spaces = ", ".join(f"{name} {width}" for name, width in result["spaces"].items())
    for line in (
        f"{result['onnx']}: {result['bytes'] / 1e6:.1f} MB",
        f"in: uint8 [N, {result['height']}, {result['width']}, 3] RGB; out: features and masks of "
        f"{spaces}",
        f"{result['images']} images: within {result['max_abs_difference']:.1e} of the model",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_synthesis(result: dict[str, Any]) -> None:
    """Print what was written, by occlusion bin."""
    console = Console()
    synthesis = result["synthesis"]
    table = Table(title="Occluded")
    for column in ("percent", "pictures", "not possible", "mean occluded"):
        table.add_column(column, justify="left" if column == "percent" else "right")
    for name, band in synthesis["bands"].items():
        mean = format_percent(band["hidden_mean"])
        table.add_row(name, f"{band['images']:,}", f"{band['missed']:,}", mean)
    console.print(table)
    listed = ", ".join(f"{number:,} in {name}" for name, number in synthesis["files"].items())
    console.print(f"{synthesis['root']}: {listed}", highlight=False, markup=False, soft_wrap=True)


def show_protocols(listed: dict[str, Any]) -> None:
    """Print protocols: data, published range, what a seed needs."""
    from dpmpp_core.protocols import FIGURES, GPU, GPU_FLOPS

    console = Console()
    table = Table(title="Published protocols")
    for column in ("protocol", "rank-1", "mAP", "hours", "GPU GB"):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    for name, values in listed.items():
        brackets = (_format_bracket(values["bracket"][figure]) for figure in FIGURES)
        hours = f"{values['estimated']['hours']:.1f}"
        memory = f"{values['estimated']['gpu_gigabytes']:.0f}"
        table.add_row(name, *brackets, hours, memory)
    console.print(table)
    for name, values in listed.items():
        console.print(f"{name}: {values['needed']}", highlight=False, soft_wrap=True, markup=False)
    console.print(
        "Rank-1 and mAP (%): least and largest published of earlier methods, 256x128, no "
        "re-ranking; - = none available. Hours of a seed and memory: estimates, not measured, for "
        f"one {GPU}, that sustains {GPU_FLOPS / 1e12:.0f} TFLOP/s.",
        highlight=False,
        soft_wrap=True,
    )


def show_reproduction(result: dict[str, Any]) -> None:
    """Print our figures, the published ones, and the verdict."""
    from dpmpp_core.protocols import FIGURES

    console = Console()
    name = f"{result['title']}, {result['queries']} queries (%)"
    table = Table(title=name, min_width=len(name) + 2)
    for column in ("", "rank-1", "mAP"):
        table.add_column(column, justify="right" if column else "left")
    for run in result["runs"]:
        table.add_row(f"seed {run['seed']}", *(f"{run[figure]:.1f}" for figure in FIGURES))
    table.add_section()
    ours = (_format_spread(result["ours"][figure]) for figure in FIGURES)
    table.add_row("ours", *ours, style="bold")
    table.add_section()
    for entry in result["published"]:
        table.add_row(escape(entry["method"]), *(_percent(entry[figure]) for figure in FIGURES))
    console.print(table)
    for run in result["runs"]:
        for sentence in run["first_epoch"]["outside"]:
            line = f"warning: seed {run['seed']}: {sentence}"
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    parts = []
    for figure, name in zip(FIGURES, ("rank-1", "mAP"), strict=True):
        verdict, bracket = result["verdict"][figure], result["bracket"][figure]
        where = f" the published {_format_bracket(bracket)}" if bracket else " published available"
        parts.append(f"{name} {verdict}{where}")
    console.print(f"verdict: {'; '.join(parts)}", highlight=False, soft_wrap=True)
    if result["caveats"]:
        listed = "; ".join(result["caveats"])
        line = f"but not a fair comparison: {listed}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _format_bracket(bounds: Sequence[float] | None) -> str:
    return "-" if bounds is None else f"{bounds[0]:.1f}-{bounds[1]:.1f}"


def _format_spread(values: dict[str, Any]) -> str:
    spread = "" if values["std"] is None else f" ± {values['std']:.1f}"
    return f"{values['mean']:.1f}{spread}"


def show_ablation(result: dict[str, Any]) -> None:
    """Print mean and spread of each variant, and where the whole table is."""
    from pipelines.reporting.ablation_table import format_mean_std

    console = Console()
    table = Table(title=result["ablation"])
    sets = list(next(iter(result["variants"].values()), {}))
    for i, column in enumerate(("variant", "n", *(f"{name} mAP" for name in sets))):
        table.add_column(column, justify="right" if i else "left")
    for name, measured in result["variants"].items():
        values = [measured[query_set]["masked"]["mAP"] for query_set in sets]
        table.add_row(escape(name), str(len(values[0])), *map(format_mean_std, values))
    console.print(table)
    for trial, why in result["failed"].items():
        console.print(f"failed: {trial}: {why}", markup=False)
    console.print(f"table: {result['table']}", soft_wrap=True, highlight=False, markup=False)


def show_tuning(result: dict[str, Any]) -> None:
    """Print the result of a search, and where its files are."""
    console = Console()
    names = result["objectives"]
    table = Table(title=f"{len(result['trials'])} trials")
    for column in ("", *(f"{name} mAP" for name in names)):
        table.add_column(column, justify="right" if column else "left")
    for label, values in {"as it was": result["start"], "best": result["best"] or {}}.items():
        table.add_row(label, *(f"{100 * values[n]:.1f}" if values else "" for n in names))
    console.print(table)
    for key, value in (result["best_changes"] or {}).items():
        console.print(f"  {key}: {value}", highlight=False, markup=False)
    if result["config"]:
        words = ["demo"] if result["data"] is None else ["run", "--data", result["data"]]
        command = shlex.join(["dpmpp", *words, "--config", result["config"]])
        console.print(command, soft_wrap=True, highlight=False, markup=False)
    for place in ("folder", "tracking_uri"):
        console.print(f"{place + ':':14}{result[place]}", soft_wrap=True, highlight=False)
