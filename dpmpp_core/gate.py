"""The checks of a promotion: each compares a recorded or measured value with a bound.

They are pure functions: nothing is read or started here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpmpp_core.config.gate import Gate
from dpmpp_core.percent import format_percent
from dpmpp_core.retrieval.bootstrap import paired_bootstrap
from dpmpp_core.retrieval.queries import QueryFigures

Sets = Mapping[str, QueryFigures]
Statistics = Mapping[str, Mapping[str, float]]  # space -> `mask_statistics`
REPRODUCED = ("mAP", "rank1")


@dataclass(frozen=True)
class Check:
    """One verdict.

    Attributes:
        name: what was checked.
        passed: whether it is good enough.
        value: the measured value; figures are fractions.
        threshold: what it was compared with.
        says: the verdict as a sentence.
    """

    name: str
    passed: bool
    value: float | str | None
    threshold: float | str | None
    says: str


def files_check(stored: str, registered: str | None) -> Check:
    """Compare the SHA-256 of the stored files with the registered one."""
    if registered is None:
        says = "registered without a hash of its files: register it again with `dpmpp run`"
    elif stored != registered:
        says = "the stored files are not those that were registered: damaged or tampered with"
    else:
        says = "all files are as registered"
    return Check("files", stored == registered, stored, registered, says)


def rolled_back_check(when: str | None) -> Check:
    """Require that the version was not a champion that was taken back."""
    says = f"taken back {when}; register another version" if when else "never taken back"
    return Check("rolled back", not when, when, None, says)


def dataset_check(dataset_id: str, wanted: str | None) -> Check:
    """Require that the version was measured on the data set that the gate names."""
    passed = wanted is None or dataset_id.startswith(wanted)
    says = "measured on the gate's data set"
    if wanted is None:
        says = "the gate names no data set"
    elif not passed:
        says = "measured on another data set than the gate's"
    return Check("data set", passed, dataset_id, wanted, says)


def images_check(images: int, problem: str | None) -> Check:
    """Require that the evaluation's images are available and unchanged."""
    says = problem or "each has the SHA-256 it was evaluated with"
    return Check("images", not problem, f"{images} images", "as evaluated", says)


def floor_checks(own: Sets, floors: Mapping[str, float]) -> list[Check]:
    """Compare figures with those that must be reached."""
    checks = []
    for query_set, figure, floor in _bounds(own, floors):
        name = f"floor {query_set}.{figure}"
        if query_set not in own:
            checks.append(_absent(name, query_set, floor))
            continue
        value = own[query_set].mean(figure)
        verdict = "reaches" if value >= floor else "is below"
        says = f"{format_percent(value)} % {verdict} {format_percent(floor)} %"
        checks.append(Check(name, value >= floor, value, floor, says))
    return checks


def no_worse_checks(own: Sets, champion: Sets | None, gate: Gate) -> list[Check]:
    """Require with 95 % certainty that no more than a margin is lost against the champion.

    The paired difference on the same queries is resampled over identities. Its interval, not its
    mean, must lie above -margin (non-inferiority), so few persons are no excuse.

    Raises:
        ValueError: the champion was measured on other queries.
    """
    checks = []
    for query_set, figure, margin in _bounds(own, gate.no_worse):
        name = f"no worse {query_set}.{figure}"
        if champion is None:
            says = "no other champion: nothing to lose against"
            checks.append(Check(name, True, None, -margin, says))
        elif query_set not in own:
            checks.append(_absent(name, query_set, -margin))
        else:
            pair = own[query_set], champion[query_set]
            checks.append(_no_worse(name, *pair, figure, margin, gate))
    return checks


def _no_worse(
    name: str, own: QueryFigures, other: QueryFigures, figure: str, margin: float, gate: Gate
) -> Check:
    if own.paths != other.paths:
        raise ValueError("the champion was measured on other queries")
    difference = own.figure(figure) - other.figure(figure)
    persons = len(np.unique(own.pids[~np.isnan(difference)]))
    if persons < gate.identities:
        says = f"{persons} persons among the queries; the interval needs {gate.identities}"
        return Check(name, False, None, -margin, says)
    mean, low, high = paired_bootstrap(difference, own.pids, gate.draws)
    passed = low >= -margin
    shown = f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] to the champion"
    lost = f"{'not more' if passed else 'perhaps more'} than {format_percent(margin)} % lost"
    says = f"{shown}: {lost}"
    return Check(name, passed, low, -margin, says)


def mask_checks(masks: Mapping[str, Statistics], least: float) -> list[Check]:
    """Require that masks differ between queries, in every query set and masked space.

    `masks` is query set -> space -> `mask_statistics`; a std of exactly 0 is a space without masks.
    """
    checks = []
    for query_set, spaces in masks.items():
        alive = {space: s["std_queries"] for space, s in spaces.items() if s["std_queries"] > 0}
        name = f"mask {query_set}"
        if not alive:
            says = "the model has no masks; a gate for such models says `mask_std: null`"
            checks.append(Check(name, False, 0.0, least, says))
            continue
        space, value = min(alive.items(), key=lambda item: item[1])
        verdict = "differ" if value >= least else "hardly differ: dead"
        says = f"masks of {space} {verdict} between queries (std {value:.4f})"
        checks.append(Check(name, value >= least, value, least, says))
    return checks


def load_check(problem: str | None, seconds: float | None = None) -> Check:
    """Require that a new process loads the model from its files alone."""
    if problem:
        return Check("loads", False, None, None, problem)
    return Check("loads", True, seconds, None, f"loaded in a new process in {seconds:.1f} s")


def reproduce_checks(registered: Sets, now: Sets, tolerance: float) -> list[Check]:
    """Compare what the loaded model reaches with what was registered."""
    checks = []
    for query_set, recorded in registered.items():
        for figure in REPRODUCED:
            before, after = recorded.mean(figure), now[query_set].mean(figure)
            value = abs(after - before)
            says = f"registered {format_percent(before)} %, now {format_percent(after)} %"
            name = f"reproduces {query_set}.{figure}"
            checks.append(Check(name, value <= tolerance, value, tolerance, says))
    return checks


def budget_check(name: str, value: float, most: float, unit: str) -> Check:
    """Compare latency or size with its budget."""
    verdict = "within" if value <= most else "above"
    says = f"{value:.1f} {unit} is {verdict} {most:g} {unit}"
    return Check(name, value <= most, value, most, says)


def refused_by(checks: Sequence[Check]) -> list[str]:
    """Return the names of the checks that did not pass."""
    return [check.name for check in checks if not check.passed]


def _bounds(own: Sets, bounds: Mapping[str, float]) -> Iterator[tuple[str, str, Any]]:
    """Yield query set, figure and bound; a figure without a set is that of every set."""
    for name, bound in bounds.items():
        query_set, _, figure = name.rpartition(".")
        for one in [query_set] if query_set else own:
            yield one, figure, bound


def _absent(name: str, query_set: str, bound: float) -> Check:
    return Check(name, False, None, bound, f"the evaluation has no {query_set} queries")
