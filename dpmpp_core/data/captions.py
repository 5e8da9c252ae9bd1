"""Captions of the persons of a data set: column `caption` of `annotations.parquet`."""

from __future__ import annotations

from collections.abc import Sequence

from dpmpp_core.data.annotations import ANNOTATIONS, read_columns
from dpmpp_core.errors import DataError

COLUMNS = ("path", "caption")


def read_captions(root: str, paths: Sequence[str]) -> list[str]:
    """Read the captions of the images `paths`, in their order, from a local or S3 folder.

    Raises:
        DataError: no such file or columns, or an image without a caption, which is named.
    """
    table = read_columns(root, ANNOTATIONS, COLUMNS)
    if table is None:
        raise DataError(f"{root} has no {ANNOTATIONS} with the columns {' and '.join(COLUMNS)}")
    captions = dict(zip(table["path"].to_pylist(), table["caption"].to_pylist(), strict=True))
    missing = next((path for path in paths if not captions.get(path)), None)
    if missing is not None:
        raise DataError(f"{ANNOTATIONS} in {root} has no caption for {missing}: add that row")
    return [captions[path] for path in paths]
