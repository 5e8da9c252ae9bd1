"""The file of person masks, which stage 0 writes and all later stages read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpmpp_core.config import Config
from dpmpp_core.errors import DataError
from dpmpp_core.occlusion.saliency import pack_mask, unpack_mask

FILE = "masks.parquet"  # path: string, mask: binary, np.packbits of the patch grid, row by row
PATCH = 16  # pixels; the grid of the patch transfer, independent of the encoder's stride


def transfer_grid(config: Config) -> tuple[int, int]:
    """Return the rows and columns of the patches of masks and transfers."""
    return config.data.height // PATCH, config.data.width // PATCH


def save_masks(folder: Path, paths: list[str], masks: npt.NDArray[np.bool_]) -> None:
    """Write the masks bool [N, rows, columns] of the images `paths`, ordered by path."""
    packed = pa.array([pack_mask(mask) for mask in masks], pa.binary())
    pq.write_table(pa.table({"path": paths, "mask": packed}).sort_by("path"), folder / FILE)


def load_masks(folder: Path, paths: list[str], grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the masks bool [N, rows, columns] of the images `paths`, in their order.

    Raises:
        DataError: The file is missing or damaged, lacks an image, or has another grid.
    """
    try:
        table = pq.read_table(folder / FILE)
        packed = dict(zip(table["path"].to_pylist(), table["mask"].to_pylist(), strict=True))
        return np.stack([unpack_mask(packed[path], grid) for path in paths])
    except KeyError as error:
        problem = f"no column or image {error}"
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        problem = str(error)
    raise DataError(
        f"the person masks in {folder / FILE} cannot be read ({problem}); delete that folder, and "
        "the same command makes them again"
    )
