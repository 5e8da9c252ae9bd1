"""What a user names in an index - images, persons, cameras - must be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from dpmpp_core.data.names import canonical
from dpmpp_core.data.sightings import Label
from dpmpp_core.errors import DataError
from dpmpp_core.index import (
    GalleryIndex,
    RowFilter,
    describe_index,
    find_number,
    show_labels,
)


def match_images(
    index: GalleryIndex, images: Sequence[str], pids: Mapping[int, Label]
) -> list[str]:
    """Return the stored names of images that are named in full, or by the end of their path.

    Args:
        index: the index.
        images: as the user names them.
        pids: persons that must be there too, with their labels.

    Raises:
        DataError: an image or a person is not in the index, or several images end like that.
    """
    matches: dict[str, set[str]] = {name: set() for name in images}
    whole = {name: canonical(name) for name in images}
    unknown = set(pids)
    for block in index.blocks():
        live = pa.array(block.live)
        stored = block.rows["image"].filter(live)
        unknown -= set(pc.unique(block.rows["pid"].filter(live)).to_pylist())
        for name, match in matches.items():
            same = pc.or_(pc.equal(stored, name), pc.ends_with(stored, f"/{name}"))
            same = pc.or_(same, pc.equal(stored, whole[name]))
            match.update(stored.filter(same).to_pylist())
    if unknown:
        label = pids[min(unknown)]
        raise DataError(f"--pid {label}: no such person in the index; nothing is deleted")
    chosen = []
    for name, match in matches.items():
        if not match:
            raise DataError(
                f"--image {name}: no such image in the index; nothing is deleted. Write it as "
                "`dpmpp search` shows it"
            )
        if len(match) > 1 and name not in match:
            some = " and ".join(sorted(match)[:2])
            raise DataError(f"--image {name}: {len(match)} images end like that, as {some}")
        chosen.append(name if name in match else match.pop())
    return chosen


def require_cameras(index: GalleryIndex, where: RowFilter) -> None:
    """Raise DataError if an index has no image of a camera that is searched."""
    if where.cameras is None:
        return
    known, names = describe_index(index)["cameras"], index.manifest.names.cameras
    for camera in where.cameras:
        if find_number(camera, names, "--camera") not in known:
            cameras = ", ".join(show_labels(known, names)) or "none"
            raise DataError(f"--camera {camera}: the index has no image of it; it has of {cameras}")
