"""CPUs and memory of containers, read from folders as the system shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.runtime.machine import count_cpus, count_memory_bytes

OWN = len(os.sched_getaffinity(0))


def write(root: Path, **files: str) -> Path:
    for name, content in files.items():
        file = root / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("max 100000\n", OWN), ("100000 100000\n", 1), ("50000 100000\n", 1), ("", OWN)],
)
def test_a_quota_of_cgroups_v2_limits_the_cpus(tmp_path: Path, content: str, cpus: int) -> None:
    assert count_cpus(write(tmp_path, cpu_DOT_max=content)) == cpus


def test_a_quota_of_cgroups_v1_limits_the_cpus(tmp_path: Path) -> None:
    write(tmp_path, cpu__cpu_DOT_cfs_period_us="100000", cpu__cpu_DOT_cfs_quota_us="-1")
    assert count_cpus(tmp_path) == OWN
    write(tmp_path, cpu__cpu_DOT_cfs_quota_us="100000")
    assert count_cpus(tmp_path) == 1


def test_memory_is_the_least_that_is_said(tmp_path: Path) -> None:
    whole = count_memory_bytes(tmp_path)
    assert whole > 2**28
    assert count_memory_bytes(write(tmp_path, memory_DOT_max="max")) == whole
    assert count_memory_bytes(write(tmp_path, memory_DOT_max=str(2**28))) == 2**28
    assert (
        count_memory_bytes(write(tmp_path / "v1", memory__memory_DOT_limit_in_bytes=str(2**27)))
        == 2**27
    )
