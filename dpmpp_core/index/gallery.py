"""A gallery on disk: features, labels and times of images, in a folder that is never half written.

    index.json          the model of the features and the list of segments; written last
    segments/*.arrow    rows, written once
    segments/*.npy      deleted rows of a segment; *.safetensors its sketches
    lock                held by a writer

Only index.json decides what belongs to the index. A writer that is killed leaves files that are not
listed; the next one removes them. Readers need no lock: an open index does not change.
"""

from __future__ import annotations

import fcntl
import logging
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dpmpp_core.data.files import ensure_empty_dir, write_atomically
from dpmpp_core.data.sightings import Sighting
from dpmpp_core.errors import DataError, WeightsError
from dpmpp_core.index.manifest import (
    MANIFEST,
    NAMED_FORMAT,
    Manifest,
    ModelVersion,
    Segment,
    name_of,
    read_index_manifest,
)
from dpmpp_core.index.segments import (
    BLOCK,
    ROW_SCHEMA,
    Block,
    Matrix,
    Stored,
    encode,
    features_of,
    live_rows,
    live_tables,
    match_rows,
    originals_of,
    read_segment,
    relabel_rows,
    segment_schema,
    write_segment,
    write_tombstones,
)
from dpmpp_core.index.sketches import read_sketches, with_sketches
from dpmpp_core.retrieval import Gallery
from dpmpp_core.retrieval.sketches import Sketches

log = logging.getLogger(__name__)

SEGMENTS, LOCK = "segments", "lock"
SEGMENT_ROWS = 1_048_576  # of a compacted segment
Rows = NDArray[np.int64]
Sketched = tuple[list[Block], Sketches]
Searchable = tuple[Block, Gallery]


class Added(NamedTuple):
    """Counts of rows that `append` added, of those among them that replace another, and skipped."""

    added: int
    replaced: int
    known: int


@dataclass(frozen=True, repr=False)
class GalleryIndex:
    """An index at the time it was opened; methods that change it return the new one.

    The position of a row is its number in the order of segments, deleted rows included.
    """

    folder: Path
    manifest: Manifest
    _opened: dict[str, list[Block]] = field(default_factory=dict, init=False, compare=False)
    _mapped: dict[str, Sketches] = field(default_factory=dict, init=False, compare=False)
    _ready: dict[str, list[Searchable]] = field(default_factory=dict, init=False, compare=False)

    @classmethod
    def create(
        cls, folder: Path, model: ModelVersion, source: str, stored: Stored = "float32"
    ) -> GalleryIndex:
        """Create an empty index; DataError if `folder` is not empty."""
        ensure_empty_dir(folder)
        (folder / SEGMENTS).mkdir(parents=True, exist_ok=True)
        index = cls(folder, Manifest(model=model, source=source, stored=stored))
        index._commit(index.manifest)
        return index

    @classmethod
    def open(cls, folder: Path) -> GalleryIndex:
        """Open the index in a folder, reading index.json only; see `read_index_manifest`."""
        return cls(folder, read_index_manifest(folder))

    def check(self, model: ModelVersion, whose: str) -> None:
        """Raise WeightsError if `model`, that of `whose` features, is not that of the index."""
        if model != self.manifest.model:
            manifest, name = self.manifest, name_of(self.manifest.model)
            raise WeightsError(
                f"{self.folder} holds features of the model {name} ({manifest.source}), "
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
            model: the model of the features.
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
            known, replaced = match_rows(now.blocks(), rows)
            new = ~known
            segments = now._without(replaced)
            if new.any():
                table = pa.table([*rows.columns, *columns.values()], schema=now._schema)
                segments.append(now._write([table.filter(pa.array(new))]))
            now = now._with(segments)
        return now, Added(int(new.sum()), len(replaced), int(known.sum()))

    def add_names(self, images: Collection[Sighting]) -> GalleryIndex:
        """Give numbers to the names of persons and cameras; raises as `LabelNames.extend`."""
        with self._writing() as now:
            names = now.manifest.names.extend(images, now.images(["pid", "camid"]))
            if names != now.manifest.names:
                now = now._with(now.manifest.segments, names=names, format=NAMED_FORMAT)
        return now

    def relabel(self, labels: pa.Table) -> tuple[GalleryIndex, int]:
        """Give images other labels, all or none; their features stay as they are.

        Args:
            labels: the columns `image`, each once, and `pid`, `camid`, `time`; null leaves the
                label as it is. Images that the index lacks are left out.

        Returns:
            the index, and the number of rows that changed.
        """
        with self._writing() as now:
            changed, tables = [np.empty(0, np.int64)], []
            for block in now.blocks():
                positions, table = relabel_rows(block, labels)
                changed.append(positions)
                tables.append(table)
            gone = np.concatenate(changed)
            if len(gone):
                now = now._with([*now._without(gone), now._write(tables)])
        return now, len(gone)

    def delete(
        self, images: Collection[str] = (), pids: Collection[int] = ()
    ) -> tuple[GalleryIndex, int]:
        """Delete rows by image reference or person; return the index and the number of rows.

        `compact` frees their space.
        """
        with self._writing() as now:
            positions = [np.empty(0, np.int64)]
            for block in now.blocks():
                hit = pc.is_in(block.rows["image"], value_set=pa.array(images, pa.string()))
                hit = pc.or_(hit, pc.is_in(block.rows["pid"], value_set=pa.array(pids, pa.int64())))
                positions.append(block.start + np.flatnonzero(hit.to_numpy(False) & block.live))
            gone = np.concatenate(positions)
            now = now._with(now._without(gone))
        return now, len(gone)

    def compact(self, approximate: bool = False) -> GalleryIndex:
        """Write the rows that are not deleted into few large segments, in the same order.

        With `approximate` also write missing sketches, for an approximate search; once an index has
        some, every compaction does so.
        """
        with self._writing() as now:
            kept: list[Segment] = []
            small: list[Segment] = []
            for segment in now.manifest.segments:
                if segment.deleted == 0 and segment.rows == SEGMENT_ROWS:
                    kept += [*now._merged(small), segment]
                    small = []
                else:
                    small.append(segment)
            kept += now._merged(small)
            if approximate or now.sketched:
                at, width = now.folder / SEGMENTS, now._width
                kept = [with_sketches(at, s, width, now._blocks_of(s, 0)) for s in kept]
            now = now._with(kept)
            now._clean()
        return now

    def blocks(self, segments: Collection[str] | None = None) -> Iterator[Block]:
        """Yield the blocks in order of position, of the segments with these files only, if given.

        Raises:
            DataError: a damaged segment.
            FileNotFoundError: the index was compacted since it was opened: open it again.
        """
        for segment, start in self._chosen(segments):
            yield from self._blocks_of(segment, start)

    def galleries(
        self,
        segments: Collection[str] | None = None,
        usual_mask: Mapping[str, Matrix] | None = None,
    ) -> Iterator[Searchable]:
        """Yield `blocks`, each with its `Gallery`, prepared once for any number of searches.

        The `usual_mask` (see `Gallery`) of the first call counts. Raises as `blocks`.
        """
        for segment, start in self._chosen(segments):
            if segment.file not in self._ready:
                blocks = self._blocks_of(segment, start)
                self._ready[segment.file] = [
                    (b, Gallery(b.features, b.originals or None, usual_mask)) for b in blocks
                ]
            yield from self._ready[segment.file]

    def sketches(self, files: Collection[str] | None = None) -> Iterator[Sketched]:
        """Yield the blocks of each segment with sketches, and these; mapped, not read.

        Raises as `blocks`; DataError also for damaged sketches.
        """
        for segment, start in self._chosen(files):
            if segment.sketches is None:
                continue
            blocks = self._blocks_of(segment, start)
            if segment.file not in self._mapped:
                place = self.folder / SEGMENTS
                self._mapped[segment.file] = read_sketches(place, segment, self._width)
            yield blocks, self._mapped[segment.file]

    def _chosen(self, files: Collection[str] | None = None) -> Iterator[tuple[Segment, int]]:
        """Yield the segments with these files, or all, and the position of their first rows."""
        starts = accumulate((segment.rows for segment in self.manifest.segments), initial=0)
        for segment, start in zip(self.manifest.segments, starts, strict=False):
            if files is None or segment.file in files:
                yield segment, start

    def _blocks_of(self, segment: Segment, start: int) -> list[Block]:
        if segment.file in self._opened:
            return self._opened[segment.file]
        place, stored = self.folder / SEGMENTS, self.manifest.stored
        live = live_rows(place, segment.rows, segment.tombstones)
        blocks: list[Block] = []
        at = 0
        for rows in read_segment(place / segment.file, self._schema):
            features, originals = features_of(rows, stored), originals_of(rows, stored)
            part = live[at : at + len(rows)]
            blocks.append(Block(start + at, rows, features, originals, part))
            at += len(rows)
        if at != segment.rows:
            raise DataError(f"{segment.file} in {self.folder} has {at} rows, not those listed")
        return self._opened.setdefault(segment.file, blocks)

    def take(self, positions: Rows) -> pa.Table:
        """Return ROW_SCHEMA of the rows at these positions, in their order."""
        tables = [ROW_SCHEMA.empty_table().append_column("at", pa.array([], pa.int64()))]
        for segment, start in self._chosen():
            if not ((positions >= start) & (positions < start + segment.rows)).any():
                continue
            for block in self._blocks_of(segment, start):
                rows = positions - block.start
                inside = np.flatnonzero((rows >= 0) & (rows < len(block.rows)))
                taken = block.rows.select(ROW_SCHEMA.names).take(pa.array(rows[inside]))
                tables.append(pa.Table.from_batches([taken]).append_column("at", pa.array(inside)))
        rows = pa.concat_tables(tables).sort_by("at").select(ROW_SCHEMA.names)
        return rows.cast(ROW_SCHEMA)

    def images(self, names: Sequence[str] = ("image", "bytes", "mtime_ns")) -> pa.Table:
        """Return these columns of ROW_SCHEMA of every row that is not deleted."""
        schema = pa.schema([ROW_SCHEMA.field(name) for name in names])
        parts = [
            block.rows.select(list(names)).filter(pa.array(block.live)) for block in self.blocks()
        ]
        return pa.Table.from_batches(parts, schema)

    def __repr__(self) -> str:
        return f"GalleryIndex({self.folder}: {len(self):,} images)"

    def __len__(self) -> int:
        return sum(segment.rows - segment.deleted for segment in self.manifest.segments)

    @property
    def deleted(self) -> int:
        """Number of deleted rows that still take space."""
        return sum(segment.deleted for segment in self.manifest.segments)

    @property
    def sketched(self) -> int:
        """Number of rows that are not deleted, of segments with sketches."""
        return sum(s.rows - s.deleted for s in self.manifest.segments if s.sketches)

    @property
    def bytes(self) -> int:
        """Size of the segments on the disk, sketches included."""
        files = (name for segment in self.manifest.segments for name in segment.files)
        return sum((self.folder / SEGMENTS / name).stat().st_size for name in files)

    @property
    def _schema(self) -> pa.Schema:
        return segment_schema(self.manifest.model.spaces, self.manifest.stored)

    @property
    def _width(self) -> int:
        return sum(self.manifest.model.spaces.values())

    def _without(self, gone: Rows) -> list[Segment]:
        """Return the segments with further rows deleted, without empty ones."""
        segments = []
        for segment, start in self._chosen():
            inside = gone[(gone >= start) & (gone < start + segment.rows)] - start
            if len(inside):
                live = live_rows(self.folder / SEGMENTS, segment.rows, segment.tombstones)
                dead, name = write_tombstones(self.folder / SEGMENTS, segment.file, live, inside)
                segment = segment.model_copy(update={"deleted": dead, "tombstones": name})
            if segment.deleted < segment.rows:
                segments.append(segment)
        return segments

    def _merged(self, segments: Sequence[Segment]) -> list[Segment]:
        if not segments or (len(segments) == 1 and not segments[0].deleted):
            return list(segments)
        blocks = self.blocks({segment.file for segment in segments})
        return [self._write(tables) for tables in live_tables(blocks, SEGMENT_ROWS)]

    def _write(self, tables: Sequence[pa.Table]) -> Segment:
        table = pa.concat_tables(tables)
        file = self.folder / SEGMENTS / f"{uuid.uuid4().hex}.arrow"
        blocks = (
            table.slice(start, BLOCK).combine_chunks().to_batches()[0]
            for start in range(0, len(table), BLOCK)
        )
        write_segment(file, blocks, self._schema)
        return Segment(file=file.name, rows=len(table))

    @contextmanager
    def _writing(self) -> Iterator[GalleryIndex]:
        """Lock the index against other writers, and yield its current state."""
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

    def _with(self, segments: Sequence[Segment], **changes: object) -> GalleryIndex:
        changes = {"segments": tuple(segments), **changes}
        manifest = self.manifest.model_copy(update=changes)
        if manifest != self.manifest:
            self._commit(manifest)
        return GalleryIndex(self.folder, manifest)

    def _commit(self, manifest: Manifest) -> None:
        with write_atomically(self.folder / MANIFEST, durable=True) as file:
            file.write_text(manifest.to_json())

    def _clean(self) -> None:
        """Remove files that index.json does not list, left by killed writers and `compact`."""
        named = {name for segment in self.manifest.segments for name in segment.files}
        # Rows are removed before their sketches, as a reader takes missing sketches for damage.
        for file in sorted((self.folder / SEGMENTS).iterdir()):
            if file.name not in named:
                file.unlink(missing_ok=True)
