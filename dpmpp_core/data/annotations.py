"""Tables that may lie next to the images of a data folder, first of all `annotations.parquet`."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpmpp_core.data.files import read_bytes
from dpmpp_core.errors import DataError

ANNOTATIONS = "annotations.parquet"
GENERATED = {"dpmpp.generated": "dpmpp data demo"}  # metadata of the table of a generated set


def read_columns(root: str, file: str, columns: Sequence[str]) -> pa.Table | None:
    """Return columns of a Parquet table in a data folder; None without the file or a column.

    Raises:
        DataError: the file is no Parquet table.
    """
    try:
        data = read_bytes(root, file)
    except DataError:
        return None
    try:
        table = pq.ParquetFile(pa.BufferReader(data))
        if not set(columns) <= set(table.schema_arrow.names):
            return None
        return table.read(list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} in {root} is not a Parquet table: {error}") from None


def is_generated(root: str, images: Iterable[str]) -> bool:
    """Return whether all images of a data folder were drawn by this package, as its table says.

    An image that was added to the folder later is not in the table.
    """
    try:
        table = read_columns(root, ANNOTATIONS, ["path"])
    except DataError:
        return False
    if table is None or not _has_mark(table.schema.metadata):
        return False
    return set(images) <= set(table["path"].to_pylist())


def _has_mark(metadata: Mapping[bytes, bytes] | None) -> bool:
    marks = {name.encode(): value.encode() for name, value in GENERATED.items()}
    return marks.items() <= (metadata or {}).items()


def pack_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    """Return a mask, bool [256, 128], as zlib-compressed packed bits."""
    return zlib.compress(np.packbits(mask).tobytes(), 9)


def unpack_mask(packed: bytes, height: int = 256, width: int = 128) -> npt.NDArray[np.bool_]:
    """Return the mask, bool [height, width], that `pack_mask` packed."""
    bits = np.frombuffer(zlib.decompress(packed), np.uint8)
    return np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)
