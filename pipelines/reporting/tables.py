"""How sure an evaluation is and what it is made of, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from dpmpp_core.percent import NONE, format_percent

FUSION_METHODS = {
    "fused": "fused",
    "single": "one frame",
    "best": "best frame",
    "mean": "plain mean",
    "late": "mean score",
}


class MetricWithInterval(NamedTuple):
    """mAP and rank-1 of some queries with their 95 % intervals, in percent."""

    queries: str
    number: str
    mAP: str
    rank1: str


def interval_rows(intervals: Mapping[str, Mapping[str, Any]]) -> list[MetricWithInterval]:
    """With mask, without, and the gain, of every query set."""
    said = {"masked": "with mask", "unmasked": "no mask", "gain": "difference"}
    return [
        MetricWithInterval(
            f"{name}, {said[kind]}",
            "",
            *(bounded(values[figure], kind == "gain") for figure in ("mAP", "rank1")),
        )
        for name, kinds in intervals.items()
        for kind, values in kinds.items()
    ]


def hidden_rows(strata: Mapping[str, Mapping[str, Any]]) -> list[MetricWithInterval]:
    """With mask, by share hidden; nothing where no share is known."""
    return [
        MetricWithInterval(
            f"{name}, {share} % hidden",
            f"{values['queries']:,}",
            *(bounded(values[figure]) for figure in ("mAP", "rank1")),
        )
        for name, tables in strata.items()
        for share, values in tables["hidden"].items()
    ]


def intervals_table(
    intervals: Mapping[str, Mapping[str, Any]], strata: Mapping[str, Mapping[str, Any]]
) -> Table:
    """Both for the terminal."""
    table = Table(title="With 95 % intervals over identities")
    for i, column in enumerate(("queries", "", "mAP", "rank-1")):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for rows in (interval_rows(intervals), hidden_rows(strata)):
        for row in rows:
            table.add_row(escape(row.queries), *row[1:])
        table.add_section()
    return table


def camera_grids(strata: Mapping[str, Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """Query set -> mAP in percent, a row a camera of queries, a column one of the gallery.

    The first row and column name the cameras; sets with one pair of cameras are left out.
    """
    grids = {}
    for name, tables in strata.items():
        found = {(row["query_camera"], row["gallery_camera"]): row for row in tables["cameras"]}
        if len(found) < 2:
            continue
        own, other = (sorted({pair[i] for pair in found}) for i in (0, 1))
        body = [
            [
                f"{a}",
                *(format_percent(found[a, b]["mAP"]) if (a, b) in found else NONE for b in other),
            ]
            for a in own
        ]
        grids[name] = [["", *map(str, other)], *body]
    return grids


def cameras_line(name: str, tables: Mapping[str, Any]) -> str | None:
    """The worst and the best pair of cameras in one line; None where there is only one pair."""
    rows = sorted(tables["cameras"], key=lambda row: row["mAP"])
    if len(rows) < 2:
        return None
    worst, best = (
        f"{format_percent(row['mAP'])} (camera {row['query_camera']} to {row['gallery_camera']}, "
        f"{row['queries']} queries)"
        for row in (rows[0], rows[-1])
    )
    return f"{name}: mAP of {len(rows)} pairs of cameras from {worst} to {best}"


def shot_rows(multi_shot: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Query set, pictures, tracklets, persons, mAP by way, and what fusing gains over one frame."""
    return [
        [
            name,
            k,
            f"{values['tracklets']:,}",
            f"{values['persons']:,}",
            *(format_percent(values[way]["mAP"]) for way in FUSION_METHODS),
            bounded(values["gain"]["single"], signed=True),
            bounded(values["gain"]["late"], signed=True),
        ]
        for name, by_number in multi_shot.items()
        for k, values in by_number.items()
    ]


SHOT_COLUMNS = (
    "queries", "pictures", "tracklets", "persons", *FUSION_METHODS.values(),
    "over one frame", "over mean score",
)  # fmt: skip


TERMINAL = ("queries", "pictures", "one frame", "mean score", "fused",
            "over one frame")  # fmt: skip


def shots_table(multi_shot: Mapping[str, Mapping[str, Any]]) -> Table:
    """The most of it for the terminal, which is narrow."""
    table = Table(title="Several pictures as one query, mAP", pad_edge=False)
    chosen = [SHOT_COLUMNS.index(name) for name in TERMINAL]
    for place, name in enumerate(TERMINAL):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in shot_rows(multi_shot):
        table.add_row(escape(row[0]), *(row[i] for i in chosen[1:]))
    return table


def bounded(values: Mapping[str, float | None], signed: bool = False) -> str:
    """`MEAN [LOW, HIGH]` in percent; without the interval where there is none."""
    mean, *ends = (format_percent(values[name], signed) for name in ("mean", "low", "high"))
    return mean if NONE in (mean, *ends) else f"{mean} [{', '.join(ends)}]"
