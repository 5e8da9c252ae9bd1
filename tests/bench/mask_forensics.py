"""Do the masks follow the visible body, and does retrieval gain by it?

    python -m tests.bench.mask_forensics NAME [KEY=VALUE ...] [--config demo] [--storage runs]
        --seeds 0 1 2

Runs `dpmpp evaluate` on the demo set with each seed (finished stages are reused) and takes apart
the masks of the occluded queries; writes `results/masks-NAME.md` and, next to the storage,
`masks-NAME.png`.

- Gain: mAP with a query's own mask, over none, over another query's (mean of 10 exchanges) and
  over the mean mask; in all spaces together and in each alone; mean and std over the seeds.
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
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpmpp_core.config import load_config
from dpmpp_core.data.demo.generate import ANNOTATIONS, unpack_mask
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.models.bands import SPACE as BANDS
from dpmpp_core.retrieval.evaluation import MODES, Embeddings, rankings
from dpmpp_core.retrieval.masks import mask_statistics
from pipelines.evaluate import load_embeddings
from pipelines.pictures import contact_sheet, save_png
from pipelines.run import Options, run_pipeline
from pipelines.tracking import environment
from tests.bench.seeds import spread
from tests.bench.timing import RESULTS

BODY_BANDS = 8  # of the body, to say what of it is seen
EXCHANGES, FOLDS = 10, 10
FLOOR = 0.02  # of a true visible share: a mask must not be all zero
Floats = NDArray[np.float64]
Figures = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--config", default="demo")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments, overrides = parser.parse_known_args()
    runs = [measure(arguments, overrides, seed) for seed in arguments.seeds]
    command = " ".join(["python -m tests.bench.mask_forensics", arguments.name, *overrides])
    command += "" if arguments.config == "demo" else f" --config {arguments.config}"
    text = table(arguments.name, command, arguments.seeds, runs)
    (RESULTS / f"masks-{arguments.name}.md").write_text(text)
    print(text)


def measure(arguments: argparse.Namespace, overrides: list[str], seed: int) -> Figures:
    """Everything of one training seed: row of the table -> column -> value."""
    overrides = [*overrides, f"seed={seed}"]
    options = Options(None, arguments.config, overrides, arguments.storage)
    result = run_pipeline(options, until="evaluate")
    keys = {stage["name"]: stage["key"] for stage in result["stages"]}
    storage = Path(arguments.storage)
    query = load_embeddings(storage / keys["evaluate"] / "occluded.safetensors")
    gallery = load_embeddings(storage / keys["evaluate"] / "gallery.safetensors")
    whole = load_embeddings(storage / keys["evaluate"] / "holistic.safetensors")
    root = Manifest.load(storage / keys["prepare"]).root
    notes = annotations(root, query.paths)
    rows = gains(query, gallery)
    rows |= {f"holistic, {name}": values for name, values in gains(whole, gallery).items()
             if name == "all spaces"}  # fmt: skip
    for space in query.features:
        rows[f"{space} alone"] = gains(only(query, space), only(gallery, space))["all spaces"]
    if BANDS in query.features:
        rows |= with_true_masks(query, gallery, notes, load_config(arguments.config, overrides))
    if seed == arguments.seeds[0]:
        picture(root, query, notes, storage / f"masks-{arguments.name}.png")
    return rows | explained(query, notes)


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


def gains(query: Embeddings, gallery: Embeddings) -> Figures:
    """mAP with the own mask, and what it is above each control."""
    ranked = [rankings(query, gallery, seed) for seed in range(EXCHANGES)]
    found = {mode: float(np.mean([r[mode].mAP for r in ranked])) for mode in MODES}
    own = found.pop("masked")
    return {"all spaces": {"own": own, **{mode: own - value for mode, value in found.items()}}}


def with_true_masks(query, gallery, notes, config) -> Figures:
    """The same features; the band space masked by what is truly seen."""
    bands = config.model.bands
    shares = np.stack([visible_shares(row, bands) for row in notes["rows"]]) + FLOOR
    width = query.masks[BANDS].shape[1] // bands
    truth = np.repeat(shares, width, axis=1).astype(np.float32)
    told = replace(query, masks={**query.masks, BANDS: truth})
    return {
        "all spaces, true bands": gains(told, gallery)["all spaces"],
        "bands alone, true": gains(only(told, BANDS), only(gallery, BANDS))["all spaces"],
    }


def explained(query: Embeddings, notes: Mapping[str, NDArray]) -> Figures:
    """Per space: shares of the masks' variance over queries, and how lively they are."""
    dealt = np.random.default_rng(0).permutation(len(query))
    figures = {}
    statistics = mask_statistics(query.masks)
    for space, mask in query.masks.items():
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


def picture(root: str, query: Embeddings, notes: Mapping[str, NDArray], path: Path) -> None:
    """Occluded queries; below each, darkened by what its bands trust, and by what is truly seen."""
    cells, captions = [], []
    masks = query.masks.get(BANDS)
    for i in np.linspace(0, len(query) - 1, 10).round().astype(int):
        image = resize(read_image(root, query.paths[i]), 256, 128)
        truth = visible_shares(notes["rows"][i], BODY_BANDS)
        cells += [image, shaded(image, truth)]
        captions += [str(notes["occluder"][i]), "truly seen"]
        if masks is not None:
            usual = masks.mean(axis=0)
            cells.append(shaded(image, np.clip(masks[i] / usual, 0, 1.2) / 1.2))
            captions.append("trusted")
    save_png(path, contact_sheet(cells, captions, 12 if masks is not None else 10))


def shaded(image: NDArray[np.uint8], light: Floats) -> NDArray[np.uint8]:
    rows = cv2.resize(light.reshape(-1, 1).astype(np.float32), (128, 256),
                      interpolation=cv2.INTER_NEAREST)  # fmt: skip
    return (image * (0.15 + 0.85 * rows[..., None])).astype(np.uint8)


def table(name: str, command: str, seeds: list[int], runs: list[Figures]) -> str:
    """Markdown: gains in points of mAP, then the shares of variance in percent."""
    gained = [row for row in runs[0] if not row.startswith("variance")]
    shares = [row for row in runs[0] if row.startswith("variance")]
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
        f"| {name} | "
        + " | ".join(spread([run[name][column] for run in runs]) for column in columns)
        + " |"
        for name in names
    ]


if __name__ == "__main__":
    main()
