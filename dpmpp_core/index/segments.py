"""A segment of a gallery index: an Arrow file that is written once, then mapped into memory.

Each record batch is a block: one contiguous array per metric space, which is read without a copy.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmpp_core.data.files import write_atomically
from dpmpp_core.data.sightings import LABELS
from dpmpp_core.errors import DataError

Matrix = NDArray[np.float32]
# int8+float32: a search reads int8, and float32 of the pairs that int8 does not decide.
Stored = Literal["float32", "float16", "bfloat16", "int8", "int8+float32"]
STORED: tuple[Stored, ...] = get_args(Stored)
BLOCK = 16_384  # rows, at most

ROW_SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),  # its path or URI
        pa.field("sha256", pa.string(), nullable=False),  # of the file, 64 hexadecimal digits
        pa.field("bytes", pa.int64(), nullable=False),  # size of the file
        pa.field("mtime_ns", pa.int64(), nullable=False),  # its last change, ns since 1970
        pa.field("pid", pa.int64()),  # person; null = not known
        pa.field("camid", pa.int64()),  # camera
        pa.field("time", pa.int64()),  # when it was taken, seconds since 1970, UTC
    ]
)
# Arrow has no bfloat16: its bits are stored as an integer.
_TYPES = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "bfloat16": pa.int16(),
    "int8": pa.int8(),
}


class Block(NamedTuple):
    """Rows of one record batch.

    Attributes:
        start: position of its first row in the index.
        rows: the columns.
        features: metric space -> [N, D] as stored, read-only.
        originals: the float32 features of int8 ones, if stored; else empty.
        live: bool [N]: not deleted.
    """

    start: int
    rows: pa.RecordBatch
    features: dict[str, Tensor]
    originals: dict[str, Tensor]
    live: NDArray[np.bool_]


def known_type(stored: str) -> Stored:
    """Return `stored` as a type of features; DataError if it is none."""
    for known in STORED:
        if stored == known:
            return known
    raise DataError(f"features cannot be stored as {stored!r}: {', '.join(STORED)}")


def _kinds(stored: Stored) -> dict[str, str]:
    """Return prefix of a column -> type of its vectors."""
    return dict(zip(("feature_", "exact_"), stored.split("+"), strict=False))


def segment_schema(spaces: Mapping[str, int], stored: Stored) -> pa.Schema:
    """Return ROW_SCHEMA with a column `feature_SPACE`, and maybe `exact_SPACE`, per metric space.

    A search scans the former; exact scores are those of the latter, if there is one.
    """
    fields = [
        pa.field(f"{prefix}{space}", pa.list_(_TYPES[kind], width), nullable=False)
        for prefix, kind in _kinds(stored).items()
        for space, width in spaces.items()
    ]
    return pa.schema([*ROW_SCHEMA, *fields])


def encode(features: Mapping[str, Matrix], stored: Stored) -> dict[str, pa.Array]:
    """Encode features by space [N, D] as columns, each vector of length 1 in the type `stored`.

    int8 holds a vector times 127 over its largest entry: the metric ignores a gallery vector's
    length. Raises DataError for a vector with NaN, infinity, or nothing but zeros.
    """
    columns = {}
    for prefix, kind in _kinds(stored).items():
        for space, values in features.items():
            tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
            largest = tensor.abs().amax(dim=1, keepdim=True)
            if not (largest.isfinite() & (largest > 0)).all():
                raise DataError(f"a feature of space '{space}' holds NaN, infinity or only zeros")
            flat = pa.array(_coded(tensor / largest, kind).numpy().reshape(-1), _TYPES[kind])
            vectors = pa.FixedSizeListArray.from_arrays(flat, tensor.shape[1])
            columns[f"{prefix}{space}"] = vectors
    return columns


def _coded(vectors: Tensor, kind: str) -> Tensor:
    """Convert [N, D], whose largest entries are 1, to the stored type."""
    if kind == "int8":
        return (vectors * 127).round().to(torch.int8)
    coded = (vectors / vectors.norm(dim=1, keepdim=True)).to(getattr(torch, kind))
    return coded.view(torch.int16) if kind == "bfloat16" else coded


def features_of(block: pa.RecordBatch, stored: Stored) -> dict[str, Tensor]:
    """Return features by space [N, D] of a block as stored, read-only views of its memory."""
    return _vectors(block, "feature_", stored)


def originals_of(block: pa.RecordBatch, stored: Stored) -> dict[str, Tensor]:
    """Return the features of exact scores, as `features_of`; empty if they are the same."""
    return _vectors(block, "exact_", stored)


def _vectors(block: pa.RecordBatch, prefix: str, stored: Stored) -> dict[str, Tensor]:
    vectors = {}
    for field in block.schema:
        if field.name.startswith(prefix):
            flat = torch.from_dlpack(block.column(field.name).flatten())
            flat = flat.view(torch.bfloat16) if _kinds(stored)[prefix] == "bfloat16" else flat
            vectors[field.name.removeprefix(prefix)] = flat.view(-1, field.type.list_size)
    return vectors


def write_segment(file: Path, blocks: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write a segment whole or not at all."""
    with write_atomically(file, durable=True) as partial, pa.OSFile(str(partial), "wb") as sink:  # noqa: SIM117
        with pa.ipc.new_file(sink, schema) as writer:
            for block in blocks:
                writer.write_batch(block)


def read_segment(file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the blocks of a segment, mapped, not read.

    Raises DataError if it is damaged or of another schema, FileNotFoundError if it is gone.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        if reader.schema != schema:
            raise pa.ArrowInvalid("it has other columns than the index")
        for number in range(reader.num_record_batches):
            block = reader.get_batch(number)
            block.validate()
            yield block
    except pa.ArrowException as error:
        raise DataError(
            f"{file} is damaged ({error}): delete its line from index.json and add its images again"
        ) from error


def live_rows(folder: Path, rows: int, tombstones: str | None) -> NDArray[np.bool_]:
    """Return bool [rows]: not deleted. DataError if the file of deleted rows is damaged."""
    live = np.ones(rows, np.bool_)
    if tombstones:
        try:
            live[np.load(folder / tombstones)] = False
        except (ValueError, EOFError, IndexError) as error:
            raise DataError(f"{folder / tombstones} is damaged: {error}") from None
    return live


def write_tombstones(
    folder: Path, segment: str, live: NDArray[np.bool_], deleted: NDArray[np.int64]
) -> tuple[int, str]:
    """Write the deleted rows of a segment, those of `live` and these; return number and file."""
    live[deleted] = False
    dead = np.flatnonzero(~live).astype(np.uint32)
    name = f"{segment.removesuffix('.arrow')}-{uuid.uuid4().hex[:8]}.npy"
    with write_atomically(folder / name, durable=True) as file, file.open("wb") as sink:
        np.save(sink, dead)
    return len(dead), name


def match_rows(
    blocks: Iterable[Block], rows: pa.Table
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Compare new rows with stored ones, by image name.

    Args:
        blocks: The stored rows.
        rows: New ones, with the columns `image`, `sha256` and `mtime_ns`.

    Returns:
        bool [len(rows)], true where a live row of that name has the same hash and time; and
        int64 [M], positions in the index of live rows of that name that differ.
    """
    names = rows["image"].combine_chunks()
    contents, changes = (rows[name].combine_chunks() for name in ("sha256", "mtime_ns"))
    known, replaced = np.zeros(len(rows), np.bool_), []
    for block in blocks:
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


def relabel_rows(block: Block, labels: pa.Table) -> tuple[NDArray[np.int64], pa.Table]:
    """Return the rows of a block whose labels change, by position in the index and as a table.

    Args:
        block: the stored rows.
        labels: `image`, and the new `pid`, `camid`, `time`; null = as it is.
    """
    at = pc.index_in(block.rows["image"], value_set=labels["image"].combine_chunks())
    here = np.flatnonzero(at.is_valid().to_numpy(False) & block.live)
    table = pa.Table.from_batches([block.rows]).take(here)
    differs = np.zeros(len(here), np.bool_)
    for name in LABELS:
        new = pc.coalesce(labels[name].take(at.take(here)), table[name])
        same = pc.fill_null(pc.equal(new, table[name]), False)
        differs |= pc.and_not(pc.is_valid(new), same).to_numpy()
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.schema.field(column), new)
    return block.start + here[differs], table.filter(pa.array(differs))


def live_tables(blocks: Iterable[Block], rows: int) -> Iterator[list[pa.Table]]:
    """Yield rows that are not deleted, in lists of tables with `rows` together, then the rest."""
    tables: list[pa.Table] = []
    for block in blocks:
        left = pa.Table.from_batches([block.rows])
        if not block.live.all():  # else they stay mapped
            left = left.filter(pa.array(block.live))
        while len(left):
            tables.append(left.slice(0, rows - sum(map(len, tables))))
            left = left.slice(len(tables[-1]))
            if sum(map(len, tables)) == rows:
                yield tables
                tables = []
    if tables:
        yield tables
