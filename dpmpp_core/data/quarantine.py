"""Images that are refused because of others: copies, and persons without a usable image.

Works on whole tables of inspected rows (`manifest.INSPECTED_SCHEMA`); only the rows concerned are
compared one by one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpmpp_core.data.files import Rejected

Row = dict[str, Any]


def mark_duplicates(rows: pa.Table) -> pa.Table:
    """Set `reason` and `detail` of rows whose content occurs before in the same set.

    Rows must be sorted by path within each split. The first of a content is kept; where copies name
    different persons, none is.
    """
    good = pc.equal(rows["reason"], "")
    contents = rows.filter(good)["sha256"].value_counts()
    twice = contents.filter(pc.greater(contents.field("counts"), 1)).field("values")
    copies = pc.and_(good, pc.is_in(rows["sha256"], value_set=twice))
    groups: dict[tuple[str, bool, str], list[tuple[int, Row]]] = defaultdict(list)
    numbers = np.flatnonzero(copies.to_numpy())
    for number, row in zip(numbers, rows.filter(copies).to_pylist(), strict=True):
        groups[(*_set_of(row), row["sha256"])].append((int(number), row))
    marked: dict[int, tuple[str, str]] = {}
    for group in groups.values():
        _, first = group[0]
        pids = sorted({row["pid"] for _, row in group})
        if len(pids) > 1:
            detail = "the same picture is labelled as persons " + some(pids)
            marked |= {number: ("conflicting_label", detail) for number, _ in group}
        else:
            detail = f"the same content as {first['path']}, which is kept"
            marked |= {number: ("duplicate", detail) for number, _ in group[1:]}
    return _marked(rows, marked)


def lost_identities(rows: pa.Table) -> list[Rejected]:
    """Return one `empty_identity` for every person of a set none of whose images is usable."""
    good = pc.equal(rows["reason"], "")
    kept = rows.filter(good).group_by(["split", "occluded", "pid"]).aggregate([]).to_pylist()
    present = {(*_set_of(row), row["pid"]) for row in kept}
    persons: dict[tuple[str, bool, int], list[Row]] = defaultdict(list)
    for row in rows.filter(pc.invert(good)).to_pylist():
        person = (*_set_of(row), row["pid"])
        if person not in present:
            persons[person].append(row)
    lost = []
    for (split, _, pid), images in persons.items():
        folder = images[0]["path"].rpartition("/")[0]
        reasons = Counter(row["reason"] for row in images).most_common()
        why = ", ".join(f"{count} {reason}" for reason, count in reasons)
        detail = f"person {pid} of {split} lost every image: {why}"
        lost.append(Rejected(folder, "empty_identity", detail))
    return lost


def some(items: Sequence[object]) -> str:
    """List the first few of many items, for a message."""
    rest = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(str(item) for item in items[:5]) + rest


def _marked(rows: pa.Table, marked: dict[int, tuple[str, str]]) -> pa.Table:
    numbers = sorted(marked)
    mask = np.zeros(len(rows), np.bool_)
    mask[numbers] = True
    for k, name in enumerate(("reason", "detail")):
        texts = pa.array([marked[number][k] for number in numbers], pa.string())
        column = pc.replace_with_mask(rows[name].combine_chunks(), pa.array(mask), texts)
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(index, rows.schema.field(index), column)
    return rows


def _set_of(row: Row) -> tuple[str, bool]:
    """Return the split of a row and, for queries, which query set."""
    return row["split"], row["occluded"] and row["split"] == "query"
