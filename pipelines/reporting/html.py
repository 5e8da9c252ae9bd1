"""The report of a run: one HTML file that needs nothing else, and its figures as plain tables."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from dpmpp_core.data.files import write_atomically
from dpmpp_core.percent import format_percent
from dpmpp_core.retrieval.masks import DEAD_MASK
from pipelines.reporting.figures import CLEAN_QUERIES, loss_curves, png_bytes
from pipelines.reporting.tables import (
    SHOT_COLUMNS,
    camera_grids,
    hidden_rows,
    interval_rows,
    shot_rows,
)

Image = NDArray[np.uint8]
Metrics = Mapping[str, Mapping[str, Any]]

FIGURES = {
    "mAP": "mAP",
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
    "mINP": "mINP",
}
BASELINES = "baselines"
LISTED = 100
MISSING: Mapping[str, float] = {}


class StageTime(NamedTuple):
    """One stage of the run: seconds it took; reused = taken over from an earlier run."""

    name: str
    seconds: float
    reused: bool


class Quarantined(NamedTuple):
    """A file that was left out, why (a class of reasons), and what exactly was found."""

    path: str
    reason: str
    detail: str


class Picture(NamedTuple):
    """A picture of the report: PNG bytes or RGB uint8 [H, W, 3]."""

    title: str
    caption: str
    image: bytes | Image


@dataclass(frozen=True)
class ReportData:
    """All that the report shows. Everything but the title may be empty.

    facts: label -> value (configuration, data folder, counts, seed, versions, weights, duration).
    metrics: query set -> what `dpmpp_core.retrieval.evaluate` returns; and, under "baselines",
        query set -> {"histogram": {...}, "chance": {...}}. Fractions in [0, 1].
    mask_statistics: query set -> space -> what `mask_statistics` returns for it.
    intervals, strata, multi_shot: query set -> what `compute_intervals`,
        `evaluate_by_occlusion` and `evaluate_by_camera_pair` (under "hidden", "cameras"), and
        `evaluate_tracklets` of `dpmpp_core.retrieval` return.
    thumbnails: path of a quarantined file -> RGB picture, None where it cannot be decoded.
    pictures: shown in this order.
    history: one mapping an epoch, "epoch" and the losses.
    warnings: sentences on what went wrong in training.
    """

    title: str
    facts: Mapping[str, object] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    mask_statistics: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    intervals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    strata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    multi_shot: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stages: Sequence[StageTime] = ()
    quarantine: Sequence[Quarantined] = ()
    thumbnails: Mapping[str, Image | None] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    history: Sequence[Mapping[str, float]] = ()
    warnings: Sequence[str] = ()


class Row(NamedTuple):
    """One figure of one query set; the numbers are text, in percent."""

    query_set: str
    figure: str
    masked: str
    unmasked: str
    difference: str
    histogram: str
    chance: str


class Control(NamedTuple):
    """mAP of one query set in percent: own mask, another query's, the mean one; own - another's."""

    query_set: str
    own: str
    permuted: str
    static: str
    gain: str


def write_report(path: Path, report: ReportData) -> None:
    """Writes the report as one HTML file; makes the folder. Raises OSError if it cannot be written.

    Pictures are embedded, nothing is loaded from elsewhere, no script runs.
    """
    rows = result_rows(report.metrics)
    page = (
        templates()
        .get_template("report.html.j2")
        .render(
            report=report,
            sets={name: [row for row in rows if row.query_set == name] for name in _sets(report)},
            controls=[_control(name, report.metrics[name]) for name in _sets(report)],
            sure=[*interval_rows(report.intervals), *hidden_rows(report.strata)],
            cameras=camera_grids(report.strata),
            shots=shot_rows(report.multi_shot),
            shot_columns=SHOT_COLUMNS,
            losses=loss_curves(report.history) if report.history else None,
            reasons=Counter(row.reason for row in report.quarantine).most_common(),
            examples=[r for r in report.quarantine if report.thumbnails.get(r.path) is not None],
            listed=LISTED,
            dead_mask=DEAD_MASK,
        )
    )
    write_page(path, page)


def templates() -> jinja2.Environment:
    """The templates of pages; what they show is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["duration"] = _duration
    return environment


def write_page(path: Path, page: str) -> None:
    """Write a page; a reader never sees half of it. Raises OSError if it cannot be written."""
    with write_atomically(path) as file:
        file.write_text(page, encoding="utf-8")


def result_rows(metrics: Metrics) -> list[Row]:
    """The results of all query sets, a row a figure."""
    rows = []
    for name, result in metrics.items():
        if name == BASELINES:
            continue
        floor = metrics.get(BASELINES, {}).get(name, {})
        for key, figure in FIGURES.items():
            masked, unmasked = (
                result.get(mode, MISSING).get(key) for mode in ("masked", "unmasked")
            )
            rows.append(
                Row(
                    name,
                    figure,
                    format_percent(masked),
                    format_percent(unmasked),
                    _points(masked, unmasked),
                    format_percent(floor.get("histogram", MISSING).get(key)),
                    format_percent(floor.get("chance", MISSING).get(key)),
                )
            )
    return rows


COLUMNS = ("query set", "%", "with mask", "no mask", "difference", "histogram", "chance")


def results_table(metrics: Metrics) -> Table:
    """The results for the terminal."""
    table = Table(title="Results")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
    last = None
    for row in result_rows(metrics):
        if last is not None and row.query_set != last:
            table.add_section()
        shown = "" if row.query_set == last else escape(row.query_set)
        table.add_row(shown, *row[1:], style="bold" if row.figure == "mAP" else None)
        last = row.query_set
    return table


def robustness_table(measured: Mapping[str, Mapping[str, Any]]) -> Table:
    """Figures by part and share of the person hidden, for the terminal, as in robustness.json."""
    table = Table(title="Robustness")
    for i, column in enumerate(
        ("part", "hidden (%)", "queries", "mAP with mask", "no mask", "rank-1 with mask", "no mask")
    ):
        table.add_column(column, justify="right" if i > 1 else "left")
    parts = {part: bands for part, bands in measured.items() if part != CLEAN_QUERIES}
    for part, bands in {"": {CLEAN_QUERIES: measured[CLEAN_QUERIES]}, **parts}.items():
        for i, (name, values) in enumerate(bands.items()):
            keys = ("mAP_masked", "mAP_unmasked", "rank1_masked", "rank1_unmasked")
            figures = (format_percent(values[key]) for key in keys)
            table.add_row("" if i else part, name, f"{values['queries']:,}", *figures)
        table.add_section()
    return table


def results_markdown(metrics: Metrics) -> str:
    """The results as a Markdown table, ending in a newline."""
    lines = [COLUMNS, ("---", "---", *["---:"] * (len(COLUMNS) - 2)), *result_rows(metrics)]
    cells = [[cell.replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _sets(report: ReportData) -> list[str]:
    return [name for name in report.metrics if name != BASELINES]


def _control(name: str, result: Mapping[str, Any]) -> Control:
    own, permuted, static = (
        result.get(mode, MISSING).get("mAP") for mode in ("masked", "permuted", "static")
    )
    return Control(
        name,
        format_percent(own),
        format_percent(permuted),
        format_percent(static),
        _points(own, permuted),
    )


def _points(value: float | None, other: float | None) -> str:
    gain = None if value is None or other is None else value - other
    return format_percent(gain, signed=True)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _data_uri(image: bytes | Image) -> str:
    """A picture as text: PNG, which keeps plots crisp; JPEG where it saves half (photographs)."""
    if isinstance(image, bytes):
        data, kind = image, "png"
    else:
        data, kind = png_bytes(image), "png"
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
        jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
        if 2 * len(jpeg) < len(data):
            data, kind = jpeg, "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
