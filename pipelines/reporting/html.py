"""The report of a run: one self-contained HTML file, and its results as terminal tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from dpmpp_core.data.synthesis import CLEAN_QUERIES
from dpmpp_core.gallery.html import load_page_templates, write_page
from dpmpp_core.percent import format_percent
from dpmpp_core.retrieval.masks import DEAD_MASK
from pipelines.reporting.failures import FailureCard
from pipelines.reporting.gain_figure import draw_mask_gain
from pipelines.reporting.tables import (
    BASELINES,
    METRIC_LABELS,
    TRACKLET_COLUMNS,
    build_camera_grids,
    build_headline_rows,
    build_interval_rows,
    build_occlusion_rows,
    build_tracklet_rows,
    label_queries,
)
from pipelines.reporting.verdict import build_verdict
from pipelines.runtime.stage import Stage

Image = NDArray[np.uint8]
Metrics = Mapping[str, Mapping[str, Any]]

LISTED_FILES = 100
MISSING: Mapping[str, float] = {}


class Quarantined(NamedTuple):
    """A file that was left out, the class of the reason, and its detail."""

    path: str
    reason: str
    detail: str


class Picture(NamedTuple):
    """A picture of the report: PNG bytes or RGB uint8 [H, W, 3]; folded ones open with a click."""

    title: str
    caption: str
    image: bytes | Image
    folded: bool = False


class Failures(NamedTuple):
    """How many queries of a set have another person first, of how many, and the worst."""

    failed: int
    queries: int
    cards: Sequence[FailureCard]


class Link(NamedTuple):
    """A place: `target` becomes a link if it is an http(s) or file URI."""

    label: str
    text: str
    target: str = ""


class Command(NamedTuple):
    """A command, and what it is for."""

    purpose: str
    words: str


@dataclass(frozen=True)
class ReportData:
    """Content of the report. Everything except the title may be empty.

    Attributes:
        title: Heading of the page.
        byline: Date, version and data, below the heading.
        facts: Label -> value (configuration, data folder, counts, seed, versions, weights).
        metrics: Query set -> what `dpmpp_core.retrieval.evaluate` returns; and, under "baselines",
            query set -> {"histogram": {...}, "chance": {...}}. Fractions in [0, 1].
        mask_statistics: Query set -> space -> what `mask_statistics` returns for it.
        intervals: Query set -> what `compute_intervals` returns.
        persons: Query set -> number of persons among its queries.
        failures: Query set -> its worst failures.
        visibility: Query set -> `body_auc` of the visibility head, where the truth is known.
        strata: Query set -> what `evaluate_by_occlusion` (under "hidden") and
            `evaluate_by_camera_pair` (under "cameras") return.
        multi_shot: Query set -> what `evaluate_tracklets` returns.
        stages: The finished stages.
        quarantine: Files that were left out.
        thumbnails: Path of a quarantined file -> RGB picture, None where it cannot be decoded.
        pictures: Figures in their order.
        warnings: Alarms of the training.
        links: Places of the run's files.
        commands: What to do next.
    """

    title: str
    byline: Sequence[str] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    mask_statistics: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    intervals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    persons: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, Failures] = field(default_factory=dict)
    visibility: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    strata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    multi_shot: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stages: Sequence[Stage] = ()
    quarantine: Sequence[Quarantined] = ()
    thumbnails: Mapping[str, Image | None] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    warnings: Sequence[str] = ()
    links: Sequence[Link] = ()
    commands: Sequence[Command] = ()


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
    """Write the report as one HTML file, and create its folder; OSError if that fails.

    Pictures are embedded, nothing is loaded from elsewhere, no script runs. Above stand the verdict
    and what anybody needs; all that was measured is folded below.
    """
    rows = build_result_rows(report.metrics)
    page = (
        load_templates()
        .get_template("report.html.j2")
        .render(
            report=report,
            verdict=build_verdict(report.metrics, report.intervals, report.persons),
            contents=_list_contents(report),
            headline=build_headline_rows(report.metrics, report.intervals),
            gain=_draw_gain(report.intervals),
            label_queries=label_queries,
            sets={name: [row for row in rows if row.query_set == name] for name in _sets(report)},
            controls=[_control(name, report.metrics[name]) for name in _sets(report)],
            intervals=[
                *build_interval_rows(_label(report.intervals)),
                *build_occlusion_rows(_label(report.strata)),
            ],
            cameras=build_camera_grids(report.strata),
            shots=build_tracklet_rows(_label(report.multi_shot)),
            shot_columns=TRACKLET_COLUMNS,
            reasons=Counter(row.reason for row in report.quarantine).most_common(),
            examples=[r for r in report.quarantine if report.thumbnails.get(r.path) is not None],
            listed=LISTED_FILES,
            dead_mask=DEAD_MASK,
        )
    )
    write_page(path, page)


def load_templates() -> jinja2.Environment:
    """Load the templates of pages, which escape their values."""
    environment = load_page_templates(Path(__file__).parent / "templates")
    environment.filters["duration"] = _duration
    environment.filters["anchor"] = build_anchor
    environment.filters["ordinal"] = _ordinal
    environment.tests["link"] = _is_link
    return environment


def build_result_rows(metrics: Metrics) -> list[Row]:
    """Return the results of all query sets, one row per metric."""
    rows = []
    for name, result in metrics.items():
        if name == BASELINES:
            continue
        sources = {**result, **metrics.get(BASELINES, {}).get(name, {})}
        for key, figure in METRIC_LABELS.items():
            masked, unmasked, histogram, chance = (
                sources.get(mode, MISSING).get(key)
                for mode in ("masked", "unmasked", "histogram", "chance")
            )
            rows.append(
                Row(
                    query_set=name,
                    figure=figure,
                    masked=format_percent(masked),
                    unmasked=format_percent(unmasked),
                    difference=_points(masked, unmasked),
                    histogram=format_percent(histogram),
                    chance=format_percent(chance),
                )
            )
    return rows


def build_results_table(metrics: Metrics) -> Table:
    """Build a table of the results for the terminal."""
    table = Table(title="Results")
    for i, column in enumerate(
        ("query set", "%", "with mask", "no mask", "difference", "histogram", "chance")
    ):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
    last = None
    for row in build_result_rows(metrics):
        if last is not None and row.query_set != last:
            table.add_section()
        shown = "" if row.query_set == last else escape(row.query_set)
        table.add_row(shown, *row[1:], style="bold" if row.figure == "mAP" else None)
        last = row.query_set
    return table


def build_robustness_table(measured: Mapping[str, Mapping[str, Any]]) -> Table:
    """Build a table of `robustness.json`, by part and share hidden, for the terminal."""
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


def build_anchor(title: str) -> str:
    """Return a title as the name of a file or of a place on a page."""
    return "".join(c if c.isalnum() else "-" for c in title.lower())


def _list_contents(report: ReportData) -> list[str]:
    """Return the titles of the parts of the page that are not folded, in their order."""
    parts = {
        "Results": _sets(report),
        "Worst failures": report.failures,
        **{picture.title: True for picture in report.pictures if not picture.folded},
        "Files and next commands": report.links or report.commands,
        "Files left out": True,
        "For researchers": _sets(report) or report.pictures or report.stages or report.facts,
    }
    return [title for title, shown in parts.items() if shown]


def _draw_gain(intervals: Mapping[str, Mapping[str, Any]]) -> Image | None:
    return draw_mask_gain(intervals) if any("gain" in x for x in intervals.values()) else None


def _label(sets: Metrics) -> Metrics:
    return {label_queries(name): values for name, values in sets.items()}


def _is_link(target: str) -> bool:
    return target.startswith(("http://", "https://", "file://"))


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number:,}{ending or 'th'}"


def _sets(report: ReportData) -> list[str]:
    return [name for name in report.metrics if name != BASELINES]


def _control(name: str, result: Mapping[str, Any]) -> Control:
    own, permuted, static = (
        result.get(mode, MISSING).get("mAP") for mode in ("masked", "permuted", "static")
    )
    shown = [format_percent(value) for value in (own, permuted, static)]
    return Control(label_queries(name), shown[0], shown[1], shown[2], _points(own, permuted))


def _points(value: float | None, other: float | None) -> str:
    gain = None if value is None or other is None else value - other
    return format_percent(gain, signed=True)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
