"""Tables of an evaluation's intervals, strata and tracklets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from dpmpp_core.percent import NONE, format_percent

METRIC_LABELS = {"mAP": "mAP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10",
                 "mINP": "mINP"}  # fmt: skip
HEADLINE_METRICS = ("mAP", "rank1")
BASELINES = "baselines"  # among the query sets of an evaluation's metrics
FLOORS = ("histogram", "chance")
_NO_BOUNDS = {"low": None, "high": None}
FUSION_METHODS = {
    "fused": "fused",
    "single": "one frame",
    "best": "best frame",
    "mean": "plain mean",
    "late": "mean score",
}


def label_queries(name: str) -> str:
    """Return what pages call a query set."""
    return {"holistic": "whole"}.get(name, name)


class MetricWithInterval(NamedTuple):
    """mAP and rank-1 of some queries with their 95 % intervals, in percent."""

    queries: str
    number: str
    mean_ap: str
    rank1: str


class HeadlineRow(NamedTuple):
    """One metric of one query set as text, in percent, with 95 % intervals where there are any."""

    queries: str
    metric: str
    masked: str
    unmasked: str
    gain: str
    histogram: str
    chance: str


def build_headline_rows(
    metrics: Mapping[str, Mapping[str, Any]], intervals: Mapping[str, Mapping[str, Any]]
) -> list[HeadlineRow]:
    """Return mAP and rank-1 of every query set, with mask and without, next to the baselines."""
    rows = []
    for name in (name for name in metrics if name != BASELINES):
        floors = metrics.get(BASELINES, {}).get(name, {})
        for metric in HEADLINE_METRICS:
            masked, unmasked = (
                _find_bounds(metrics[name], intervals.get(name, {}), mode, metric)
                for mode in ("masked", "unmasked")
            )
            gain = intervals.get(name, {}).get("gain", {}).get(metric)
            if gain is None:
                both = masked["mean"], unmasked["mean"]
                gain = {"mean": None if None in both else both[0] - both[1], **_NO_BOUNDS}
            rows.append(
                HeadlineRow(
                    label_queries(name),
                    METRIC_LABELS[metric],
                    format_interval(masked),
                    format_interval(unmasked),
                    format_interval(gain, signed=True),
                    *(format_percent(floors.get(k, {}).get(metric)) for k in FLOORS),
                )
            )
    return rows


def _find_bounds(
    result: Mapping[str, Any], kinds: Mapping[str, Any], mode: str, metric: str
) -> Mapping[str, Any]:
    """Return a metric with its interval, or alone where it has none."""
    if mode in kinds:
        return kinds[mode][metric]
    return {"mean": result.get(mode, {}).get(metric), **_NO_BOUNDS}


def build_interval_rows(intervals: Mapping[str, Mapping[str, Any]]) -> list[MetricWithInterval]:
    """Return rows with mask, without, and of the gain, of every query set."""
    labels = {"masked": "with mask", "unmasked": "no mask", "gain": "difference"}
    return [
        MetricWithInterval(
            f"{name}, {labels[kind]}",
            "",
            *(format_interval(values[figure], kind == "gain") for figure in ("mAP", "rank1")),
        )
        for name, kinds in intervals.items()
        for kind, values in kinds.items()
    ]


def build_occlusion_rows(strata: Mapping[str, Mapping[str, Any]]) -> list[MetricWithInterval]:
    """Return rows with mask by share hidden; none where no share is known."""
    return [
        MetricWithInterval(
            f"{name}, {share} % hidden",
            f"{values['queries']:,}",
            *(format_interval(values[figure]) for figure in ("mAP", "rank1")),
        )
        for name, tables in strata.items()
        for share, values in tables["hidden"].items()
    ]


def build_intervals_table(
    intervals: Mapping[str, Mapping[str, Any]], strata: Mapping[str, Mapping[str, Any]]
) -> Table:
    """Build a table of both for the terminal."""
    table = Table(title="With 95 % intervals over identities")
    for i, column in enumerate(("queries", "", "mAP", "rank-1")):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for rows in (build_interval_rows(intervals), build_occlusion_rows(strata)):
        for row in rows:
            table.add_row(escape(row.queries), *row[1:])
        table.add_section()
    return table


def build_camera_grids(strata: Mapping[str, Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """Return query set -> mAP in percent, by camera of queries (rows) and of gallery (columns).

    The first row and column name the cameras; sets with one pair of cameras are left out.
    """
    grids = {}
    for name, tables in strata.items():
        cells = {
            (row["query_camera"], row["gallery_camera"]): format_percent(row["mAP"])
            for row in tables["cameras"]
        }
        if len(cells) < 2:
            continue
        own, other = (sorted({pair[i] for pair in cells}) for i in (0, 1))
        body = [[str(a), *(cells.get((a, b), NONE) for b in other)] for a in own]
        grids[name] = [["", *map(str, other)], *body]
    return grids


def summarise_cameras(name: str, tables: Mapping[str, Any]) -> str | None:
    """Return one line with the lowest and the highest mAP over pairs of cameras.

    Args:
        name: Of the query set.
        tables: Strata of an evaluation; `cameras` is read.

    Returns:
        None if there are fewer than two pairs.
    """
    rows = sorted(tables["cameras"], key=lambda row: row["mAP"])
    if len(rows) < 2:
        return None
    worst, best = (
        f"{format_percent(row['mAP'])} (camera {row['query_camera']} to {row['gallery_camera']}, "
        f"{row['queries']} queries)"
        for row in (rows[0], rows[-1])
    )
    return f"{name}: mAP of {len(rows)} pairs of cameras from {worst} to {best}"


def build_tracklet_rows(multi_shot: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a row per query set and number of pictures, of TRACKLET_COLUMNS."""
    return [
        [
            name,
            k,
            f"{values['tracklets']:,}",
            f"{values['persons']:,}",
            *(format_percent(values[way]["mAP"]) for way in FUSION_METHODS),
            format_interval(values["gain"]["single"], signed=True),
            format_interval(values["gain"]["late"], signed=True),
        ]
        for name, by_number in multi_shot.items()
        for k, values in by_number.items()
    ]


TRACKLET_COLUMNS = (
    "queries", "pictures", "tracklets", "persons", *FUSION_METHODS.values(),
    "over one frame", "over mean score",
)  # fmt: skip


TERMINAL_COLUMNS = ("queries", "pictures", "one frame", "mean score", "fused",
            "over one frame")  # fmt: skip


def build_tracklets_table(multi_shot: Mapping[str, Mapping[str, Any]]) -> Table:
    """Build the terminal's table of queries of several pictures: mAP in percent, by way of fusion.

    A row per query set and number of pictures has the columns TERMINAL_COLUMNS. The last column is
    the gain of `fused` over one frame, in percentage points, with its 95 % interval.

    Args:
        multi_shot: query set -> what `evaluate_tracklets` returns, fractions.

    Returns:
        A table of rich; without rows if there are no tracklets.

    Raises:
        KeyError: a figure is missing.
    """
    table = Table(title="Several pictures as one query, mAP", pad_edge=False)
    chosen = [TRACKLET_COLUMNS.index(name) for name in TERMINAL_COLUMNS]
    for place, name in enumerate(TERMINAL_COLUMNS):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in build_tracklet_rows(multi_shot):
        table.add_row(escape(row[0]), *(row[i] for i in chosen[1:]))
    return table


def format_interval(values: Mapping[str, float | None], signed: bool = False) -> str:
    """Format `MEAN [LOW, HIGH]` in percent; without the interval where there is none."""
    mean, *ends = (format_percent(values[name], signed) for name in ("mean", "low", "high"))
    return mean if NONE in (mean, *ends) else f"{mean} [{', '.join(ends)}]"
