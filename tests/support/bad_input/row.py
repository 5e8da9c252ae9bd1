"""A row of the table, and the good things that a bad one must not spoil."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dpmpp_core.data.manifest import Manifest, read_manifest
from dpmpp_core.errors import UserError

NOBODY = 65534


class Outcome(NamedTuple):
    said: str  # what the user is told
    kept: str  # what is left


@dataclass(frozen=True)
class Row:
    """One bad input.

    Attributes:
        given: what it is, in words.
        attempt: hands it over in a new folder, for real.
        says: regular expression, found in what is reported.
        keeps: what is left, literally.
    """

    given: str
    attempt: Callable[[Path], Outcome]
    says: str
    keeps: str


def refusal(work: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """How `work` refuses its arguments; anything but an error for people goes through."""
    try:
        result = work(*arguments, **named)
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return f"accepted: {result!r}"


def picture(
    kind: str = "JPEG",
    size: tuple[int, int] = (32, 64),
    mode: str = "RGB",
    seed: int = 99,
    **options: Any,
) -> bytes:
    """An image file of noise, `size` = (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


GOOD = [
    *(f"bounding_box_train/{pid:04}_c{camera}.jpg" for pid in (1, 2) for camera in (1, 2)),
    *(f"query/{pid:04}_c1.jpg" for pid in (3, 4)),
    *(f"bounding_box_test/{pid:04}_c2.jpg" for pid in (3, 4)),
]


def good_market(root: Path) -> Path:
    """The eight images of `GOOD`."""
    for seed, name in enumerate(GOOD):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(seed=seed))
    return root


def look(root: Path) -> Outcome:
    """Read a folder that holds `good_market` and more: what is said of the rest."""
    before = _on_disk(root)
    manifest = read_manifest(str(root))
    changed = "nothing" if _on_disk(root) == before else "something"
    good = sum(path in GOOD for path in manifest.images["path"].to_pylist())
    return Outcome(_reported(manifest), f"{good} of {len(GOOD)} good images; {changed} changed")


ALL_GOOD = "8 of 8 good images; nothing changed"


def _reported(manifest: Manifest) -> str:
    left_out = [
        f"{row['path']}: {row['reason']} ({row['detail']})"
        for row in manifest.quarantine.to_pylist()
    ]
    used = [
        f"{row['path']}: used, {row['width']}x{row['height']}"
        for row in manifest.images.to_pylist()
        if row["path"] not in GOOD
    ]
    return "; ".join([*left_out, *used, *manifest.warnings]) or "nothing"


def _on_disk(root: Path) -> list[str]:
    return sorted(
        os.path.join(folder, name)
        for folder, folders, files in os.walk(root)
        for name in (*folders, *files)
    )


@contextmanager
def as_nobody() -> Iterator[None]:
    """As a user without rights: permissions do not bind root."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
