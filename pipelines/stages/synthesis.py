"""`dpmpp synthesize`: a data set whose queries are hidden to a requested degree."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from dpmpp_core.data.files import ensure_empty_dir, new_folder, read_bytes, resolve_path
from dpmpp_core.data.images import read_image
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.synthesis import BANDS, PARTS, Band, Part
from dpmpp_core.errors import ArgumentError, DataError
from pipelines.reporting.figures import draw_contact_sheet, save_png
from pipelines.runtime.progress import progress_bar
from pipelines.runtime.resources import create_pool
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.runtime.storage import Storage
from pipelines.training.training_set import TrainingSet

log = logging.getLogger(__name__)

TABLE = "synthesis.parquet"
SHEET = "synthesis.png"
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("source", pa.string()),  # path of the clean picture below the source's root
        ("donor", pa.string()),  # of the picture that hides; null, as all below: a clean copy
        ("shift", pa.int64()),  # patches to the right: the person is rolled; of a part, the donor
        ("oiou", pa.float64()),  # null where a part is cut away
        ("hidden", pa.float64()),  # share of the person's patches, in [0, 1]
        ("band", pa.string()),  # percent, LOW-HIGH
        ("part", pa.string()),  # any: what the donor's silhouette leaves out
    ]
)
RESULT_SCHEMA = pa.schema(
    [("row", pa.int64()), ("jpeg", pa.binary()), *(SCHEMA.field(i) for i in range(2, len(SCHEMA)))]
)
HIDEABLE = ("query", "train")
FOLDERS = {"train": "bounding_box_train", "gallery": "bounding_box_test", "query": "query"}
HOLISTIC = "query_holistic"
TASK_IMAGES = 64
JPEG_QUALITY = 95
SHEET_PEOPLE = 8  # people on the contact sheet


@dataclass(frozen=True)
class SynthesisRequest:
    """Options of `dpmpp synthesize`.

    Attributes:
        out: A new or empty folder, or `s3://bucket/prefix`; `{date}` in it becomes today's (UTC).
        bands: Shares hidden.
        splits: Splits whose images are hidden, of HIDEABLE.
        part: Part of the person that is hidden.

    Raises:
        ArgumentError: A split or part is unknown.
        DataError: `out` has files.
    """

    out: str
    bands: tuple[Band, ...] = BANDS
    splits: tuple[str, ...] = ("query",)
    part: Part = "any"

    def __post_init__(self) -> None:
        today = datetime.now(UTC).date().isoformat()
        object.__setattr__(self, "out", resolve_path(self.out.replace("{date}", today)))
        unknown = sorted(set(self.splits) - set(HIDEABLE))
        if unknown or not self.splits:
            named = ", ".join(unknown) or "nothing"
            raise ArgumentError(f"--splits {named}: what can be hidden is {', '.join(HIDEABLE)}")
        if self.part not in PARTS:
            raise ArgumentError(
                f"--part {self.part}: what can be hidden is one of {', '.join(PARTS)}"
            )
        if "://" not in self.out:
            ensure_empty_dir(Path(self.out))
        elif Storage(self.out).has_files():
            raise DataError(f"{self.out}: there are files; name a new place or delete them first")


def synthesize(
    run: Run, prepared: Stage, saliency: Stage, request: SynthesisRequest
) -> dict[str, Any]:
    """Write an occluded data set in Market-1501 layout (ours).

    `query/` holds every clean query hidden once per band, `query_holistic/` the clean ones, and
    `bounding_box_test/` the gallery. `bounding_box_train/` holds the training images, with hidden
    versions if requested. Donors are training images or backgrounds, never test images.
    `synthesis.parquet` (SCHEMA) has a row per file, `synthesis.png` shows some. The same seed
    gives the same bytes on any number of workers. `out` appears when everything is written.

    Raises:
        DataError: There are no training images, no clean queries, or no image of any band.
    """
    manifest = Manifest.load(run.folder(prepared))
    rows = manifest.images.append_column("row", pa.array(range(len(manifest.images))))
    hidden = {split: select_clean_rows(manifest, rows, split) for split in request.splits}
    if not len(manifest.subset("train")):
        raise DataError(f"{manifest.root} has no training images, from which occlusions are taken")
    offset = int(manifest.layout != "market1501")  # there, person 0 is a distractor
    folders = dict(FOLDERS)
    if "query" in request.splits:
        folders["query"] = HOLISTIC
    training_set = TrainingSet(run.config, run.storage.uri, prepared.key, saliency.key)

    with _output_folder(request.out) as folder:
        records = _copy_images(manifest, rows, folder, folders, offset)
        for split, table in hidden.items():
            (folder / FOLDERS[split]).mkdir(exist_ok=True)
            results = _hide_images(training_set, table, request, run.plan.embed_workers)
            records += _write_images(results, table, folder, FOLDERS[split], offset)
        records.sort(key=lambda record: record["path"])
        pq.write_table(pa.Table.from_pylist(records, SCHEMA), folder / TABLE)
        summary = _summarise(records, request, hidden)
        if not any(band["images"] for band in summary["bands"].values()):
            raise DataError(f"no picture could be hidden by {', '.join(map(str, request.bands))} %")
        save_png(folder / SHEET, _draw_sheet(folder, records, request.bands))
    for name, band in summary["bands"].items():
        if band["missed"]:
            log.warning("%d pictures could not be hidden by %s %%", band["missed"], name)
    return {"root": request.out, **summary}


@contextmanager
def _output_folder(out: str) -> Iterator[Path]:
    """Yield a folder to fill, which appears at `out` when the block ends well."""
    if "://" not in out:
        with new_folder(Path(out)) as folder:
            yield folder
        return
    parent, _, name = out.rstrip("/").rpartition("/")
    with Storage(parent).commit(name) as (folder, marker):
        yield folder
        marker["name"] = "synthesis"


def select_clean_rows(manifest: Manifest, rows: pa.Table, split: str) -> pa.Table:
    """Return the rows of a split whose persons are not occluded according to the data set.

    Raises:
        DataError: There are none.
    """
    kept = rows.filter(pc.and_(pc.equal(rows["split"], split), pc.invert(rows["occluded"])))
    if not len(kept):
        raise DataError(
            f"{manifest.root} ({manifest.layout}) has no clean {split} images: hiding those that "
            "are occluded already would not hide a known share"
        )
    return kept


class HideImages:
    """Data worker: rows and bands -> encoded images; null where no donor fits."""

    def __init__(self, training_set: TrainingSet, part: Part) -> None:
        self._synthesiser, self._part = training_set.build_synthesiser(), part

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return rows of RESULT_SCHEMA."""
        return pa.Table.from_pylist(
            [self._hide(**item) for item in table.to_pylist()], RESULT_SCHEMA
        )

    def _hide(self, row: int, low: int, high: int) -> dict[str, Any]:
        sample = self._synthesiser.make(row, Band(low, high), self._part)
        result: dict[str, Any] = {"row": row, "band": str(Band(low, high)), "part": self._part}
        if sample is None:
            return result
        coding = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        jpeg = cv2.imencode(".jpg", cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR), coding)[1]
        result |= {"donor": sample.donor, "shift": sample.shift, "oiou": sample.oiou}
        return result | {"hidden": sample.occlusion_ratio, "jpeg": jpeg.tobytes()}


def _hide_images(
    training_set: TrainingSet, table: pa.Table, request: SynthesisRequest, workers: int
) -> list[dict[str, Any]]:
    """Return the rows of `HideImages` for every row of the table and band, unordered."""
    items = [
        {"row": row, "low": band.low, "high": band.high}
        for row in table["row"].to_pylist()
        for band in request.bands
    ]
    tables = [
        pa.Table.from_pylist(items[i : i + TASK_IMAGES]) for i in range(0, len(items), TASK_IMAGES)
    ]
    dataset = ray.data.from_arrow(tables).map_batches(
        HideImages,
        fn_constructor_args=(training_set, request.part),
        batch_size=None,
        batch_format="pyarrow",
        compute=create_pool(min(workers, len(tables))),
        num_cpus=1,
    )
    results: list[dict[str, Any]] = []
    with progress_bar("pictures hidden", len(items)) as shown:
        for part in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(part, pa.Table)
            results += part.to_pylist()
            shown.update(len(results))
    return results


def _write_images(
    results: list[dict[str, Any]], table: pa.Table, folder: Path, place: str, offset: int
) -> list[dict[str, Any]]:
    """Write the images into `folder / place`; return the rows of SCHEMA."""
    sources = {source["row"]: source for source in table.to_pylist()}
    records = []
    for item in results:
        if item["jpeg"] is None:
            continue
        source = sources[item["row"]]
        path = f"{place}/{_file_stem(source, offset)}_{item['band']}.jpg"
        (folder / path).write_bytes(item["jpeg"])
        how = {name: item[name] for name in ("donor", "shift", "oiou", "hidden", "band", "part")}
        records.append({"path": path, "source": source["path"], **how})
    return records


def _copy_images(
    manifest: Manifest, rows: pa.Table, folder: Path, folders: dict[str, str], offset: int
) -> list[dict[str, Any]]:
    """Copy all images except occluded queries, under names of the Market-1501 layout."""
    taken = rows.filter(
        pc.invert(pc.and_(pc.equal(rows["split"], "query"), rows["occluded"]))
    ).to_pylist()
    for place in folders.values():
        (folder / place).mkdir(exist_ok=True)
    records = []
    with progress_bar("pictures copied", len(taken)) as shown:
        for row in taken:
            ending = Path(row["path"]).suffix.lower()
            path = f"{folders[row['split']]}/{_file_stem(row, offset)}{ending}"
            (folder / path).write_bytes(read_bytes(manifest.root, row["path"]))
            records.append({"path": path, "source": row["path"]})
            shown.update(len(records))
    return records


def _file_stem(row: dict[str, Any], offset: int) -> str:
    return f"{row['pid'] + offset:04d}_c{row['camid']}_{row['row']:06d}"


def _summarise(
    records: list[dict[str, Any]], request: SynthesisRequest, hidden: dict[str, pa.Table]
) -> dict[str, Any]:
    """Count files by folder, and by band images, images without a donor, mean share hidden."""
    requested = sum(map(len, hidden.values()))
    bands = {}
    for name in map(str, request.bands):
        shares = [record["hidden"] for record in records if record.get("band") == name]
        mean = float(np.mean(shares)) if shares else None
        bands[name] = {
            "images": len(shares),
            "missed": requested - len(shares),
            "hidden_mean": mean,
        }
    files = Counter(record["path"].partition("/")[0] for record in records)
    return {"files": dict(sorted(files.items())), "bands": bands}


def _draw_sheet(folder: Path, records: list[dict[str, Any]], bands: tuple[Band, ...]) -> Any:
    """Draw people by bands, with a white cell where no donor fits."""
    hidden: dict[str, dict[str, dict[str, Any]]] = {}
    clean = {record["source"]: record["path"] for record in records if not record.get("band")}
    for record in records:
        if record.get("band"):
            hidden.setdefault(record["source"], {})[record["band"]] = record
    sources = sorted(hidden)
    picked = np.linspace(0, len(sources) - 1, min(SHEET_PEOPLE, len(sources))).round().astype(int)
    images, captions = [], []
    for source in (sources[i] for i in picked):
        images.append(read_image(str(folder), clean[source]))
        captions.append("clean")
        for name in map(str, bands):
            sample = hidden[source].get(name)
            blank = np.full_like(images[-1], 255)
            images.append(read_image(str(folder), sample["path"]) if sample else blank)
            captions.append(
                f"{100 * sample['hidden']:.0f} % hidden" if sample else f"none for {name}"
            )
    return draw_contact_sheet(images, captions, 1 + len(bands))
