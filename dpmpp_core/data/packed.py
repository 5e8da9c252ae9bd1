"""Shards: Arrow files with the bytes of many images each.

Training reads its images in random order, many times. From S3 each read would be a request. A shard
is fetched once and then mapped into memory, so a row is read without the others. Rows have the
order of the training set, so the place of an image follows from its number (ours).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from dpmpp_core.errors import DataError

SHARD_ROWS = 4096  # images per shard: some 20 MB of Market-1501
SCHEMA = pa.schema([pa.field("path", pa.string()), pa.field("data", pa.large_binary())])


def pack(paths: Sequence[str], images: Sequence[bytes]) -> bytes:
    """Return the bytes of a shard."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.table([list(paths), list(images)], schema=SCHEMA))
    return sink.getvalue().to_pybytes()


class PackedImages:
    """Images of a training set, by number.

    Args:
        paths: of all images, in the order in which they were packed.
        fetch: number of a shard -> its file on this machine; called when first needed.
        rows: images per shard.
    """

    def __init__(
        self, paths: Sequence[str], fetch: Callable[[int], Path], rows: int = SHARD_ROWS
    ) -> None:
        self._paths, self._fetch, self._rows = paths, fetch, rows
        self._open: dict[int, pa.Table] = {}

    def read(self, number: int) -> bytes:
        """Return the file of an image as it was packed: encoded bytes, such as a JPEG.

        The shard is fetched and mapped into memory when first needed. Shards hold no checksum:
        changed bytes of an image are returned, and only its decoder can notice them.

        Args:
            number: place of the image in `paths`, from 0.

        Raises:
            DataError: the shard is missing or unreadable, or holds another path at this place. Then
                it is damaged or was packed from another data set.
            IndexError: `number` is not below the number of paths, and its shard exists.
        """
        shard, row = divmod(number, self._rows)
        if shard not in self._open:
            self._open[shard] = _mapped(self._fetch(shard))
        table = self._open[shard]
        if row >= len(table) or table["path"][row].as_py() != self._paths[number]:
            raise DataError(
                f"{self._fetch(shard)} does not hold {self._paths[number]}: delete its folder, and "
                "the same command writes it again"
            )
        return table["data"][row].as_py()


def _mapped(file: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{file} is damaged ({error}): delete its folder, and the same command writes it again"
        ) from error
