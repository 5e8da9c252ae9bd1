"""A program that runs a registered model in a process with nothing but the model's files.

    python -P verify_worker.py MODEL_FOLDER ANSWER.npz < pictures

It imports nothing of this package: what the model needs has to come with it. Pictures come on
stdin, each as four bytes of length (big-endian) and the file's bytes. ANSWER.npz gets the columns
that the model returns, one row per picture in order; `seconds` to load it; `milliseconds` of
single pictures; `code`, the file that the model's code was loaded from.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

BATCH_IMAGES = 64
TIMED, WARM_UP = 25, 5


def main(folder: str, answer: str) -> None:
    """Embed the pictures of stdin, time single ones, and write the answer."""
    start = time.perf_counter()
    import mlflow
    import numpy as np
    import pandas as pd

    model = mlflow.pyfunc.load_model(folder)
    seconds = time.perf_counter() - start
    parts: list[pd.DataFrame] = []
    first: list[bytes] = []
    for batch in read_batches():
        first = first or batch
        parts.append(model.predict(pd.DataFrame({"image": batch})))
    spent = []
    for i in range(WARM_UP + TIMED):
        one = pd.DataFrame({"image": [first[i % len(first)]]})
        start = time.perf_counter()
        model.predict(one)
        spent.append(1000 * (time.perf_counter() - start))
    table = pd.concat(parts, ignore_index=True)
    columns: dict[str, Any] = {
        str(name): np.stack(list(table[name])).astype(np.float32) for name in table.columns
    }
    code = sys.modules["dpmpp_core"].__file__
    columns |= {"seconds": np.array(seconds), "milliseconds": np.array(spent[WARM_UP:])}
    np.savez(answer, code=np.array(str(code)), **columns)


def read_batches() -> Iterator[list[bytes]]:
    """Yield the pictures of stdin, BATCH_IMAGES at a time."""
    batch: list[bytes] = []
    while head := sys.stdin.buffer.read(4):
        batch.append(sys.stdin.buffer.read(struct.unpack(">I", head)[0]))
        if len(batch) == BATCH_IMAGES:
            yield batch
            batch = []
    if batch:
        yield batch


if __name__ == "__main__":
    main(*sys.argv[1:])
