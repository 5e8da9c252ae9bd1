"""Locks between the trials of a search, in one Ray actor on the driver's node."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class StageLocks:
    """Names, each held by a limited number of trials at a time."""

    def __init__(self) -> None:
        self._holders: dict[str, set[str]] = defaultdict(set)

    def acquire(self, holder: str, name: str, limit: int) -> bool:
        """Return whether the holder has the name now."""
        holders = self._holders[name]
        if holder not in holders and len(holders) >= limit:
            return False
        holders.add(holder)
        return True

    def release(self, holder: str, name: str | None = None) -> None:
        """Free one name of a holder; None = all, as of a trial whose process died."""
        for key in [name] if name is not None else list(self._holders):
            self._holders[key].discard(holder)


def start_stage_locks() -> Any:
    """Start a `StageLocks` actor on this node; it lives as long as the returned handle."""
    node = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return StageLocks.options(scheduling_strategy=strategy).remote()  # type: ignore[attr-defined]


@contextmanager
def hold_lock(locks: Any, holder: str, name: str, limit: int = 1) -> Iterator[None]:
    """Wait until fewer than `limit` others hold the name, and hold it during the block."""
    while not ray.get(locks.acquire.remote(holder, name, limit)):
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        ray.get(locks.release.remote(holder, name))
