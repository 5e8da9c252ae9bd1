"""The table of an ablation - Markdown, CSV, JSON - and its pictures."""

from __future__ import annotations

import csv
import io
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.config.grid import Grid
from dpmpp_core.retrieval import MODES, Difference, Mode, RankingResult, paired_difference
from pipelines.reporting.ablation_figure import ablation_picture
from pipelines.reporting.figures import png_bytes, robustness_comparison
from pipelines.runtime.tracking import environment

TABLE = "table.md"
CONTROLS: tuple[Mode, ...] = ("unmasked", "permuted", "static", "both")


@dataclass(frozen=True)
class Measured:
    """One variant with one seed.

    Attributes:
        ranked: query set -> mode -> what each query found.
        pids: query set -> int64 [Q].
        figures: numbers for MLflow.
        seconds: of stage 2 and the evaluation, when they were made.
        warnings: of its training.
    """

    variant: str
    seed: int
    ranked: dict[str, dict[Mode, RankingResult]]
    pids: dict[str, NDArray[np.int64]]
    figures: dict[str, Any]
    seconds: float
    weights_sha256: str
    warnings: list[str]


@dataclass(frozen=True)
class Ablation:
    """All that the table shows.

    Attributes:
        command: what makes it again.
        measured: a variant's seeds stand together, in the grid's order.
        curves: variant -> its robustness, see `pictures.robustness_comparison`.
        failed: trial -> why.
        counts: of the data.
    """

    command: str
    grid: Grid
    measured: Sequence[Measured]
    curves: dict[str, Any]
    failed: dict[str, str]
    counts: dict[str, Any]
    _gains: dict[Any, Difference | None] = field(default_factory=dict, repr=False)  # made once each

    def of(self, variant: str) -> dict[int, Measured]:
        return {m.seed: m for m in self.measured if m.variant == variant}

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(m.variant for m in self.measured))

    @property
    def query_sets(self) -> list[str]:
        return list(self.measured[0].ranked) if self.measured else []

    def gain(
        self, query_set: str, one: tuple[str, Mode], other: tuple[str, Mode]
    ) -> Difference | None:
        """Average precision of a variant in a mode less another's, over the seeds they share."""
        asked = query_set, one, other
        if asked not in self._gains:
            self._gains[asked] = self._gain(*asked)
        return self._gains[asked]

    def _gain(
        self, query_set: str, one: tuple[str, Mode], other: tuple[str, Mode]
    ) -> Difference | None:
        (a, mode), (b, control) = one, other
        ours, theirs = self.of(a), self.of(b)
        seeds = [seed for seed in ours if seed in theirs]
        seeds = [s for s in seeds if control in theirs[s].ranked[query_set]]
        if not seeds:
            return None
        return paired_difference(
            [ours[s].ranked[query_set][mode].average_precision for s in seeds],
            [theirs[s].ranked[query_set][control].average_precision for s in seeds],
            ours[seeds[0]].pids[query_set],
        )


def by_variant(ablation: Ablation) -> dict[str, Any]:
    """variant -> query set -> mode -> `mAP`, `rank1`: lists by seed, fractions."""
    values: dict[str, Any] = {}
    for variant in ablation.variants:
        runs = list(ablation.of(variant).values())
        values[variant] = {
            query_set: {
                mode: {
                    "mAP": [run.ranked[query_set][mode].mAP for run in runs],
                    "rank1": [run.ranked[query_set][mode].rank(1) for run in runs],
                }
                for mode in MODES
                if all(mode in run.ranked[query_set] for run in runs)
            }
            for query_set in ablation.query_sets
        }
    return values


def render(ablation: Ablation) -> dict[str, bytes]:
    """File name -> content: Markdown, CSV, JSON, and the pictures as PNG."""
    files = {
        TABLE: _markdown(ablation).encode(),
        "table.csv": _csv(ablation).encode(),
        "table.json": (json.dumps(_json(ablation), indent=1) + "\n").encode(),
        "ablation.png": png_bytes(ablation_picture(*_dots(ablation))),
    }
    if ablation.curves:
        files["robustness.png"] = png_bytes(robustness_comparison(ablation.curves))
        files["robustness.json"] = (json.dumps(ablation.curves, indent=1) + "\n").encode()
    return files


def _markdown(ablation: Ablation) -> str:
    grid = ablation.grid
    versions = environment()
    packages = ", ".join(f"{k} {v}" for k, v in versions["packages"].items())
    hours = sum(m.seconds for m in ablation.measured) / 3600
    lines = [
        "# Ablation",
        "",
        f"`{ablation.command}`; {date.today().isoformat()}. Percent, with the query's own mask; "
        "mean ± std over n training seeds on the same data.",
        "Differences are paired, seed by seed and query by query: mean ± std over seeds "
        "[95 % interval over identities, bootstrap]. **Bold**: further from zero than two standard "
        "deviations and than the whole interval.",
        "",
        *[line for query_set in ablation.query_sets for line in _parts(ablation, query_set)],
        *[line for query_set in ablation.query_sets for line in _masks(ablation, query_set)],
    ]
    if ablation.failed:
        lines += ["## Failed", "", *(f"- {k}: {v}" for k, v in ablation.failed.items()), ""]
    lines += [
        f"Variants: {'; '.join(f'{n} = {v.says}' for n, v in grid.variants.items())}. A + adds to "
        "the variant it comes after.",
        "",
        f"Data: {ablation.counts}.",
        f"{hours:.1f} hours of trials (stage 2 and evaluation, summed; several ran side by side) "
        f"on {versions['cpus']} cores ({platform.machine()}); Python {versions['python']}; "
        f"{packages}.",
    ]
    return "\n".join(lines) + "\n"


def _parts(ablation: Ablation, query_set: str) -> list[str]:
    grid = ablation.grid
    lines = [
        f"## What the parts are worth: {query_set} queries",
        "",
        "| variant | | n | mAP | rank-1 | over the one before | over plain | full over it |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ablation.variants:
        runs = [run.ranked[query_set]["masked"] for run in ablation.of(name).values()]
        after, own = grid.variants[name].after, (name, "masked")
        pairs = [
            (own, (after, "masked")) if after else None,
            (own, (grid.plain, "masked")) if name != grid.plain else None,
            ((grid.full, "masked"), own) if name != grid.full else None,
        ]
        cells = [_shown(ablation.gain(query_set, *pair)) if pair else "" for pair in pairs]  # type: ignore[arg-type]
        lines.append(
            f"| {name} | {grid.variants[name].says} | {len(runs)} | "
            f"{spread([r.mAP for r in runs])} | {spread([r.rank(1) for r in runs])} | "
            f"{' | '.join(cells)} |"
        )
    return [*lines, ""]


def _masks(ablation: Ablation, query_set: str) -> list[str]:
    lines = [
        f"## What the masks are worth at test: {query_set} queries",
        "",
        "mAP with the query's own mask, and what it is above no mask, above other queries' masks "
        "(mean of five exchanges), above the mean mask for all, and above the masks of both sides.",
        "",
        "| variant | n | own | over none | over permuted | over static | over both sides |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ablation.variants:
        runs = [run.ranked[query_set]["masked"] for run in ablation.of(name).values()]
        gains = [ablation.gain(query_set, (name, "masked"), (name, mode)) for mode in CONTROLS]
        cells = [_shown(gain) for gain in gains]
        own = spread([r.mAP for r in runs])
        lines.append(f"| {name} | {len(runs)} | {own} | {' | '.join(cells)} |")
    return [*lines, ""]


def _shown(gain: Difference | None) -> str:
    if gain is None:
        return "-"
    deviation = f" ± {100 * gain.std:.1f}" if gain.n > 1 else ""
    text = f"{100 * gain.mean:+.1f}{deviation}"
    text = f"**{text}**" if gain.beyond_noise else text
    return f"{text} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation of fractions, in percent; one value stands alone."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _csv(ablation: Ablation) -> str:
    """A row a variant, seed, query set and mode."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["variant", "seed", "queries", "mode", "mAP", "rank1", "rank5", "rank10", "mINP"])
    for one in ablation.measured:
        for query_set, modes in one.ranked.items():
            for mode, ranked in modes.items():
                figures = (f"{value:.6f}" for value in ranked.metrics().values())
                rows.writerow([one.variant, one.seed, query_set, mode, *figures])
    return text.getvalue()


def _json(ablation: Ablation) -> dict[str, Any]:
    """`variants` as in the command's result, and every difference of the Markdown tables."""
    grid = ablation.grid
    differences = [
        (query_set, one, other)
        for query_set in ablation.query_sets
        for name in ablation.variants
        for one, other in [
            *[((name, "masked"), (b, "masked")) for b in (grid.variants[name].after, grid.plain)
              if b and b != name],
            ((grid.full, "masked"), (name, "masked")),
            *[((name, "masked"), (name, mode)) for mode in CONTROLS],
        ]
    ]  # fmt: skip
    return {
        "command": ablation.command,
        "environment": environment(),
        "counts": ablation.counts,
        "variants": by_variant(ablation),
        "seeds": {name: list(ablation.of(name)) for name in ablation.variants},
        "differences": [
            {"queries": query_set, "of": one, "less": other, **gain._asdict()}
            for query_set, one, other in differences
            if (gain := ablation.gain(query_set, one, other)) is not None  # type: ignore[arg-type]
        ],
        "failed": ablation.failed,
    }


def _dots(ablation: Ablation) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `ablation_picture` draws: mAP by seed, and the masks' gains over their controls."""
    values = by_variant(ablation)
    mAP = {
        query_set: {name: values[name][query_set]["masked"]["mAP"] for name in ablation.variants}
        for query_set in ablation.query_sets
    }
    gains = {
        control: {
            name: ablation.gain(ablation.query_sets[0], (name, "masked"), (name, control))
            for name in ablation.variants
        }
        for control in ("permuted", "static")
    }
    return mAP, gains
