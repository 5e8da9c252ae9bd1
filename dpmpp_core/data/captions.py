"""What is said about the persons of a data set: column `caption` of `annotations.parquet`."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from dpmpp_core.data.demo.generate import ANNOTATIONS
from dpmpp_core.data.files import read_bytes
from dpmpp_core.errors import DataError


def read_captions(root: str, paths: Sequence[str]) -> list[str]:
    """The captions of images, in the order of `paths`.

    Args:
        root: the data folder, local or S3.

    Raises:
        DataError: no such file or columns, or an image without a caption; says which.
    """
    data = read_bytes(root, ANNOTATIONS)
    try:
        table = pq.read_table(pa.BufferReader(data), columns=["path", "caption"])
    except (pa.ArrowException, OSError, KeyError) as error:
        problem = " ".join(str(error).split())
        raise DataError(
            f"{ANNOTATIONS} in {root} has no columns path and caption: {problem}"
        ) from None
    captions = dict(zip(table["path"].to_pylist(), table["caption"].to_pylist(), strict=True))
    missing = next((path for path in paths if not captions.get(path)), None)
    if missing is not None:
        raise DataError(f"{ANNOTATIONS} in {root} has no caption for {missing}: add that row")
    return [captions[path] for path in paths]
