"""What patch transfer leaves of the person, by way of pairing, against true person masks.

    python -m tests.bench.pairing_quality [--data DIR] [--steps 30]

DIR: a demo set; none = the default one is generated. Writes `results/pairing.md`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpmpp_core.config import AugmentConfig, DemoConfig, OcclusionConfig
from dpmpp_core.data.annotations import ANNOTATIONS, unpack_mask
from dpmpp_core.data.augment import Geometry, apply_to_image, apply_to_masks
from dpmpp_core.data.images import read_image
from dpmpp_core.data.plan import Draw, StepPlan, class_labels, stream
from dpmpp_core.demo.generate import generate
from dpmpp_core.demo.plan import TRAIN
from dpmpp_core.occlusion.pairing import draw_pairs
from dpmpp_core.occlusion.saliency import spectral_saliency

RESULTS = Path(__file__).parent / "results"
GRID, PATCH = (16, 8), 16
BANKS = (0, 64, 256)
BATCHES = ((16, 4), (4, 2))  # identities x images
ALWAYS = OcclusionConfig(probability=1)
DESTROYED = 0.3  # share of the person left, below which nobody could tell who it is
USEFUL = (0.1, 0.6)  # share of the person hidden
Masks = NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.data or Path(folder) / "demo"
        if arguments.data is None:
            generate(root, DemoConfig())
        text = table(measure(root, arguments.steps), arguments.steps)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "pairing.md").write_text(text)
    print(text)


def measure(root: Path, steps: int) -> dict[tuple[str, str, str], NDArray[np.float64]]:
    """(batch, masks, pairing) -> [steps, B, 3]: share of the person hidden, NaN = left clean; share
    of the donor's person still to be seen; the donor's place."""
    rows = [r for r in pq.read_table(root / ANNOTATIONS).to_pylist() if r["split"] == TRAIN]
    truth = np.stack([unpack_mask(row["person_mask"]) for row in rows])
    shares = truth.reshape(len(rows), GRID[0], PATCH, GRID[1], PATCH).mean(axis=(2, 4))
    spectral = np.stack(
        [spectral_saliency(read_image(str(root), row["path"]), GRID, 0.3) for row in rows]
    )
    labels, _ = class_labels([row["pid"] for row in rows])
    camids = np.array([row["camid"] for row in rows])
    result = {}
    for identities, images in BATCHES:
        plan = StepPlan(labels, camids, identities, images, seed=0)
        for name, masks in (("true", shares >= 0.5), ("spectral", spectral)):
            for bank in (None, *BANKS):
                way = "random" if bank is None else f"OIoU, batch + bank {bank}" if bank else "OIoU"
                made = np.stack(list(outcomes(plan, masks, truth, steps, bank)))
                result[f"{identities} x {images}", name, way] = made
    return result


def outcomes(
    plan: StepPlan, masks: Masks, truth: Masks, steps: int, bank: int | None
) -> Iterator[NDArray[np.float64]]:
    """Of each step, [B, 3] as in `measure`; bank None = donor and shift at random."""
    batch = plan.identities * plan.images
    for number in range(steps * 64 // batch):
        epoch, step = divmod(number, plan.steps_per_epoch)
        rng = stream(plan.seed, epoch, step, 0, Draw.PAIRING)
        rows = plan.rows(epoch, step)
        drawn = np.random.default_rng((number, 1)).choice(len(masks), bank or 0, replace=False)
        rows = np.concatenate([rows, drawn])
        draws = [stream(plan.seed, epoch, step, i, Draw.GEOMETRY) for i in range(len(rows))]
        moves = [Geometry.draw(AugmentConfig(), draw) for draw in draws]
        moved = apply_to_masks(masks[rows], moves, 10, 256, 128)
        if bank is None:
            donors = (np.arange(batch) + rng.integers(1, batch, batch)) % batch
            shifts = rng.integers(0, GRID[1], batch)
        else:
            excluded = rows[:batch, None] == rows[None, :]
            pairs = draw_pairs(moved[:batch], ALWAYS, rng, moved, excluded)
            donors, shifts = pairs.donor, pairs.shift
        out = np.full((batch, 3), np.nan)
        for i in np.flatnonzero(donors >= 0):
            j = donors[i]
            person, lender = (in_place(truth[rows[k]], moves[k]) for k in (i, j))
            seen = moved[j].repeat(PATCH, 0).repeat(PATCH, 1)
            left = (np.roll(person, shifts[i] * PATCH, axis=1) & seen).sum() / person.sum()
            out[i] = 1 - left, (lender & ~seen).sum() / lender.sum(), j
        yield out


def in_place(mask: Masks, move: Geometry) -> Masks:
    """A pixel mask after augmentation."""
    pixels = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8)
    return apply_to_image(pixels, move, 10)[..., 0] > 0


def table(result: dict[tuple[str, str, str], NDArray[np.float64]], steps: int) -> str:
    lines = [
        "# Pairing for patch transfer",
        "",
        f"`python -m tests.bench.pairing_quality --steps {steps}`; {date.today().isoformat()}. "
        f"Default demo set, {64 * steps:,} samples a row, every one to be mixed (in training: "
        "half). Hidden is counted in pixels of the true person after augmentation, whatever masks "
        "the pairing saw. Random: donor of the batch and shift at random, same transfer. Percent; "
        "donors in use: different ones for 100 mixed samples of a batch.",
        "",
        "| batch | masks | pairing | destroyed (< 30 % left) | useful (10-60 % hidden) | "
        "other mixed | left clean | mean hidden | donor's person still seen | donors in use |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for key, values in result.items():
        flat = values.reshape(-1, 3)
        mixed = flat[~np.isnan(flat[:, 0])]
        hidden, count = mixed[:, 0], len(flat)
        destroyed = (1 - hidden < DESTROYED).sum() / count
        useful = ((hidden >= USEFUL[0]) & (hidden <= USEFUL[1])).sum() / count
        clean = 1 - len(mixed) / count
        different = sum(len(np.unique(v[~np.isnan(v[:, 2]), 2])) for v in values) / len(mixed)
        shares = (destroyed, useful, 1 - destroyed - useful - clean, clean)
        cells = [*shares, hidden.mean(), mixed[:, 1].mean(), different]
        lines.append(f"| {' | '.join(key)} | {' | '.join(f'{100 * abs(c):.1f}' for c in cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
