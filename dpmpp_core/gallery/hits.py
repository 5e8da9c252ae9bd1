"""The hits of a search, with the labels of their rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dpmpp_core.data.files import read_bytes
from dpmpp_core.data.headers import MAX_BYTES
from dpmpp_core.errors import DataError
from dpmpp_core.index import LabelNames, SearchResult, invert
from dpmpp_core.retrieval.calibration import Calibration


class Hit(NamedTuple):
    """One picture of the index that is like a query.

    Attributes:
        image: its path or URI.
        score: masked similarity, in [-1, 1].
        probability: that it shows the same person, in (0, 1); None if the index is not calibrated.
        pid, camid: person and camera; None = not known.
        time: seconds since 1970, UTC.
        sha256: of the file, hexadecimal.
        person, camera: their names in the index, if it has any.
    """

    image: str
    score: float
    probability: float | None
    pid: int | None
    camid: int | None
    time: int | None
    sha256: str
    person: str | None = None
    camera: str | None = None

    @property
    def person_label(self) -> str:
        """The person's name, else its number; empty if it is not known."""
        return "" if self.pid is None else self.person or str(self.pid)

    @property
    def camera_label(self) -> str:
        """The camera's name, else its number; empty if it is not known."""
        return "" if self.camid is None else self.camera or str(self.camid)


def hit_fields(hits: Sequence[Hit]) -> list[str]:
    """Return the fields of `Hit` that hits are shown with: without names that none of them has."""
    names = {"person", "camera"}
    return [f for f in Hit._fields if f not in names or any(getattr(hit, f) for hit in hits)]


def list_hits(
    results: SearchResult,
    rows: pa.Table,
    names: LabelNames,
    calibration: Calibration | None = None,
    base_rate: float | None = None,
    min_score: float | None = None,
) -> list[list[Hit]]:
    """Return the hits of each query, best first.

    Args:
        results: of the search.
        rows: ROW_SCHEMA of the valid positions, query by query.
        names: of persons and cameras.
        calibration: of the index; None = no probabilities.
        base_rate: share of pairs of the same person; None = as calibrated.
        min_score: hits below it are left out; None = all are listed.
    """
    valid = results.positions >= 0
    scores = results.scores[valid].astype(np.float64)
    chances: list[float] | list[None] = [None] * len(scores)
    if calibration is not None:
        chances = calibration.probability(scores, base_rate).tolist()
    columns = rows.select(["image", "pid", "camid", "time", "sha256"]).to_pylist()
    persons, cameras = invert(names.persons), invert(names.cameras)
    hits = [
        Hit(score=float(score), probability=chance, **row,
            person=persons.get(row["pid"]), camera=cameras.get(row["camid"]))
        for row, score, chance in zip(columns, scores, chances, strict=True)
    ]  # fmt: skip
    ends = np.cumsum(valid.sum(axis=1)).tolist()
    parts = [hits[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    if min_score is None:
        return parts
    return [[hit for hit in part if hit.score >= min_score] for part in parts]


def read_indexed(image: str, sha256: str) -> bytes | None:
    """Return the file of a row; None if it is gone, or another file than the one indexed.

    A row of a foreign index may name any file of this machine. Its bytes are decoded and shown only
    if they have the hash of the row, so whoever wrote the row had the same file.
    """
    root, _, name = image.rpartition("/")
    try:
        data = read_bytes(root or "/", name, MAX_BYTES + 1)
    except DataError:
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None
