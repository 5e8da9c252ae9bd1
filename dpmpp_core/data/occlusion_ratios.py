"""The share of a picture's person that is hidden, from files next to the pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.data.annotations import ANNOTATIONS, read_columns
from dpmpp_core.data.files import read_bytes
from dpmpp_core.errors import DataError

SYNTHESIS, LISTED = "synthesis.parquet", "occlusion.csv"


def occlusion_ratios(root: str, paths: Sequence[str]) -> NDArray[np.float64]:
    """Read the share hidden of each picture, in [0, 1]: float64 [N]; NaN where it is not known.

    These files are read in this order; of several values the last one counts:

    - `annotations.parquet`: columns `path` and `visible_share` (of the body), as of the demo set;
    - `synthesis.parquet`: columns `path` and `hidden` (of the person's patches), as `dpmpp
      synthesize` writes it; null is a clean picture, 0;
    - `occlusion.csv`: columns `file` and `frac` (of the whole picture).

    Args:
        root: the data folder, local or S3.
        paths: as in the manifest.

    Raises:
        DataError: one of these files is damaged, or a share is no number in [0, 1].
    """
    known: dict[str, float] = {}
    for path, visible in _parquet(root, ANNOTATIONS, "visible_share"):
        if visible is not None:
            known[path] = 1 - _share(visible, path, ANNOTATIONS, root)
    for path, ratio in _parquet(root, SYNTHESIS, "hidden"):
        known[path] = 0.0 if ratio is None else _share(ratio, path, SYNTHESIS, root)
    for path, ratio in _csv(root):
        known[path] = _share(ratio, path, LISTED, root)
    return np.array([known.get(path, np.nan) for path in paths], np.float64)


def _share(value: object, path: str, file: str, root: str) -> float:
    try:
        share = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        share = float("nan")
    if not -1e-9 <= share <= 1 + 1e-9:
        raise DataError(f"{file} in {root}: the share of {path} is {value}, not between 0 and 1")
    return min(max(share, 0.0), 1.0)


def _parquet(root: str, file: str, column: str) -> Iterable[tuple[str, object]]:
    """Return the rows of a table; none without the file or one of the columns."""
    rows = read_columns(root, file, ["path", column])
    if rows is None:
        return []
    return zip(rows["path"].to_pylist(), rows[column].to_pylist(), strict=True)


def _csv(root: str) -> Iterable[tuple[str, object]]:
    try:
        data = read_bytes(root, LISTED)
    except DataError:
        return []
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        if not {"file", "frac"} <= set(rows.fieldnames or ()):
            return []
        return [(row["file"], row["frac"]) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{LISTED} in {root} is not a table: {error}") from None
