"""What hiding costs beside decoding: pairing and transfer of a 64-image batch, 256x128, one core.

    python -m tests.bench.transfer_speed [--data DIR] [--rounds 40]

DIR: a demo set; none = a small one is generated. Writes `results/transfer-speed.md`; exit code 1 if
the share is above the bar of 10 % up to the default bank.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dpmpp_core.config import AugmentConfig, DemoConfig, OcclusionConfig
from dpmpp_core.data.augment import Geometry, apply_to_image, apply_to_masks, random_erase
from dpmpp_core.data.donors import Donors, ImageCache
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.data.plan import Draw, stream
from dpmpp_core.demo.generate import generate
from dpmpp_core.occlusion.pairing import draw_pairs
from dpmpp_core.occlusion.saliency import spectral_saliency
from dpmpp_core.occlusion.transfer import transfer_patches, visible_patches

RESULTS = Path(__file__).parent / "results"
BATCH, GRID, BAR = 64, (16, 8), 0.10
BANKS = (0, 64, 256)
AUGMENT = AugmentConfig()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.data or Path(folder) / "demo"
        if arguments.data is None:
            generate(root, DemoConfig(train_identities=40, test_identities=2))
        text, within = measure(root, arguments.rounds)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "transfer-speed.md").write_text(text)
    print(text)
    return 0 if within else 1


def measure(root: Path, rounds: int) -> tuple[str, bool]:
    paths = sorted(str(p.relative_to(root)) for p in root.glob("bounding_box_train/*.jpg"))
    base = str(root)
    masks = np.stack([spectral_saliency(read_image(base, p), GRID, 0.3) for p in paths])
    rows = np.arange(BATCH)

    def decode() -> list[Any]:
        return [resize(read_image(base, paths[row]), 256, 128) for row in rows]

    images = decode()
    moves = [Geometry.draw(AUGMENT, stream(0, 0, 0, i, Draw.GEOMETRY)) for i in rows]
    moved = apply_to_masks(masks[rows], moves, AUGMENT.pad, 256, 128)

    def augment() -> list[Any]:
        out = []
        for i in rows:
            move = Geometry.draw(AUGMENT, stream(0, 0, 0, i, Draw.GEOMETRY))
            out.append(apply_to_image(images[i], move, AUGMENT.pad))
            if i % 4 == 0:  # half of those that are not mixed
                out[-1] = random_erase(out[-1], stream(0, 0, 0, i, Draw.ERASING))
        apply_to_masks(masks[rows], moves, AUGMENT.pad, 256, 128)
        return out

    augmented = [image.transpose(2, 0, 1) for image in augment()]
    work: dict[str, Callable[[], Any]] = {"decode": decode, "augment": augment}
    donors = Donors(ImageCache(base, paths, 256, 128, 0), masks, AUGMENT, OcclusionConfig())
    beyond = {}
    for bank in BANKS:
        config = OcclusionConfig(bank=bank)

        def pair(config: OcclusionConfig = config) -> Any:
            drawn = donors.draw(config.bank, stream(0, 0, 0, 0, Draw.BANK))
            everyone = np.concatenate([rows, drawn.rows])
            lent = np.concatenate([moved, drawn.masks])
            excluded = rows[:, None] == everyone[None, :]
            rng = stream(0, 0, 0, 0, Draw.PAIRING)
            return drawn, lent, draw_pairs(moved, config, rng, lent, excluded)

        drawn, lent, pairs = pair()
        mixed = np.flatnonzero(pairs.donor >= 0)
        needed = sorted({int(j) - BATCH for j in pairs.donor[mixed] if j >= BATCH})
        pictures = {BATCH + k: donors.picture(drawn, k).transpose(2, 0, 1) for k in needed}
        pictures |= dict(enumerate(augmented))

        def transfer(
            pairs: Any = pairs, lent: Any = lent, mixed: Any = mixed, pictures: Any = pictures
        ) -> None:
            for i in mixed:
                j, shift = int(pairs.donor[i]), int(pairs.shift[i])
                transfer_patches(pictures[i], pictures[j], lent[j], shift)
                visible_patches(moved[i], lent[j], shift)

        def read(drawn: Any = drawn, needed: Any = needed) -> None:
            for k in needed:
                donors.picture(drawn, k)

        work |= {f"pair {bank}": pair, f"transfer {bank}": transfer, f"read {bank}": read}
        beyond[bank] = len(needed)
    return report(timed(work, rounds), beyond, rounds)


def timed(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each, measured in turns so that all see the same machine."""
    spent: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, do in work.items():
            start = time.process_time()
            do()
            spent[name].append(1e3 * (time.process_time() - start))
    return {name: float(np.median(times)) for name, times in spent.items()}


def report(spent: dict[str, float], beyond: dict[int, int], rounds: int) -> tuple[str, bool]:
    base = spent["decode"] + spent["augment"]
    lines = [
        "# Cost of patch transfer",
        "",
        f"`python -m tests.bench.transfer_speed --rounds {rounds}`; {date.today().isoformat()}; "
        f"{platform.machine()}, one core, CPU milliseconds, median. Batch of {BATCH} JPEG files of "
        "the demo set at 256x128, half of them mixed. Decoding and augmenting the batch (files "
        f"read, resized; flip, pad, crop, erasing; masks moved): {spent['decode']:.1f} + "
        f"{spent['augment']:.1f} = {base:.1f} ms.",
        "",
        "| bank | pairing (bank's masks drawn and moved) | transfer | share of decoding and "
        f"augmenting (bar: {100 * BAR:.0f} %) | donors read beyond the batch | reading them, if "
        "not in the cache |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    within = True
    for bank, count in beyond.items():
        pair, transfer, read = (spent[f"{name} {bank}"] for name in ("pair", "transfer", "read"))
        share = (pair + transfer) / base
        within &= share <= BAR or bank > OcclusionConfig().bank
        lines.append(
            f"| {bank} | {pair:.2f} ms | {transfer:.2f} ms | {100 * share:.1f} % | {count} | "
            f"{read:.1f} ms |"
        )
    return "\n".join([*lines, ""]), within


if __name__ == "__main__":
    raise SystemExit(main())
