"""The inspection record: what is known of the files of a data folder, kept between runs.

It lies in storage in parts, `inspected/HASH/part-ID.parquet`. Whoever has looked at some files adds
a part, whole or not at all; what a part says of a file holds until size or time of change differ.
It knows nothing of persons and splits, so that a folder read in another layout is not read anew.
"""

from __future__ import annotations

import io
import logging
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import dpmpp_core
from dpmpp_core.config import fingerprint
from dpmpp_core.data.inspection import UNREADABLE
from dpmpp_core.data.manifest import INSPECTED_SCHEMA
from pipelines.runtime.storage import Storage

log = logging.getLogger(__name__)

FILE_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string()),  # relative to the root
        pa.field("size", pa.int64()),  # bytes
        pa.field("mtime_ns", pa.int64()),  # of the last change, nanoseconds since 1970
    ]
)
FILE = FILE_SCHEMA.names
FOUND = ("width", "height", "bytes", "sha256", "reason", "detail")  # by `inspect_file`
FOUND_SCHEMA = pa.schema([INSPECTED_SCHEMA.field(name) for name in FOUND])
RECORD_SCHEMA = pa.schema([*FILE_SCHEMA, *FOUND_SCHEMA])
MANY = 64  # parts; more are merged
PART_ROWS = 200_000  # of a merged part, some 15 MB
THREADS = 16  # that fetch parts at a time


class InspectionCache:
    """The inspection record of one data folder, for the driver and for workers anywhere.

    Args:
        root: the data folder, absolute.
    """

    def __init__(self, storage: Storage, root: str) -> None:
        self._storage = storage
        self.key = f"inspected/{fingerprint(root, dpmpp_core.__version__)[:16]}"

    def add(self, rows: pa.Table) -> None:
        """Write rows of RECORD_SCHEMA as one part."""
        sink = io.BytesIO()
        pq.write_table(rows, sink, compression="zstd", write_page_checksum=True)
        self._storage.write(f"{self.key}/part-{uuid.uuid4().hex}.parquet", sink.getvalue())

    def read(self) -> pa.Table:
        """All rows, of RECORD_SCHEMA, one a file and state of it; damaged parts are warned of."""
        files = self._storage.files(self.key)
        return self._read([file for file in files if file.endswith(".parquet")])

    def keep(self, files: pa.Table) -> pa.Table:
        """Drop what is not true of `files` (FILE_SCHEMA) any more, and merge many parts to few.

        Rows of files that are gone, changed or could not be read go: what kept a file from being
        read may be over. Returns the rows that stay, of RECORD_SCHEMA.
        """
        there = self._storage.files(self.key)
        parts = [file for file in there if file.endswith(".parquet")]
        found = self._read(parts)
        readable = found.filter(pc.not_equal(found["reason"], UNREADABLE))
        kept = readable.join(files.select(FILE), FILE, join_type="left semi")
        if len(kept) < len(found) or len(parts) > MANY or parts != there:  # half of a killed write
            kept = kept.sort_by("path")
            for start in range(0, len(kept), PART_ROWS):
                self.add(kept.slice(start, PART_ROWS))
            for file in there:
                self._storage.delete(file)
        return kept

    def forget(self) -> None:
        """Remove the whole record."""
        self._storage.delete(self.key)

    def _read(self, parts: list[str]) -> pa.Table:
        with ThreadPoolExecutor(THREADS) as pool:
            tables = pool.map(self._read_part, parts)
        rows = pa.concat_tables([RECORD_SCHEMA.empty_table(), *tables])
        # A task that was run twice left two parts.
        numbers = pa.array(np.arange(len(rows)))
        first = rows.select(FILE).append_column("row", numbers).group_by(FILE)
        return rows.take(first.aggregate([("row", "min")])["row_min"])

    def _read_part(self, part: str) -> pa.Table:
        data = self._storage.read(part)
        if data is None:  # merged by another run just now
            return RECORD_SCHEMA.empty_table()
        try:
            return pq.read_table(
                pa.BufferReader(data), schema=RECORD_SCHEMA, page_checksum_verification=True
            )
        except (OSError, ValueError, pa.ArrowException) as error:
            where = self._storage.location(part)
            log.warning("%s is damaged (%s): its images are looked at again", where, error)
            self._storage.delete(part)
            return RECORD_SCHEMA.empty_table()
