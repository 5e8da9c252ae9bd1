"""Cache of inspected files of a data folder, kept between runs.

It is stored in parts, `inspected/HASH/part-ID.parquet`, each written atomically by the worker that
inspected the files. A row is valid until the file's size or modification time differs. Persons and
splits are not in it, so that a folder in another layout needs no second inspection.
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
RESULTS = ("width", "height", "bytes", "sha256", "reason", "detail")  # of `inspect_file`
RESULT_SCHEMA = pa.schema([INSPECTED_SCHEMA.field(name) for name in RESULTS])
CACHE_SCHEMA = pa.schema([*FILE_SCHEMA, *RESULT_SCHEMA])
MAX_PARTS = 64  # more are merged
PART_ROWS = 200_000  # of a merged part, some 15 MB
THREADS = 16  # that fetch parts concurrently


class InspectionCache:
    """Inspection results of one data folder, for the driver and for workers on any node.

    Args:
        storage: Where the parts are kept.
        root: The data folder, absolute.
    """

    def __init__(self, storage: Storage, root: str) -> None:
        self._storage = storage
        self.key = f"inspected/{fingerprint(root, dpmpp_core.__version__)[:16]}"

    def add(self, rows: pa.Table) -> None:
        """Write rows of CACHE_SCHEMA as one part."""
        sink = io.BytesIO()
        pq.write_table(rows, sink, compression="zstd", write_page_checksum=True)
        self._storage.write(f"{self.key}/part-{uuid.uuid4().hex}.parquet", sink.getvalue())

    def read(self) -> pa.Table:
        """Return rows of CACHE_SCHEMA, one per file and state; log damaged parts."""
        files = self._storage.files(self.key)
        return self._read([file for file in files if file.endswith(".parquet")])

    def keep(self, files: pa.Table) -> pa.Table:
        """Delete rows that are no longer valid for `files` (FILE_SCHEMA), and merge many parts.

        Rows of files that are gone, changed or were unreadable are deleted: such a file may be
        readable now. Returns the remaining rows, of CACHE_SCHEMA.
        """
        stored = self._storage.files(self.key)
        parts = [file for file in stored if file.endswith(".parquet")]
        rows = self._read(parts)
        readable = rows.filter(pc.not_equal(rows["reason"], UNREADABLE))
        kept = readable.join(files.select(FILE), FILE, join_type="left semi")
        # Another file than parts is left of a killed write.
        if len(kept) < len(rows) or len(parts) > MAX_PARTS or parts != stored:
            kept = kept.sort_by("path")
            for start in range(0, len(kept), PART_ROWS):
                self.add(kept.slice(start, PART_ROWS))
            for file in stored:
                self._storage.delete(file)
        return kept

    def clear(self) -> None:
        """Delete the results of all files of this data folder; no error where there are none.

        They are those of this version of the package. Without them, the next run inspects each
        file.

        Raises:
            OSError: The storage refuses it.
        """
        self._storage.delete(self.key)

    def _read(self, parts: list[str]) -> pa.Table:
        with ThreadPoolExecutor(THREADS) as pool:
            tables = pool.map(self._read_part, parts)
        rows = pa.concat_tables([CACHE_SCHEMA.empty_table(), *tables])
        # A task that ran twice has written two parts.
        numbers = pa.array(np.arange(len(rows)))
        first = rows.select(FILE).append_column("row", numbers).group_by(FILE)
        return rows.take(first.aggregate([("row", "min")])["row_min"])

    def _read_part(self, part: str) -> pa.Table:
        data = self._storage.read(part)
        if data is None:  # another run merged it just now
            return CACHE_SCHEMA.empty_table()
        try:
            return pq.read_table(
                pa.BufferReader(data), schema=CACHE_SCHEMA, page_checksum_verification=True
            )
        except (OSError, ValueError, pa.ArrowException) as error:
            where = self._storage.location(part)
            log.warning("%s is damaged (%s): its images are inspected again", where, error)
            self._storage.delete(part)
            return CACHE_SCHEMA.empty_table()
