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
from dpmpp_core.gallery.html import encode_png
from dpmpp_core.retrieval import MODES, Difference, Mode, RankingResult, paired_difference
from dpmpp_core.retrieval.comparison import FEWEST_IDENTITIES
from pipelines.reporting.ablation_figure import draw_ablation
from pipelines.reporting.figures import draw_robustness_comparison
from pipelines.runtime.environment import environment

TABLE = "table.md"
CONTROLS: tuple[Mode, ...] = ("unmasked", "permuted", "static", "both")


@dataclass(frozen=True)
class Measured:
    """One variant with one seed.

    Attributes:
        variant: Its name.
        seed: The training seed.
        ranked: Query set -> mode -> ranking of each query.
        pids: Query set -> int64 [Q].
        figures: Metrics for MLflow.
        seconds: Duration of stage 2 and the evaluation.
        weights_sha256: Hash of the model.
        warnings: Alarms of its training.
    """

    variant: str
    seed: int
    ranked: dict[str, dict[Mode, RankingResult]]
    pids: dict[str, NDArray[np.int64]]
    figures: dict[str, float]
    seconds: float
    weights_sha256: str
    warnings: list[str]


@dataclass(frozen=True)
class Ablation:
    """Content of the table.

    Attributes:
        command: Command that reproduces it.
        grid: The variants.
        measured: Results in the grid's order, the seeds of a variant together.
        curves: Variant -> its robustness, see `draw_robustness_comparison`.
        failed: Trial -> reason.
        counts: Counts of the data.
    """

    command: str
    grid: Grid
    measured: Sequence[Measured]
    curves: dict[str, Any]
    failed: dict[str, str]
    counts: dict[str, Any]
    _gains: dict[Any, Difference] = field(default_factory=dict, repr=False)  # a cache

    def by_seed(self, variant: str) -> dict[int, Measured]:
        """Return the results of a variant by seed."""
        return {m.seed: m for m in self.measured if m.variant == variant}

    @property
    def variants(self) -> list[str]:
        """The measured variants."""
        return list(dict.fromkeys(m.variant for m in self.measured))

    @property
    def query_sets(self) -> list[str]:
        """The measured query sets."""
        return list(self.measured[0].ranked) if self.measured else []

    def gain(
        self, query_set: str, one: tuple[str, Mode], other: tuple[str, Mode]
    ) -> Difference | None:
        """Return the gain in average precision of one (variant, mode) over another, by seed."""
        pair = query_set, one, other
        if pair not in self._gains:
            (a, mode), (b, control) = one, other
            ours, theirs = self.by_seed(a), self.by_seed(b)
            seeds = [s for s in ours if s in theirs and control in theirs[s].ranked[query_set]]
            if not seeds:
                return None
            self._gains[pair] = paired_difference(
                [ours[s].ranked[query_set][mode].average_precision for s in seeds],
                [theirs[s].ranked[query_set][control].average_precision for s in seeds],
                ours[seeds[0]].pids[query_set],
            )
        return self._gains[pair]


def collect_by_variant(ablation: Ablation) -> dict[str, Any]:
    """Return variant -> query set -> mode -> `mAP`, `rank1`: lists by seed, fractions."""
    values: dict[str, Any] = {}
    for variant in ablation.variants:
        runs = list(ablation.by_seed(variant).values())
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


def render_ablation(ablation: Ablation) -> dict[str, bytes]:
    """Return file name -> content: Markdown, CSV, JSON, and the figures as PNG."""
    files = {
        TABLE: _format_markdown(ablation).encode(),
        "table.csv": _format_csv(ablation).encode(),
        "table.json": (json.dumps(_build_json(ablation), indent=1) + "\n").encode(),
        "ablation.png": encode_png(draw_ablation(*_plot_data(ablation))),
    }
    if ablation.curves:
        files["robustness.png"] = encode_png(draw_robustness_comparison(ablation.curves))
        files["robustness.json"] = (json.dumps(ablation.curves, indent=1) + "\n").encode()
    return files


def _format_markdown(ablation: Ablation) -> str:
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
        "[95 % interval over seeds and identities, two-way bootstrap]. **Bold**: a gain or a loss "
        "whose interval excludes zero, and so does Student's over the seeds.",
        f"{len(_list_differences(ablation))} differences are compared: by chance alone, one in "
        f"twenty intervals excludes zero.{_few_identities(ablation)}",
        "",
        *[line for name in ablation.query_sets for line in _format_parts(ablation, name)],
        *[line for name in ablation.query_sets for line in _format_masks(ablation, name)],
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


def _format_parts(ablation: Ablation, query_set: str) -> list[str]:
    grid = ablation.grid
    lines = [
        f"## Effect of the parts: {query_set} queries",
        "",
        "| variant | | n | mAP | rank-1 | over the one before | over plain | full over it |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ablation.variants:
        runs = [run.ranked[query_set]["masked"] for run in ablation.by_seed(name).values()]
        after, own = grid.variants[name].after, (name, "masked")
        pairs = [
            (own, (after, "masked")) if after else None,
            (own, (grid.plain, "masked")) if name != grid.plain else None,
            ((grid.full, "masked"), own) if name != grid.full else None,
        ]
        cells = [format_gain(ablation.gain(query_set, *pair)) if pair else "" for pair in pairs]  # type: ignore[arg-type]
        m_ap, rank1 = [r.mAP for r in runs], [r.rank(1) for r in runs]
        lines.append(
            f"| {name} | {grid.variants[name].says} | {len(runs)} | {format_mean_std(m_ap)} | "
            f"{format_mean_std(rank1)} | {' | '.join(cells)} |"
        )
    return [*lines, ""]


def _format_masks(ablation: Ablation, query_set: str) -> list[str]:
    lines = [
        f"## Effect of the masks at test: {query_set} queries",
        "",
        "mAP with the query's own mask, and its gain over no mask, over other queries' masks "
        "(mean of five exchanges), over the mean mask for all, and over the masks of both sides.",
        "",
        "| variant | n | own | over none | over permuted | over static | over both sides |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ablation.variants:
        runs = [run.ranked[query_set]["masked"] for run in ablation.by_seed(name).values()]
        gains = [ablation.gain(query_set, (name, "masked"), (name, mode)) for mode in CONTROLS]
        cells = [format_gain(gain) for gain in gains]
        own = format_mean_std([r.mAP for r in runs])
        lines.append(f"| {name} | {len(runs)} | {own} | {' | '.join(cells)} |")
    return [*lines, ""]


def format_gain(gain: Difference | None) -> str:
    """Format a difference of fractions in percent, bold where it is beyond noise; - for None."""
    if gain is None:
        return "-"
    deviation = f" ± {100 * gain.std:.1f}" if gain.n > 1 else ""
    text = f"{100 * gain.mean:+.1f}{deviation}"
    text = f"**{text}**" if gain.beyond_noise else text
    return f"{text} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def format_mean_std(values: Sequence[float]) -> str:
    """Format mean ± standard deviation of fractions, in percent; the mean alone for one value."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _format_csv(ablation: Ablation) -> str:
    """Format a row per variant, seed, query set and mode."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["variant", "seed", "queries", "mode", "mAP", "rank1", "rank5", "rank10", "mINP"])
    for one in ablation.measured:
        for query_set, modes in one.ranked.items():
            for mode, ranked in modes.items():
                figures = (f"{value:.6f}" for value in ranked.metrics().values())
                rows.writerow([one.variant, one.seed, query_set, mode, *figures])
    return text.getvalue()


def _list_differences(ablation: Ablation) -> list[tuple[str, Any, Any, Difference]]:
    """Return all differences of the tables: query set, one, other, the gain."""
    grid = ablation.grid
    pairs = [
        (query_set, one, other)
        for query_set in ablation.query_sets
        for name in ablation.variants
        for one, other in [
            *[((name, "masked"), (b, "masked")) for b in (grid.variants[name].after, grid.plain)
              if b and b != name],
            *([((grid.full, "masked"), (name, "masked"))] if name != grid.full else []),
            *[((name, "masked"), (name, mode)) for mode in CONTROLS],
        ]
    ]  # fmt: skip
    gains = [(*pair, ablation.gain(*pair)) for pair in pairs]  # type: ignore[arg-type]
    return [(q, one, other, gain) for q, one, other, gain in gains if gain is not None]


def _few_identities(ablation: Ablation) -> str:
    counts = [gain.identities for *_, gain in _list_differences(ablation)]
    if not counts or min(counts) >= FEWEST_IDENTITIES:
        return ""
    return f" Of {min(counts)} identities nothing is bold: they are too few for such an interval."


def _build_json(ablation: Ablation) -> dict[str, Any]:
    """Return `variants` as in the command's result, and all differences of the Markdown tables."""
    return {
        "command": ablation.command,
        "environment": environment(),
        "counts": ablation.counts,
        "variants": collect_by_variant(ablation),
        "seeds": {name: list(ablation.by_seed(name)) for name in ablation.variants},
        "differences": [
            {"queries": query_set, "of": one, "less": other, **gain._asdict()}
            for query_set, one, other, gain in _list_differences(ablation)
        ],
        "failed": ablation.failed,
    }


def _plot_data(ablation: Ablation) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return mAP by seed, and the masks' gains over their controls, for `draw_ablation`."""
    values = collect_by_variant(ablation)
    scores = {
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
    return scores, gains
