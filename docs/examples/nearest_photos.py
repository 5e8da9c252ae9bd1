"""Write a table of each photo's nearest other photos: who may be the same person.

python docs/examples/nearest_photos.py PHOTOS nearest.csv [MODEL]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import dpmpp_core

NEAREST = 5
NAMES = {".jpg", ".jpeg", ".png", ".webp"}


def main() -> None:
    """Compare every photo of a folder with every other."""
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    photos = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.suffix.lower() in NAMES)
    embedded = dpmpp_core.load_model(*sys.argv[3:]).embed(photos)
    scores = dpmpp_core.masked_similarity(embedded.features, embedded.masks, embedded.features)
    scores.fill_diagonal_(-2)  # below every score: a photo is not its own answer
    best = scores.topk(min(NEAREST, len(photos) - 1), dim=1)
    with open(sys.argv[2], "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["photo", "rank", "nearest", "score"])
        for photo, values, rows in zip(
            photos, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            for rank, (score, row) in enumerate(zip(values, rows, strict=True), 1):
                table.writerow([photo, rank, photos[row], f"{score:.3f}"])
    print(f"{sys.argv[2]}: {len(photos)} photos")


if __name__ == "__main__":
    main()
