"""CPUs and memory of this machine, or of the container that limits them (cgroups v1 and v2)."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def count_cpus(root: Path = ROOT) -> int:
    """Return the number of CPUs that this process may use, 1 or more.

    Args:
        root: where the system shows control groups; in a container, those of the container.
    """
    own = len(os.sched_getaffinity(0))
    quota, period = (_read(root / "cpu.max") + [None, None])[:2]
    if quota is None:
        quota = next(iter(_read(root / "cpu/cpu.cfs_quota_us")), None)
        period = next(iter(_read(root / "cpu/cpu.cfs_period_us")), None)
    if quota is None or period is None:
        return own
    return max(1, min(own, quota // period))


def count_memory_bytes(root: Path = ROOT) -> int:
    """Return the bytes of memory that this process may use; `root` as in `count_cpus`."""
    limits = [*_read(root / "memory.max"), *_read(root / "memory/memory.limit_in_bytes")]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _read(file: Path) -> list[int]:
    """Return the positive numbers in front of a file's content; `max` and -1 mean no limit."""
    try:
        words = file.read_text().split()
    except OSError:
        return []
    if not words or not words[0].isdecimal():
        return []
    return [int(word) for word in words if word.isdecimal()]
