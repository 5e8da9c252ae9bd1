"""Published counts of the public data sets, and comparison of a folder with them."""

from __future__ import annotations

import pyarrow.compute as pc

from dpmpp_core.data.manifest import Manifest
from dpmpp_core.errors import DataError

# Images and identities (None: not stated) of each split, and cameras, as published.
PUBLISHED: dict[str, dict[str, tuple[int, int | None]]] = {
    "market1501": {"train": (12_936, 751), "query": (3_368, 750), "gallery": (15_913, None)},
    "dukemtmc_reid": {"train": (16_522, 702), "query": (2_228, None), "gallery": (17_661, None)},
    "occluded_duke": {"train": (15_618, 702), "query": (2_210, 519), "gallery": (17_661, 1_110)},
    "occluded_reid": {"query": (1_000, 200), "gallery": (1_000, 200)},
    "p_duke": {"train": (12_927, 665), "query": (2_163, 634), "gallery": (9_053, 634)},
    "partial_reid": {"query": (300, 60), "gallery": (300, 60)},
    "msmt17": {"train": (32_621, 1_041), "query": (11_659, None), "gallery": (82_161, None)},
}
CAMERAS = {"market1501": 6, "dukemtmc_reid": 8, "occluded_duke": 8, "msmt17": 15}


def compare_counts(manifest: Manifest, dataset: str) -> list[str]:
    """Return sentences on where a manifest differs from the published counts; empty if nowhere.

    DataError if `dataset` is not one of PUBLISHED. Person 0 of a market1501 gallery is no identity.
    Quarantined duplicates are missing from the counts as they are from the manifest.
    """
    if dataset not in PUBLISHED:
        known = ", ".join(PUBLISHED)
        raise DataError(f"no published counts of {dataset!r}; known are {known}")
    differences = []
    counts = manifest.counts()
    counts["query"] = {
        "images": manifest.subset("query").num_rows,
        "identities": pc.count_distinct(manifest.subset("query")["pid"]).as_py(),
    }
    for split, (images, identities) in PUBLISHED[dataset].items():
        for what, published in (("images", images), ("identities", identities)):
            here = counts[split][what]
            if published is not None and here != published:
                more = f"{abs(here - published):,} {'more' if here > published else 'fewer'}"
                differences.append(
                    f"{split}: {here:,} {what}, published are {published:,} ({more})"
                )
    cameras = pc.count_distinct(manifest.images["camid"]).as_py()
    if cameras != CAMERAS.get(dataset, cameras):
        differences.append(f"{cameras} cameras, published are {CAMERAS[dataset]}")
    return differences
