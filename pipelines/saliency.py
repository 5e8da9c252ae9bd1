"""Stage 0: one person mask an image, made once by Ray Data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import TaskPoolStrategy

from dpmpp_core.config import Config
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.occlusion.saliency import pack_mask, spectral_saliency, unpack_mask
from pipelines.progress import bar
from pipelines.stage import Run, Stage

FILE = "masks.parquet"  # path: string, mask: binary, np.packbits of the patch grid, row by row
PATCH = 16  # pixels; the grid of the patch transfer, whatever the encoder's stride
ROWS = 256  # images a task


def transfer_grid(config: Config) -> tuple[int, int]:
    """Rows and columns of the patches that masks and transfers are made of."""
    return config.data.height // PATCH, config.data.width // PATCH


def saliency(run: Run, prepared: Stage) -> Stage:
    """Compute and store the masks of all images: test images are occluded by them too."""
    manifest = Manifest.load(run.folder(prepared))
    section, data = run.config.saliency, run.config.data
    grid = transfer_grid(run.config)
    identity = {
        "dataset": manifest.dataset_id,
        "saliency": section,
        "size": [data.height, data.width],
    }

    def mask_of(path: str) -> npt.NDArray[np.bool_]:
        image = resize(read_image(manifest.root, path), data.height, data.width)
        return spectral_saliency(image, grid, section.target_ratio)

    def look(table: pa.Table) -> pa.Table:
        masks = [mask_of(path) for path in table["path"].to_pylist()]
        share = [float(mask.mean()) for mask in masks]
        packed = pa.array([pack_mask(mask) for mask in masks], pa.binary())
        return pa.table({"path": table["path"], "mask": packed, "share": pa.array(share)})

    def build(folder: Path) -> dict[str, Any]:
        paths = manifest.images.select(["path"])
        tables = [paths.slice(i, ROWS).combine_chunks() for i in range(0, len(paths), ROWS)]
        dataset = ray.data.from_arrow(tables).map_batches(
            look,
            batch_size=None,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(size=run.plan.embed_workers),
        )
        parts = []
        with bar("person masks", len(paths)) as shown:
            for part in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                parts.append(part)
                shown.update(sum(map(len, parts)))
        table = pa.concat_tables(parts).sort_by("path")
        pq.write_table(table.select(["path", "mask"]), folder / FILE)
        share = table["share"].to_numpy()
        return {
            "images": len(table),
            "person_share_mean": float(share.mean()),
            "empty_masks": int((share == 0).sum()),
        }

    return run.stage("saliency", identity, build)


def load_masks(folder: Path, paths: list[str], grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Masks bool [N, rows, columns] of the images `paths`, in their order."""
    table = pq.read_table(folder / FILE)
    packed = dict(zip(table["path"].to_pylist(), table["mask"].to_pylist(), strict=True))
    return np.stack([unpack_mask(packed[path], grid) for path in paths])
