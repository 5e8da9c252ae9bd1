"""Summary of an index in plain values, and what a filter misses in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dpmpp_core.data.sightings import show_time
from dpmpp_core.errors import DataError
from dpmpp_core.index.gallery import GalleryIndex
from dpmpp_core.index.names import show_labels
from dpmpp_core.index.search import RowFilter

LISTED_CAMERAS = 20  # in an error


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


def refuse_no_rows(where: RowFilter | None, index: GalleryIndex | None) -> None:
    """Raise DataError for a filter that no row passed: its conditions, and what the index has.

    Args:
        where: the filter; nothing is raised where it has no condition.
        index: None = its rows are on other machines, so what it has is not stated.
    """
    if where is None or where == RowFilter():
        return
    conditions = []
    if where.cameras is not None:
        conditions.append(f"of camera {_join([*map(str, where.cameras)])}")
    if where.since is not None:
        conditions.append(f"from {show_time(where.since)} UTC on")
    if where.until is not None:
        conditions.append(f"before {show_time(where.until)} UTC")
    message = f"the index has no image {', '.join(conditions)}"
    if index is not None:
        facts = describe_index(index)
        times = [show_time(facts[key]) for key in ("first_time", "last_time")]
        stated = f"{times[0]} to {times[1]}" if all(times) else "none that is known"
        cameras = show_labels(facts["cameras"], index.manifest.names.cameras)
        message += f"; its cameras: {_join(cameras)}; its times: {stated}"
    raise DataError(message)


def _join(cameras: Sequence[str]) -> str:
    more = len(cameras) - LISTED_CAMERAS
    return (", ".join(cameras[:LISTED_CAMERAS]) or "none") + (
        f" and {more} more" if more > 0 else ""
    )
