"""The sketches of a segment on disk: one safetensors file, mapped into memory, not read."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dpmpp_core.data.files import write_atomically
from dpmpp_core.errors import DataError
from dpmpp_core.index.manifest import Segment, SketchFile
from dpmpp_core.index.segments import Block
from dpmpp_core.retrieval.sketches import Sketches

FORMAT = 1


def read_sketches(folder: Path, segment: Segment, width: int) -> Sketches:
    """Map the sketches of a segment that has some; `width` is that of all metric spaces together.

    Raises:
        DataError: a missing or damaged file, or one of another format.
        FileNotFoundError: the segment is gone too: the index was compacted.
    """
    assert segment.sketches is not None
    listed = segment.sketches
    try:
        if listed.format != FORMAT:
            raise ValueError(f"format {listed.format}, this code reads {FORMAT}")
        with safe_open(folder / listed.file, "pt") as stored:
            sketches = Sketches(stored.get_tensor("directions"), stored.get_tensor("codes"))
        arrays = [(x.dtype, tuple(x.shape)) for x in (sketches.directions, sketches.codes)]
        shape = segment.rows, listed.directions
        if arrays != [(torch.float32, (listed.directions, width)), (torch.bfloat16, shape)]:
            raise ValueError("its arrays are not those listed")
    except (OSError, SafetensorError, ValueError) as error:
        (folder / segment.file).stat()
        raise DataError(
            f"{folder / listed.file} cannot be read ({error}): `dpmpp index compact --approximate` "
            "writes it again"
        ) from None
    return sketches


def with_sketches(folder: Path, segment: Segment, width: int, blocks: Iterable[Block]) -> Segment:
    """Return the segment with readable sketches of its `blocks`; write them if necessary."""
    with suppress(DataError):
        if segment.sketches is not None and read_sketches(folder, segment, width):
            return segment
    sketches = Sketches.create([block.originals or block.features for block in blocks])
    name = f"{segment.file.removesuffix('.arrow')}.safetensors"
    with write_atomically(folder / name, durable=True) as partial:
        # `save_file` would create a file that only its owner can read.
        partial.write_bytes(save({"directions": sketches.directions, "codes": sketches.codes}))
    file = SketchFile(file=name, format=FORMAT, directions=len(sketches.directions))
    return segment.model_copy(update={"sketches": file})
