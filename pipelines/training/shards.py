"""Pack training images into few large files in storage; see `dpmpp_core.data.packed`."""

from __future__ import annotations

from functools import partial
from hashlib import sha256

import pyarrow as pa

from dpmpp_core.data.files import read_bytes
from dpmpp_core.data.packed import SHARD_ROWS, pack
from dpmpp_core.errors import DataError
from pipelines.runtime.blocks import map_blocks, read_files
from pipelines.runtime.run import Run
from pipelines.runtime.storage import Storage
from pipelines.training.training_set import TrainingSet


def pack_images(run: Run, training_set: TrainingSet) -> None:
    """Write the missing shards of a training set, if it is read from shards.

    Raises:
        DataError: An image was changed since `prepare`.
    """
    root, table = training_set.table()
    if not training_set.is_packed(root):
        return
    uri = run.storage.uri
    existing = set(run.storage.files(training_set.shards))
    blocks = [
        pa.table({"shard": [shard] * len(rows), **{n: rows[n] for n in ("path", "sha256")}})
        for shard, start in enumerate(range(0, len(table), SHARD_ROWS))
        if training_set.shard(shard) not in existing
        for rows in [table.slice(start, SHARD_ROWS).combine_chunks()]
    ]
    if not blocks:
        return

    def write(rows: pa.Table) -> pa.Table:
        paths = rows["path"].to_pylist()
        images = read_files(partial(read_bytes, root), root, rows)
        for path, image, known in zip(paths, images, rows["sha256"].to_pylist(), strict=True):
            if sha256(image).hexdigest() != known:
                raise DataError(f"{path} in {root} was changed since `dpmpp prepare`: run it again")
        Storage(uri).write(training_set.shard(rows["shard"][0].as_py()), pack(paths, images))
        return pa.table({"done": [len(rows)]})

    map_blocks(write, blocks, run.plan.embed_workers, "images packed")
