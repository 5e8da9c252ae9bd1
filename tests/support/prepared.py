"""A prepared data folder: its images, its inspected parts, and files spoilt behind its back."""

from __future__ import annotations

import os
from pathlib import Path


def images(data: Path) -> list[Path]:
    return sorted((data / "bounding_box_train").glob("*.jpg"))


def spoil(file: Path) -> None:
    """Write other bytes, of the same size and time of change: a reader would find no image."""
    times = file.stat()
    file.write_bytes(bytes(times.st_size))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def parts(data: Path) -> list[Path]:
    return sorted((data.parent / "runs").glob("inspected/*/part-*.parquet"))
