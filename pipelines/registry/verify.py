"""Measure a registered version in a new process, on the images of an evaluation."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpmpp_core.data.files import read_bytes
from dpmpp_core.data.images import decode
from dpmpp_core.errors import DataError, WeightsError
from dpmpp_core.models.reid import load_model
from dpmpp_core.models.sources import CARD_FILE
from dpmpp_core.redaction import one_line
from dpmpp_core.retrieval import (
    Embeddings,
    QueryFigures,
    from_columns,
    rank_features,
    refuse_unusable,
    to_columns,
)
from pipelines.registry.verify_worker import BATCH_IMAGES, TIMED, WARM_UP

log = logging.getLogger(__name__)

READ_THREADS = 8  # for S3, where a single thread mostly waits
READ_AHEAD_FILES = 256
# Variables that a version's code gets: none that could hold a secret.
PASSED = re.compile(r"(PYTHON|LD_LIBRARY_)?PATH|LANG|LC_\w+|TZ|VIRTUAL_ENV|\w+_NUM_THREADS")
MAX_ERROR_CHARS = 300  # of the last line that a failing process printed


@dataclass(frozen=True)
class VerificationResult:
    """Figures of a version in a new process.

    Attributes:
        queries: by query set, the figures of each query with its mask.
        seconds: to load the model, imports included.
        latency_ms: median of single pictures.
    """

    queries: dict[str, QueryFigures]
    seconds: float
    latency_ms: float


def verify_version(
    version: Path, images: pa.Table, root: str, own_code: bool = False
) -> VerificationResult:
    """Load a version in a new process, embed an evaluation's images, and rank.

    Args:
        version: its files, as MLflow stores them.
        images: IMAGE_SCHEMA, queries and gallery.
        root: of the paths.
        own_code: load its weights with the code of this installation, in this process; the code
            that the version brings never runs, so that nothing is said of it.

    Raises:
        DataError: an image is not there, or not the one it was.
        WeightsError: the model does not load, fails, or runs code that did not come with it.
    """
    embed = _embed_with_own_code if own_code else _embed_in_new_process
    columns = embed(version, read_images(images, root))
    seconds, spent = float(columns.pop("seconds")), columns.pop("milliseconds")
    paths = images["path"].to_pylist()
    refuse_unusable(columns, paths)
    return VerificationResult(_rank_queries(columns, images), seconds, float(np.median(spent)))


def read_images(images: pa.Table, root: str) -> Iterator[bytes]:
    """Yield the files of an evaluation in order; raise DataError if one has changed."""
    with ThreadPoolExecutor(READ_THREADS if "://" in root else 1) as threads:
        for start in range(0, len(images), READ_AHEAD_FILES):
            rows = images.slice(start, READ_AHEAD_FILES)
            contents = threads.map(partial(read_bytes, root), rows["path"].to_pylist())
            for data, row in zip(contents, rows.to_pylist(), strict=True):
                if hashlib.sha256(data).hexdigest() != row["sha256"]:
                    raise DataError(
                        f"{row['path']} in {root} is not the file that the version was measured "
                        "on: measure and register again with `dpmpp run`"
                    )
                yield data


def _embed_in_new_process(version: Path, files: Iterator[bytes]) -> dict[str, np.ndarray]:
    """Return the columns of `verify_worker.py` without `code`."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.npz"
        _run_worker(version, answer, files)
        with np.load(answer) as stored:
            columns = dict(stored)
    code = str(columns.pop("code"))
    if not Path(code).resolve().is_relative_to(version.resolve()):
        raise WeightsError("the version does not bring its own code: register it again")
    return columns


def _embed_with_own_code(version: Path, files: Iterator[bytes]) -> dict[str, np.ndarray]:
    """Return the same columns, computed from the version's safetensors in this process."""
    folders = [card.parent for card in (version / "artifacts").glob(f"*/{CARD_FILE}")]
    if len(folders) != 1:
        raise WeightsError("the version holds no model in this package's format: register it again")
    start = time.perf_counter()
    model = load_model(folders[0])
    seconds = time.perf_counter() - start
    parts: list[dict[str, np.ndarray]] = []
    first: list[bytes] = []
    while batch := list(islice(files, BATCH_IMAGES)):
        first = first or batch
        embedded = model.embed([decode(data) for data in batch])
        parts.append(to_columns(embedded.features, embedded.masks))
    spent = []
    for data in islice(cycle(first), WARM_UP + TIMED):
        start = time.perf_counter()
        model.embed([decode(data)])
        spent.append(1000 * (time.perf_counter() - start))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return columns | {"seconds": np.array(seconds), "milliseconds": np.array(spent[WARM_UP:])}


def _run_worker(version: Path, answer: Path, files: Iterator[bytes]) -> None:
    """Start the worker, send it the files, wait for its end.

    The version's code gets no secrets of the environment, no network where the system allows to
    take it away, and a working folder of its own. It still runs as this user.
    """
    program = Path(__file__).with_name("verify_worker.py")
    command = [*without_network(), sys.executable, "-P", str(program), str(version), str(answer)]
    kept = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)}
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=home,
            env={**kept, "HOME": home, "TMPDIR": home},
        )  # fmt: skip
        try:
            _send_files(files, process)
            code = process.wait()
        finally:
            process.kill()  # does nothing if it has ended
            process.wait()
        if code:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines() or ["no output"]
            reason = one_line(lines[-1])[:MAX_ERROR_CHARS]
            raise WeightsError(f"the version does not work in a new process: {reason}")


@cache
def without_network() -> list[str]:
    """Return the command that starts another one without network; empty where there is none."""
    command = ["unshare", "--map-root-user", "--net"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        log.warning("promote: this system cannot take the network from a version's code")
        return []
    return command


def _send_files(files: Iterator[bytes], process: subprocess.Popen[bytes]) -> None:
    pipe = process.stdin
    assert pipe is not None
    try:
        with pipe:
            for data in files:
                pipe.write(struct.pack(">I", len(data)) + data)
    except BrokenPipeError:
        pass  # it ended early; its exit code is checked


def _rank_queries(columns: dict[str, np.ndarray], images: pa.Table) -> dict[str, QueryFigures]:
    gallery = _select_embeddings(columns, images, pc.equal(images["split"], "gallery"))
    queries = pc.equal(images["split"], "query")
    sets = {
        "occluded": _select_embeddings(columns, images, pc.and_(queries, images["occluded"])),
        "holistic": _select_embeddings(
            columns, images, pc.and_(queries, pc.invert(images["occluded"]))
        ),
    }
    figures = {}
    for name, query in sets.items():
        if len(query):
            ranked = rank_features(
                query.features, query.masks, gallery.features,
                query.pids, gallery.pids, query.camids, gallery.camids,
            )  # fmt: skip
            figures[name] = QueryFigures.of(query, ranked)
    return figures


def _select_embeddings(
    columns: dict[str, np.ndarray], images: pa.Table, chosen: pa.ChunkedArray
) -> Embeddings:
    keep = np.asarray(chosen)
    features, masks = from_columns({name: values[keep] for name, values in columns.items()})
    rows = images.filter(chosen)
    pids, camids = rows["pid"].to_numpy(), rows["camid"].to_numpy()
    return Embeddings(features, masks, pids, camids, rows["path"].to_pylist())
