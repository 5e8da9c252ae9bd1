"""A gallery on disk: features, labels and times of images, in a folder that is never half written.

    index.json          which model made the features, which segments there are; written last
    segments/*.arrow    rows, written once
    segments/*.npy      rows of a segment that are deleted
    lock                held by whoever writes

Only index.json says what belongs to the index. A writer that dies leaves files that nobody names;
the next one removes them. Readers need no lock: an open index goes on showing what it was.
"""

from __future__ import annotations

import fcntl
import json
import logging
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from dpmpp_core.data.files import refuse_used, write_atomically
from dpmpp_core.errors import DataError, WeightsError
from dpmpp_core.index.manifest import (
    MANIFEST,
    Manifest,
    ModelVersion,
    Segment,
    name_of,
    read_index_manifest,
)
from dpmpp_core.index.segments import (
    BLOCK,
    ROW_SCHEMA,
    Matrix,
    Stored,
    encode,
    features_of,
    originals_of,
    read_segment,
    segment_schema,
    write_segment,
)
from dpmpp_core.retrieval import Gallery

log = logging.getLogger(__name__)

SEGMENTS, LOCK = "segments", "lock"
SEGMENT_ROWS = 1_048_576  # of a compacted segment
Rows = NDArray[np.int64]


class Block(NamedTuple):
    """Rows of one record batch.

    Attributes:
        start: position of its first row in the index.
        rows: the columns.
        features: metric space -> [N, D] as stored, to be read only.
        originals: what they are a compact form of, if that is stored too; else empty.
        live: bool [N]: not deleted.
    """

    start: int
    rows: pa.RecordBatch
    features: dict[str, Tensor]
    originals: dict[str, Tensor]
    live: NDArray[np.bool_]


class Added(NamedTuple):
    """Rows that `append` added, of them such as took the place of an older picture; rows skipped
    since the index has that picture already."""

    added: int
    replaced: int
    known: int


@dataclass(frozen=True)
class GalleryIndex:
    """An index as it was when it was opened; what changes it returns the index as it is then.

    The position of a row is its number in the order of segments, deleted rows included.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def create(
        cls, folder: Path, model: ModelVersion, source: str, stored: Stored = "float32"
    ) -> GalleryIndex:
        """A new, empty index.

        Raises:
            DataError: `folder` is not empty.
        """
        refuse_used(folder)
        (folder / SEGMENTS).mkdir(parents=True, exist_ok=True)
        index = cls(folder, Manifest(model=model, source=source, stored=stored))
        index._commit(index.manifest)
        return index

    @classmethod
    def open(cls, folder: Path) -> GalleryIndex:
        """The index in a folder; nothing but index.json is read.

        Raises:
            DataError: no index, a damaged one, or one of another format.
        """
        return cls(folder, read_index_manifest(folder))

    def check(self, model: ModelVersion, whose: str) -> None:
        """Raise WeightsError if `model`, that of `whose` features, is not the index's own."""
        if model != self.manifest.model:
            own = self.manifest
            raise WeightsError(
                f"{self.folder} holds features of the model {name_of(own.model)} ({own.source}), "
                f"{whose} is of {name_of(model)}: features of two models cannot be compared. Take "
                "that model, or build another index"
            )

    def append(
        self, model: ModelVersion, rows: pa.Table, features: Mapping[str, Matrix]
    ) -> tuple[GalleryIndex, Added]:
        """Add images, all or none.

        A picture that the index has under the same `image` is skipped if `sha256` and `mtime_ns`
        are the same, replaced if not. So the same call again changes nothing.

        Args:
            model: the one that made the features.
            rows: of ROW_SCHEMA, each `image` once.
            features: metric space -> [N, D], any length but zero.

        Raises:
            WeightsError: features of another model.
            DataError: a feature that has no direction.
        """
        self.check(model, "what is to be added")
        widths = {space: x.shape[1] for space, x in features.items()}
        if widths != model.spaces or any(len(x) != len(rows) for x in features.values()):
            raise ValueError(f"features of {widths} are no {len(rows)} rows of {model.spaces}")
        rows = rows.select(ROW_SCHEMA.names).cast(ROW_SCHEMA)
        if pc.count_distinct(rows["image"]).as_py() != len(rows):
            raise ValueError("an image is to be added twice at once")
        in_order = {space: features[space] for space in self.manifest.model.spaces}
        columns = encode(in_order, self.manifest.stored)
        with self._writing() as now:
            known, replaced = now._known(rows)
            fresh = ~known
            segments = now._without(replaced)
            if fresh.any():
                schema = segment_schema(self.manifest.model.spaces, self.manifest.stored)
                table = pa.table([*rows.columns, *columns.values()], schema=schema)
                segments.append(now._write([table.filter(pa.array(fresh))], schema))
            now = now._with(segments)
        return now, Added(int(fresh.sum()), len(replaced), int(known.sum()))

    def delete(
        self, images: Collection[str] = (), pids: Collection[int] = ()
    ) -> tuple[GalleryIndex, int]:
        """Delete rows by image reference or person; returns how many there were.

        Their space is given back by `compact`.
        """
        with self._writing() as now:
            found = []
            for block in now.blocks():
                hit = pc.is_in(block.rows["image"], value_set=pa.array(images, pa.string()))
                hit = pc.or_(hit, pc.is_in(block.rows["pid"], value_set=pa.array(pids, pa.int64())))
                found.append(block.start + np.flatnonzero(hit.to_numpy(False) & block.live))
            gone = np.concatenate([np.empty(0, np.int64), *found])
            now = now._with(now._without(gone))
        return now, len(gone)

    def compact(self) -> GalleryIndex:
        """Write what is not deleted into few large segments; the order of rows stays."""
        with self._writing() as now:
            kept: list[Segment] = []
            small: list[Segment] = []
            for segment in now.manifest.segments:
                if segment.deleted == 0 and segment.rows == SEGMENT_ROWS:
                    kept += [*now._merged(small), segment]
                    small = []
                else:
                    small.append(segment)
            now = now._with([*kept, *now._merged(small)])
            now._clean()
        return now

    def blocks(self, segments: Collection[str] | None = None) -> Iterator[Block]:
        """The blocks, in order of position; of the segments with these files only, if given.

        Raises:
            DataError: a damaged segment.
            FileNotFoundError: the index was compacted since it was opened: open it again.
        """
        for start, segment in zip(self._starts, self.manifest.segments, strict=True):
            if segments is None or segment.file in segments:
                yield from self._blocks_of(segment, start)

    def galleries(
        self,
        segments: Collection[str] | None = None,
        usual_mask: Mapping[str, Matrix] | None = None,
    ) -> Iterator[tuple[Block, Gallery]]:
        """As `blocks`, each with its features made ready to be searched again and again.

        Args:
            usual_mask: see `Gallery`; that of the call which made them ready counts.

        Raises:
            DataError, FileNotFoundError: as `blocks`.
        """
        for start, segment in zip(self._starts, self.manifest.segments, strict=True):
            if segments is not None and segment.file not in segments:
                continue
            if segment.file not in self._ready:
                blocks = self._blocks_of(segment, start)
                self._ready[segment.file] = [
                    (b, Gallery(b.features, b.originals or None, usual_mask)) for b in blocks
                ]
            yield from self._ready[segment.file]

    def _blocks_of(self, segment: Segment, start: int) -> Iterator[Block]:
        live = self._live(segment)
        schema = segment_schema(self.manifest.model.spaces, self.manifest.stored)
        at = 0
        for rows in read_segment(self.folder / SEGMENTS / segment.file, schema):
            part = live[at : at + len(rows)]
            stored = self.manifest.stored
            features, originals = features_of(rows, stored), originals_of(rows, stored)
            yield Block(start + at, rows, features, originals, part)
            at += len(rows)
        if at != segment.rows:
            raise DataError(f"{segment.file} in {self.folder} has {at} rows, not those listed")

    def take(self, positions: Rows) -> pa.Table:
        """ROW_SCHEMA of the rows at these positions, in their order."""
        tables = []
        for start, segment in zip(self._starts, self.manifest.segments, strict=True):
            inside = np.flatnonzero((positions >= start) & (positions < start + segment.rows))
            if len(inside):
                file = self.folder / SEGMENTS / segment.file
                schema = segment_schema(self.manifest.model.spaces, self.manifest.stored)
                rows = pa.Table.from_batches(read_segment(file, schema)).select(ROW_SCHEMA.names)
                rows = rows.take(positions[inside] - start)
                tables.append(rows.append_column("at", pa.array(inside)))
        if not tables:
            return ROW_SCHEMA.empty_table()
        found = pa.concat_tables(tables).sort_by("at").select(ROW_SCHEMA.names)
        return found.cast(ROW_SCHEMA)

    def images(self) -> pa.Table:
        """`image`, `bytes` and `mtime_ns` of every row that is not deleted."""
        names = ["image", "bytes", "mtime_ns"]
        schema = pa.schema([ROW_SCHEMA.field(name) for name in names])
        parts = [block.rows.select(names).filter(pa.array(block.live)) for block in self.blocks()]
        return pa.Table.from_batches(parts, schema)

    def __len__(self) -> int:
        return sum(segment.rows - segment.deleted for segment in self.manifest.segments)

    @property
    def deleted(self) -> int:
        """Rows that are deleted and still take space."""
        return sum(segment.deleted for segment in self.manifest.segments)

    @property
    def bytes(self) -> int:
        """Size of the segments on the disk."""
        files = (self.folder / SEGMENTS / segment.file for segment in self.manifest.segments)
        return sum(file.stat().st_size for file in files)

    @cached_property
    def _ready(self) -> dict[str, list[tuple[Block, Gallery]]]:
        return {}

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((s.rows for s in self.manifest.segments), initial=0))[:-1]

    def _live(self, segment: Segment) -> NDArray[np.bool_]:
        live = np.ones(segment.rows, np.bool_)
        if segment.tombstones:
            file = self.folder / SEGMENTS / segment.tombstones
            try:
                live[np.load(file)] = False
            except (ValueError, EOFError, IndexError) as error:
                raise DataError(f"{file} is damaged: {error}") from None
        return live

    def _known(self, rows: pa.Table) -> tuple[NDArray[np.bool_], Rows]:
        """Which rows the index has already, and the positions of those they take the place of."""
        names = rows["image"].combine_chunks()
        contents, changes = (rows[name].combine_chunks() for name in ("sha256", "mtime_ns"))
        known, replaced = np.zeros(len(rows), np.bool_), []
        for block in self.blocks():
            at = pc.index_in(block.rows["image"], value_set=names)
            here = np.flatnonzero(at.is_valid().to_numpy(False) & block.live)
            at = at.take(here)
            same = pc.and_(
                pc.equal(block.rows["sha256"].take(here), contents.take(at)),
                pc.equal(block.rows["mtime_ns"].take(here), changes.take(at)),
            ).to_numpy(False)
            known[at.to_numpy(False)[same]] = True
            replaced.append(block.start + here[~same])
        return known, np.concatenate([np.empty(0, np.int64), *replaced])

    def _without(self, gone: Rows) -> list[Segment]:
        """The segments with further rows deleted; those with none left are dropped."""
        segments = []
        for start, segment in zip(self._starts, self.manifest.segments, strict=True):
            inside = gone[(gone >= start) & (gone < start + segment.rows)] - start
            if len(inside):
                live = self._live(segment)
                live[inside] = False
                dead = np.flatnonzero(~live).astype(np.uint32)
                name = f"{segment.file.removesuffix('.arrow')}-{uuid.uuid4().hex[:8]}.npy"
                tombstones = self.folder / SEGMENTS / name
                with write_atomically(tombstones, durable=True) as file, file.open("wb") as sink:
                    np.save(sink, dead)
                segment = segment.model_copy(update={"deleted": len(dead), "tombstones": name})
            if segment.deleted < segment.rows:
                segments.append(segment)
        return segments

    def _merged(self, segments: Sequence[Segment]) -> list[Segment]:
        """New segments with the rows of these that are not deleted."""
        if not segments or (len(segments) == 1 and not segments[0].deleted):
            return list(segments)
        schema = segment_schema(self.manifest.model.spaces, self.manifest.stored)
        merged: list[Segment] = []
        full = SEGMENT_ROWS
        todo: list[pa.Table] = []
        for block in self.blocks({segment.file for segment in segments}):
            rows = pa.Table.from_batches([block.rows]).filter(pa.array(block.live))
            while len(rows):
                room = full - sum(map(len, todo))
                todo.append(rows.slice(0, room))
                rows = rows.slice(room)
                if sum(map(len, todo)) == full:
                    merged.append(self._write(todo, schema))
                    todo = []
        return [*merged, self._write(todo, schema)] if todo else merged

    def _write(self, tables: Sequence[pa.Table], schema: pa.Schema) -> Segment:
        table = pa.concat_tables(tables)
        file = self.folder / SEGMENTS / f"{uuid.uuid4().hex}.arrow"
        blocks = (
            table.slice(start, BLOCK).combine_chunks().to_batches()[0]
            for start in range(0, len(table), BLOCK)
        )
        write_segment(file, blocks, schema)
        return Segment(file=file.name, rows=len(table))

    @contextmanager
    def _writing(self) -> Iterator[GalleryIndex]:
        """The index as it is now, with nobody else writing to it while the block runs."""
        with (self.folder / LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("index: another process writes to %s: waiting", self.folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            now = GalleryIndex.open(self.folder)
            self.check(now.manifest.model, "what lies there now")
            now._clean()
            yield now

    def _with(self, segments: Sequence[Segment]) -> GalleryIndex:
        manifest = self.manifest.model_copy(update={"segments": tuple(segments)})
        if manifest != self.manifest:
            self._commit(manifest)
        return GalleryIndex(self.folder, manifest)

    def _commit(self, manifest: Manifest) -> None:
        with write_atomically(self.folder / MANIFEST, durable=True) as file:
            file.write_text(json.dumps(manifest.model_dump(), indent=1) + "\n")

    def _clean(self) -> None:
        """Remove files that index.json does not name: what killed writers and `compact` left."""
        named = {segment.file for segment in self.manifest.segments}
        named |= {segment.tombstones or "" for segment in self.manifest.segments}
        for file in (self.folder / SEGMENTS).iterdir():
            if file.name not in named:
                file.unlink(missing_ok=True)
