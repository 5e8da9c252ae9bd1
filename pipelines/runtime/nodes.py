"""Whether each node of a cluster has the driver's data and storage, asked before any work."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dpmpp_core.errors import DataError, UserError
from dpmpp_core.redaction import one_line
from pipelines.runtime.resources import parse_labels
from pipelines.runtime.storage import Storage

WAIT_SECONDS = 120.0  # for a node that is busy with the work of others


def check_nodes(
    data: str | None, storage: str, pools: Sequence[Sequence[str]], file: str | None = None
) -> None:
    """Raise DataError if a node of the pools lacks the data or the storage; names the node.

    A node without the data would call every image unreadable; its folder may be there and be empty,
    as a mount point is. A node whose storage is a folder of its own would write where nobody looks:
    it must read a file that this process writes. Nodes that start later, and busy ones that do not
    answer in time, are not asked.

    Args:
        data: folder or URI of the data; None = nothing is read.
        storage: folder or URI of the storage.
        pools: labels `key=value` of the nodes of each pool; no labels = all nodes.
        file: path of one file of the data, below it; None = any.
    """
    probe: Any = ray.remote(num_cpus=0, max_retries=0)(_describe_problem)
    nodes = _find_nodes(pools)
    if not nodes:
        return
    written, asked = f".probe-{uuid.uuid4().hex}", {}
    Storage(storage).write(written, b"")
    try:
        for node in nodes:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answer = probe.options(scheduling_strategy=place).remote(data, storage, written, file)
            asked[answer] = node
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=WAIT_SECONDS)
    finally:
        Storage(storage).delete(written)
    for answer in done:
        if problem := ray.get(answer):
            name = asked[answer].get("NodeManagerHostname") or asked[answer]["NodeManagerAddress"]
            raise DataError(f"node {name}: {problem}; every node of a pool needs the same places")


def _find_nodes(pools: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Return the living nodes with CPUs that have all labels of a pool."""
    wanted = [parse_labels(labels).items() for labels in pools]
    return [
        node
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU")
        and any(labels <= (node.get("Labels") or {}).items() for labels in wanted)
    ]


def _describe_problem(data: str | None, storage: str, written: str, file: str | None = None) -> str:
    """Return why this node cannot work there; empty if it can.

    `written`: key of a file in the storage, written by the driver; `file` as of `check_nodes`.
    """
    if data is not None and "://" not in data:
        if not Path(data).is_dir():
            return f"no data folder {data}"
        if file is not None and not os.path.lexists(Path(data) / file):
            return f"its data folder {data} is not the driver's: it lacks {file}"
    try:
        Storage(storage).ensure_writable()
        if Storage(storage).read(written) is None:
            return f"its {storage} is not the driver's, so its results would be lost"
    except (UserError, OSError) as error:
        return one_line(str(error))
    return ""
