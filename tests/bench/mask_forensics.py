"""Do the masks follow the visible body, and does retrieval gain by it?

    python -m tests.bench.mask_forensics NAME [KEY=VALUE ...] [--config demo] [--storage runs]
        --seeds 0 1 2

Runs `dpmpp evaluate` on the demo set with each seed (finished stages are reused) and takes apart
the masks of the occluded queries; writes `results/masks-NAME.md` and, next to the storage,
`masks-NAME.png`.

- Gain: mAP with a query's own mask, over none, over another query's (mean of 10 exchanges) and
  over the mean mask; in all spaces together and in each alone; mean and std over the seeds.
- The same gains, mean over the seeds, with 95 % bootstrap intervals over identities: of all
  queries, by what hides them and by how much is hidden.
- Following: over pairs of queries, the rank correlation of how far their masks are apart with how
  far what is seen of them is (`mask_following.following`).
- What explains the masks: the share of their variance over queries that a linear function of the
  visible shares of 8 bands of the body tells of queries it was not fitted to (10 folds). Control:
  the same with the visible shares dealt to other queries. And the share of variance between
  persons and between kinds of occluder (as in an analysis of variance, less what chance gives).
- Truth: for `model.bands`, the same features under masks made of the true visible shares: what a
  perfect eye for the visible body would gain.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpmpp_core.config import load_config
from dpmpp_core.data.annotations import ANNOTATIONS, unpack_mask
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.models.bands import SPACE as BANDS
from dpmpp_core.retrieval.evaluation import MODES, Embeddings, rank_by_mode
from dpmpp_core.retrieval.masks import mask_statistics
from pipelines.inference.embeddings_file import load_embeddings
from pipelines.runtime.tracking import environment
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline
from tests.bench.mask_following import EXCHANGES, Figures, Floats, following, gain_table, picture
from tests.bench.seeds import spread
from tests.bench.timing import RESULTS

BODY_BANDS = 8  # of the body, to say what of it is seen
FOLDS = 10
FLOOR = 0.02  # of a true visible share: a mask must not be all zero


@dataclass(frozen=True)
class Measured:
    """One training seed.

    figures: rows of the tables -> column -> value. precisions: mode -> average precision of each
    occluded query, all spaces together. notes: see `annotations`.
    """

    figures: Figures
    precisions: dict[str, Floats]
    notes: Mapping[str, NDArray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--config", default="demo")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments, overrides = parser.parse_known_args()
    measured = [measure(arguments, overrides, seed) for seed in arguments.seeds]
    command = " ".join(["python -m tests.bench.mask_forensics", arguments.name, *overrides])
    command += "" if arguments.config == "demo" else f" --config {arguments.config}"
    text = table(arguments.name, command, arguments.seeds, measured)
    (RESULTS / f"masks-{arguments.name}.md").write_text(text)
    print(text)


def measure(arguments: argparse.Namespace, overrides: list[str], seed: int) -> Measured:
    """Everything of one training seed."""
    overrides = [*overrides, f"seed={seed}"]
    options = Options(config=arguments.config, overrides=overrides, storage=arguments.storage)
    result = run_pipeline(options, until="evaluate")
    keys = {stage["name"]: stage["key"] for stage in result["stages"]}
    storage = Path(arguments.storage)
    query = load_embeddings(storage / keys["evaluate"] / "occluded.safetensors")
    gallery = load_embeddings(storage / keys["evaluate"] / "gallery.safetensors")
    whole = load_embeddings(storage / keys["evaluate"] / "holistic.safetensors")
    root = Manifest.load(storage / keys["prepare"]).root
    notes = annotations(root, query.paths)
    found = precisions(query, gallery)
    rows = {"all spaces": gains(found), "holistic, all spaces": gains(precisions(whole, gallery))}
    for space in query.features:
        alone = precisions(only(query, space), only(gallery, space))
        rows[f"{space} alone"] = gains(alone)
    if BANDS in query.features:
        rows |= with_true_masks(query, gallery, notes, load_config(arguments.config, overrides))
    if seed == arguments.seeds[0]:
        picture(root, query, notes, storage / f"masks-{arguments.name}.png")
    rows |= {f"following, {name}": v for name, v in following(query, whole, notes).items()}
    return Measured(rows | explained(query, notes), found, notes)


def annotations(root: str, paths: list[str]) -> dict[str, NDArray]:
    """Person, occluder and visible shares [N, BODY_BANDS] of the pictures."""
    table = pq.read_table(Path(root) / ANNOTATIONS).to_pylist()
    by_path = {row["path"]: row for row in table}
    rows = [by_path[path] for path in paths]
    return {
        "person": np.array([row["pid"] for row in rows]),
        "occluder": np.array([row["occluder"] for row in rows]),
        "visible": np.stack([visible_shares(row, BODY_BANDS) for row in rows]),
        "rows": np.array(rows, dtype=object),
    }


def visible_shares(row: Mapping, bands: int) -> Floats:
    """Share of the body that is seen in each of `bands` bands of the picture; 1 without body."""
    seen, body = unpack_mask(row["person_mask"]), unpack_mask(row["body_mask"])
    parts = zip(np.array_split(seen, bands), np.array_split(body, bands), strict=True)
    return np.array([s.sum() / b.sum() if b.any() else 1.0 for s, b in parts])


def only(part: Embeddings, space: str) -> Embeddings:
    return replace(part, features={space: part.features[space]}, masks={space: part.masks[space]})


def precisions(query: Embeddings, gallery: Embeddings) -> dict[str, Floats]:
    """Mode -> average precision of each query [Q]; of permuted masks the mean of 10 exchanges."""
    ranked = [rank_by_mode(query, gallery, seed) for seed in range(EXCHANGES)]
    return {mode: np.mean([r[mode].average_precision for r in ranked], axis=0) for mode in MODES}


def gains(found: Mapping[str, Floats]) -> dict[str, float]:
    """mAP with the own mask, and what it is above each control."""
    means = {mode: float(np.nanmean(values)) for mode, values in found.items()}
    own = means.pop("masked")
    return {"own": own, **{mode: own - value for mode, value in means.items()}}


def with_true_masks(query, gallery, notes, config) -> Figures:
    """The same features; the band space masked by what is truly seen."""
    bands = config.model.bands
    shares = np.stack([visible_shares(row, bands) for row in notes["rows"]]) + FLOOR
    width = query.masks[BANDS].shape[1] // bands
    truth = np.repeat(shares, width, axis=1).astype(np.float32)
    told = replace(query, masks={**query.masks, BANDS: truth})
    return {
        "all spaces, true bands": gains(precisions(told, gallery)),
        "bands alone, true": gains(precisions(only(told, BANDS), only(gallery, BANDS))),
    }


def explained(query: Embeddings, notes: Mapping[str, NDArray]) -> Figures:
    """Per space: shares of the masks' variance over queries, and how lively they are."""
    dealt = np.random.default_rng(0).permutation(len(query))
    figures = {}
    statistics = mask_statistics(query.masks)
    for space, mask in query.masks.items():
        if not mask.std(axis=0).any():  # no mask at all: nothing to explain
            continue
        values = mask.astype(np.float64)
        figures[f"variance, {space}"] = {
            "visible body": predicted(values, notes["visible"]),
            "dealt": predicted(values, notes["visible"][dealt]),
            "person": between(values, notes["person"]),
            "occluder": between(values, notes["occluder"]),
            "std over queries": statistics[space]["std_queries"],
            "participation": statistics[space]["participation"],
        }
    return figures


def predicted(values: Floats, causes: Floats) -> float:
    """Share of the variance of `values` [N, D] that a line through `causes` foretells, 10 folds."""
    design = np.hstack([causes, np.ones((len(causes), 1))])
    folds = np.arange(len(values)) % FOLDS
    left = np.empty_like(values)
    for fold in range(FOLDS):
        inside, outside = folds != fold, folds == fold
        weights, *_ = np.linalg.lstsq(design[inside], values[inside], rcond=None)
        left[outside] = values[outside] - design[outside] @ weights
    return float(1 - np.square(left).sum() / np.square(values - values.mean(axis=0)).sum())


def between(values: Floats, groups: NDArray) -> float:
    """Share of the variance between groups, less what groups by chance have (omega squared)."""
    names, index = np.unique(groups, return_inverse=True)
    means = np.stack([values[index == i].mean(axis=0) for i in range(len(names))])
    within = np.square(values - means[index]).sum()
    total = np.square(values - values.mean(axis=0)).sum()
    error = within / max(1, len(values) - len(names))
    return float((total - within - (len(names) - 1) * error) / (total + error))


def table(name: str, command: str, seeds: list[int], measured: Sequence[Measured]) -> str:
    """Markdown: gains in points of mAP, correlations and shares of variance in percent."""
    runs = [one.figures for one in measured]
    follows = [row for row in runs[0] if row.startswith("following")]
    shares = [row for row in runs[0] if row.startswith("variance")]
    gained = [row for row in runs[0] if row not in (*follows, *shares)]
    over_seeds = {mode: np.mean([one.precisions[mode] for one in measured], axis=0)
                  for mode in MODES}  # fmt: skip
    packages = environment()["packages"]
    lines = [
        f"# Masks of {name}",
        "",
        f"`{command} --seeds {' '.join(map(str, seeds))}`; {date.today().isoformat()}. Occluded "
        f"queries unless it says holistic; mean ± std over {len(seeds)} training seeds. "
        f"{environment()['cpus']} cores ({platform.machine()}, no GPU); Python "
        f"{platform.python_version()}; {', '.join(f'{k} {v}' for k, v in packages.items())}.",
        "",
        "| spaces | mAP, own mask | over none | over permuted | over static |",
        "|---|---:|---:|---:|---:|",
        *_rows(gained, ("own", "unmasked", "permuted", "static"), runs),
        "",
        "All spaces together, each query's mean over the seeds; in brackets the 95 % bootstrap "
        "interval over identities:",
        "",
        *gain_table(over_seeds, measured[0].notes),
        "",
        "Rank correlation x 100, over pairs of queries, of the distance of their masks with the "
        "distance of what is seen of them:",
        "",
        "| space, pairs | number | visible body | the same, dealt to others |",
        "|---|---:|---:|---:|",
        *(row.replace(" | ", f" | {runs[0][name]['pairs']:,.0f} | ", 1)
          for name, row in zip(follows, _rows(follows, ("visible body", "dealt"), runs),
                               strict=True)),
        "",
        "Share of the masks' variance over queries that is foretold by, or lies between, in "
        "percent:",
        "",
        "| | visible body | the same, dealt to others | persons | occluders | std over queries x "
        "100 | participation |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *_rows(shares, ("visible body", "dealt", "person", "occluder", "std over queries",
                        "participation"), runs),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _rows(names: list[str], columns: tuple[str, ...], runs: list[Figures]) -> list[str]:
    return [
        f"| {name.removeprefix('following, ').removeprefix('variance, ')} | "
        + " | ".join(spread([run[name][column] for run in runs]) for column in columns)
        + " |"
        for name in names
    ]


if __name__ == "__main__":
    main()
