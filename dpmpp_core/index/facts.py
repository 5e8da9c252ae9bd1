"""Summary of an index in plain values."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dpmpp_core.index.gallery import GalleryIndex


def describe_index(index: GalleryIndex) -> dict[str, Any]:
    """Return the values of `dpmpp index info`; reads the small columns of all segments."""
    persons: set[int] = set()
    cameras: set[int] = set()
    first: int | None = None
    last: int | None = None
    for block in index.blocks():
        rows = block.rows.select(["pid", "camid", "time"]).filter(pa.array(block.live))
        persons |= set(pc.unique(rows["pid"].drop_null()).to_pylist())
        cameras |= set(pc.unique(rows["camid"].drop_null()).to_pylist())
        span = pc.min_max(rows["time"]).as_py()
        if span["min"] is not None:
            first = span["min"] if first is None else min(first, span["min"])
            last = span["max"] if last is None else max(last, span["max"])
    manifest = index.manifest
    present = {"persons": persons, "cameras": cameras}
    names = {
        kind: {name: number for name, number in given.items() if number in present[kind]}
        for kind, given in manifest.names.model_dump().items()
    }
    return {
        "index": str(index.folder),
        "images": len(index),
        "persons": len(persons),
        "cameras": sorted(cameras),
        **({"names": names} if any(names.values()) else {}),
        "first_time": first,
        "last_time": last,
        "sketched": index.sketched,
        "deleted": index.deleted,
        "segments": len(manifest.segments),
        "bytes": index.bytes,
        "stored": manifest.stored,
        "model": manifest.source,
        "weights_sha256": manifest.model.weights_sha256,
        "spaces": manifest.model.spaces,
    }
