"""Person masks that come with the data: in `annotations.parquet`, or as pictures below `masks/`."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.data.annotations import ANNOTATIONS, read_columns, unpack_mask
from dpmpp_core.data.files import list_files, listing_fingerprint, read_bytes
from dpmpp_core.data.images import decode, read_image
from dpmpp_core.errors import DataError
from dpmpp_core.occlusion.saliency import resample_area

FOLDER = "masks"
COLUMNS = ["path", "person_mask"]


class GivenMasks:
    """Reads the masks of a data folder (ours).

    `annotations.parquet` takes precedence: column `path` as in the manifest, column `person_mask`
    the zlib-packed bits of 256x128 pixels, row by row, as the demo generator writes them. Else each
    image PATH has a picture `masks/PATH.png` of its own size, person where it is not black:
    `masks/query/a.jpg.png` for `query/a.jpg`.

    Args:
        root: the data folder, local or S3.
        grid: (gh, gw) patches; a patch is person if half of its pixels are.
        column: of the table; `body_mask` holds the parts of the person that something hides too.

    Raises:
        DataError: the folder has neither, or the table is damaged.
    """

    def __init__(self, root: str, grid: tuple[int, int], column: str = COLUMNS[1]) -> None:
        self._root, self._grid, self._column = root, grid, column
        self._packed = _read_annotations(root, column)
        if self._packed is None and column != COLUMNS[1]:
            raise DataError(f"{root} has no {ANNOTATIONS} with the columns path and {column}")
        if self._packed is None and not _has_folder(root):
            raise DataError(
                f"saliency.provider=given: {root} has neither {ANNOTATIONS} (columns "
                f"{', '.join(COLUMNS)}) nor a folder {FOLDER}/ of PNG masks: add one of them or "
                "choose another provider"
            )

    def __call__(self, images: NDArray[np.uint8], paths: Sequence[str]) -> NDArray[np.bool_]:
        """Return the masks of `paths`, bool [N, gh, gw]; the images are not used.

        Raises:
            DataError: an image has no mask, or one of another size; names the file.
        """
        read = self._from_folder if self._packed is None else self._from_table
        masks = [resample_area(read(path)[None], self._grid)[0] for path in paths]
        return np.stack(masks) >= 0.5

    def _from_table(self, path: str) -> NDArray[np.float32]:
        assert self._packed is not None
        packed = self._packed.get(path)
        if packed is None:
            raise DataError(
                f"{ANNOTATIONS} in {self._root} has no {self._column} of {path}: add that row, or "
                "take the image out of the data"
            )
        if not _is_packed(packed):
            raise DataError(
                f"{ANNOTATIONS} in {self._root}: the {self._column} of {path} is not the "
                "zlib-packed bits of 256x128 pixels: pack it like "
                "dpmpp_core.data.annotations.pack_mask"
            )
        return unpack_mask(packed).astype(np.float32)

    def _from_folder(self, path: str) -> NDArray[np.float32]:
        name = f"{FOLDER}/{path}.png"
        try:
            data = read_bytes(self._root, name)
        except DataError as error:
            raise DataError(f"missing mask for {path}: {error}; every image needs one") from None
        try:
            mask = decode(data).max(axis=2)
        except DataError as error:
            raise DataError(
                f"{name} in {self._root} does not decode as a picture: {error}; write it again"
            ) from None
        size = read_image(self._root, path).shape[:2]
        if mask.shape != size:
            raise DataError(
                f"{name} in {self._root} is {mask.shape[0]}x{mask.shape[1]} pixels, its image "
                f"{size[0]}x{size[1]}: a mask must be as large as its image"
            )
        return (mask > 0).astype(np.float32)


def has_true_masks(root: str, column: str = COLUMNS[1]) -> bool:
    """Return whether `annotations.parquet` at the root has masks to compare with."""
    return _read_annotations(root, column) is not None


def true_visibility(
    root: str, paths: Sequence[str], grid: tuple[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Read which patches show the body, and which of them are visible, bool [N, rows, columns].

    From `body_mask` and `person_mask` of `annotations.parquet`; None for data without them.

    Raises:
        DataError: an image has no mask, or one of another size.
    """
    if not (has_true_masks(root) and has_true_masks(root, "body_mask")):
        return None
    body, visible = (
        GivenMasks(root, grid, column)(np.empty(0, np.uint8), paths)
        for column in ("body_mask", "person_mask")
    )
    return body, visible & body


def masks_fingerprint(root: str) -> str:
    """Return a SHA-256 (hex) that changes when the masks of a data folder do."""
    try:
        return hashlib.sha256(read_bytes(root, ANNOTATIONS)).hexdigest()
    except DataError:
        return listing_fingerprint(list_files(f"{root}/{FOLDER}")) if _has_folder(root) else ""


def _read_annotations(root: str, column: str = COLUMNS[1]) -> dict[str, bytes] | None:
    """Return path -> packed mask; None without the file or one of the columns."""
    columns = (COLUMNS[0], column)
    table = read_columns(root, ANNOTATIONS, columns)
    if table is None:
        return None
    paths, masks = (table[name].to_pylist() for name in columns)
    return {path: mask for path, mask in zip(paths, masks, strict=True) if mask is not None}


def _is_packed(packed: bytes) -> bool:
    """Return whether these are the bytes of `pack_mask` of 256x128 pixels."""
    size = 256 * 128 // 8
    try:  # a few bytes may unpack to gigabytes
        return len(zlib.decompressobj().decompress(packed, size + 1)) == size
    except (zlib.error, TypeError):
        return False


def _has_folder(root: str) -> bool:
    try:
        return bool(list_files(f"{root}/{FOLDER}").files)
    except DataError:
        return False
