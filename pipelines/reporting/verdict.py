"""The verdict on masks: one sentence from the figures of an evaluation and their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dpmpp_core.config.gate import QUERY_SETS
from dpmpp_core.percent import format_percent
from pipelines.reporting.tables import format_interval, label_queries

UNCHANGED_MARGIN = 0.01  # an interval around 0 within one point
FEW_PERSONS = 20  # below them a bootstrap over persons gives too narrow an interval
Figures = Mapping[str, Mapping[str, Any]]


class Verdict(NamedTuple):
    """A sentence without its full stop, and what limits it, whole sentences."""

    sentence: str
    caveats: tuple[str, ...]


def build_verdict(
    metrics: Figures, intervals: Figures, persons: Mapping[str, int]
) -> Verdict | None:
    """Return what a query's own mask is worth, and how certain that is.

    "Worth" and "costs" need an interval that leaves out 0; "unchanged" needs one within one point
    of 0 (ours). Between them it is open.

    Args:
        metrics: query set -> what `evaluate` returns; the baselines are not read.
        intervals: query set -> what `compute_intervals` returns.
        persons: query set -> number of persons among its queries.

    Returns:
        None if neither occluded nor whole queries have intervals.
    """
    sets = [name for name in QUERY_SETS if name in intervals]
    if not sets:
        return None
    if all(_changes_nothing(intervals[name]) for name in sets):
        reached = ", ".join(
            f"{format_interval(intervals[name]['masked']['mAP'])} on {label_queries(name)} queries"
            for name in sets
        )
        sentence = f"Masks change no ranking, so the model works as one without them: mAP {reached}"
    else:
        clauses = (_describe(name, intervals[name], i > 0) for i, name in enumerate(sets))
        sentence = "; ".join(clauses)
        if sets == ["holistic"]:  # which of them are occluded is not known
            sentence = sentence.replace("whole queries", "these queries")
    return Verdict(sentence, tuple(_find_caveats(sets, metrics, intervals, persons)))


def _describe(name: str, kinds: Mapping[str, Any], follows: bool) -> str:
    """Return the clause of one query set; one that follows another is shorter."""
    where = f"{'on' if follows else 'On'} {label_queries(name)} queries"
    if "gain" not in kinds:
        reached = format_interval(kinds["masked"]["mAP"])
        return f"{where} mAP is {reached}, and a ranking without masks was not measured"
    gain = kinds["gain"]["mAP"]
    low, high = gain["low"], gain["high"]
    shown = format_interval(gain, signed=True)
    if low is None or high is None:
        return f"{where} mAP differs by {shown} with masks, too few persons for an interval"
    shown = shown.replace(" [", " mAP [")
    if low > 0:
        subject = "it is" if follows else "a query's own mask is"
        return f"{where} {subject} worth {shown}{'' if follows else ' over no mask'}"
    if high < 0:
        subject = "it costs" if follows else "a query's own mask costs"
        return f"{where} {subject} accuracy, {shown}{'' if follows else ' against no mask'}"
    if max(-low, high) < UNCHANGED_MARGIN:
        if follows:
            return f"{label_queries(name)} queries are unchanged, {shown}"
        return f"{where} a query's own mask changes nothing, {shown}"
    return f"{where} it is open whether a query's own mask helps, {shown}"


def _changes_nothing(kinds: Mapping[str, Any]) -> bool:
    gains = kinds.get("gain", {}).values()
    return bool(gains) and not any(value for bounds in gains for value in bounds.values())


def _find_caveats(
    sets: list[str], metrics: Figures, intervals: Figures, persons: Mapping[str, int]
) -> list[str]:
    sentences = []
    if sets == ["holistic"]:
        sentences.append(
            "No query is known to be occluded, so what masks are worth there was not measured."
        )
    for name in sets:
        own, other = (metrics.get(name, {}).get(m, {}).get("mAP") for m in ("masked", "permuted"))
        if own is None or other is None or _changes_nothing(intervals[name]):
            continue
        if other >= own:  # not where it is NaN
            sentences.append(
                f"On {label_queries(name)} queries the masks of other queries do as well, mAP "
                f"{format_percent(other)}: there a mask need not fit its query."
            )
    fewest = min((persons[name] for name in sets if name in persons), default=FEW_PERSONS)
    if fewest < FEW_PERSONS:
        sentences.append(f"With {fewest} persons the true intervals are wider than these.")
    sentences.append("Intervals of 95 % are over persons; another training may differ more.")
    return sentences
