"""What MLflow shows of an evaluation: few metrics, one table, a description.

Nothing reads a metric of MLflow by its name: a gate reads the record that lies in a version
(`pipelines.registry.record`). Runs of version 0.2 and before have names such as
`occluded/masked/mAP`; they stay as they are, and their versions can be promoted.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.reporting.tables import (
    BASELINES,
    HEADLINE_METRICS,
    build_headline_rows,
    label_queries,
)
from pipelines.reporting.verdict import build_verdict

TABLE_FILE, FIGURES_FOLDER = "results.csv", "figures"
TABLE_COLUMNS = ("queries", "ranking", "metric", "value", "low", "high")
SUFFIXES = {"masked": "", "unmasked": "_no_mask"}
Sets = Mapping[str, Mapping[str, Any]]


def headline_metrics(metrics: Sets) -> dict[str, float]:
    """Return mAP and rank-1 of every query set with the own mask, and with none.

    Names are `mAP_occluded`, `mAP_occluded_no_mask`, `rank1_whole` and so on; values are
    fractions in [0, 1]. NaN where a ranking was not measured.
    """
    return {
        f"{metric}_{label_queries(name)}{suffix}": metrics[name][mode][metric]
        for metric in HEADLINE_METRICS
        for name in metrics
        if name != BASELINES
        for mode, suffix in SUFFIXES.items()
    }


def render_results_csv(metrics: Sets, intervals: Sets) -> str:
    """Return all figures of the rankings as CSV of TABLE_COLUMNS, fractions in [0, 1].

    `ranking` is a mode of `rank_by_mode`, a baseline, `gain` (masked less unmasked), or empty for
    counts. `low` and `high` are 95 % intervals over persons, where there are any.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(TABLE_COLUMNS)
    for name in (name for name in metrics if name != BASELINES):
        rankings = {**metrics[name], **metrics.get(BASELINES, {}).get(name, {})}
        for row in _list_figures(rankings, intervals.get(name, {})):
            if row[2] is not None and not math.isnan(row[2]):
                writer.writerow([label_queries(name), *row])
    return file.getvalue()


def _list_figures(
    rankings: Mapping[str, Any], intervals: Mapping[str, Any]
) -> Iterator[tuple[Any, ...]]:
    """Yield the columns of TABLE_COLUMNS after the first."""
    for ranking, figures in rankings.items():
        if not isinstance(figures, Mapping):
            yield "", ranking, figures, None, None
            continue
        for metric, value in figures.items():
            bounds = intervals.get(ranking, {}).get(metric, {})
            yield ranking, metric, value, bounds.get("low"), bounds.get("high")
    for metric, bounds in intervals.get("gain", {}).items():
        yield "gain", metric, bounds["mean"], bounds["low"], bounds["high"]


def render_description(
    metrics: Sets, intervals: Sets, persons: Mapping[str, int], facts: Mapping[str, str]
) -> str:
    """Return the description of a run as Markdown: verdict, table of results, caveats, facts.

    MLflow folds what does not fit into a few lines, so the table comes early.

    Args:
        metrics: as in the content of an evaluation's file.
        intervals: the same.
        persons: query set -> number of persons among its queries.
        facts: label -> value, shown as code.
    """
    verdict = build_verdict(metrics, intervals, persons)
    lines = [] if verdict is None else [f"**{verdict.sentence}.**"]
    lines += [
        "",
        "| queries | % | own mask | no mask | difference | histogram | chance |",
        "|---|---|---:|---:|---:|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in build_headline_rows(metrics, intervals)),
        "",
        *(f"- {caveat}" for caveat in (verdict.caveats if verdict else ())),
        *(f"- {label}: `{value}`" for label, value in facts.items()),
        f"- Artifacts: `report.html`, `{TABLE_FILE}` with all figures, `{FIGURES_FOLDER}`",
    ]
    return "\n".join(lines) + "\n"
