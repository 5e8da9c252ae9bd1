"""Say how alike the persons of two pictures are, with and without the first one's mask.

python docs/examples/compare_pictures.py QUERY.jpg OTHER.jpg [MODEL]
"""

from __future__ import annotations

import sys

import dpmpp_core


def main() -> None:
    """Compare the two pictures that the command line names."""
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    model = dpmpp_core.load_model(*sys.argv[3:])
    query, other = model.embed([sys.argv[1]]), model.embed([sys.argv[2]])
    for name, masks in (("with mask", query.masks), ("no mask", None)):
        score = dpmpp_core.masked_similarity(query.features, masks, other.features)
        print(f"{name}: {float(score[0, 0]):.3f}")
    if query.occluded is not None:
        print(f"patches that hide the body: {(query.occluded > 0.5).mean():.0%}")


if __name__ == "__main__":
    main()
