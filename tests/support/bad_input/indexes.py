"""Gallery indexes that somebody or a disk has changed, and what is asked of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from dpmpp_core.data.sightings import Sighting, read_labels
from dpmpp_core.index import ROW_SCHEMA, GalleryIndex, ModelVersion, RowFilter, search
from pipelines.gallery.calibration import read_calibration
from pipelines.gallery.index import ImageSource, add_images, delete_images, resolve_local_folder
from pipelines.gallery.selection import require_cameras
from tests.support.bad_input.row import Row
from tests.support.bad_input.stored import row

MODEL = ModelVersion(weights_sha256="a" * 64, spaces={"visual": 4})
FEATURES = {"visual": np.eye(4, dtype=np.float32)}


def good_index(folder: Path) -> GalleryIndex:
    """Four images, one of them deleted."""
    index = GalleryIndex.create(folder / "index", MODEL, str(folder / "model"))
    names = list("abcd")
    columns = {"image": names, "sha256": names, "bytes": [1] * 4, "mtime_ns": [1] * 4}
    columns |= {name: [None] * 4 for name in ("pid", "camid", "time")}
    index, _ = index.append(MODEL, pa.table(columns, schema=ROW_SCHEMA), FEATURES)
    return index.delete(images=["d"])[0]


def changed(
    change: Callable[[Path], object], read: Callable[[Path], object] | None = None
) -> Callable[[Path], Callable[[], object]]:
    def look(folder: Path) -> object:
        return search(GalleryIndex.open(folder), FEATURES, None, 2)

    def make(folder: Path) -> Callable[[], object]:
        index = good_index(folder)
        change(index.folder)
        return lambda: (read or look)(index.folder)

    return make


def the(folder: Path, pattern: str) -> Path:
    (file,) = (folder / "segments").glob(pattern)
    return file


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def segment_named(folder: Path, name: str) -> None:
    value = json.loads((folder / "index.json").read_text())
    value["segments"][0]["file"] = name
    (folder / "index.json").write_text(json.dumps(value))


def of_other_columns(folder: Path) -> None:
    file = the(folder, "*.arrow")
    with pa.OSFile(str(file), "wb") as sink:
        table = pa.table({"image": list("abcd")})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def labels(text: bytes) -> Callable[[Path], Callable[[], object]]:
    return lambda folder: lambda: read_labels(text, "labels.csv")


def nothing(folder: Path) -> None: ...


def named(folder: Path) -> GalleryIndex:
    return GalleryIndex.open(folder).add_names([Sighting("a", "anna", "entrance")])


ROWS: list[Row] = [
    row("an index whose index.json was cut", changed(lambda f: cut(f / "index.json")),
        r"DataError: .*index\.json cannot be read"),
    row("an index that names a file outside of it",
        changed(lambda f: segment_named(f, "../../secret.arrow")),
        r"DataError: .*index\.json is damaged: .*pattern"),
    row("an index with a segment that was cut", changed(lambda f: cut(the(f, "*.arrow"))),
        r"DataError: .*\.arrow is damaged"),
    row("an index with a segment of other columns", changed(of_other_columns),
        r"DataError: .*other columns than the index"),
    row("an index whose list of deleted rows was cut", changed(lambda f: cut(the(f, "*.npy"))),
        r"DataError: .*\.npy is damaged"),
    row("an index whose list of deleted rows is a pickle",
        changed(lambda f: np.save(the(f, "*.npy"), np.array([print]), allow_pickle=True)),
        r"DataError: .*\.npy is damaged"),
    row("a calibration beside an index that was cut",
        changed(lambda f: (f / "calibration.json").write_text('{"fit": 3}'),
                lambda f: read_calibration(str(f), "a" * 64)),
        r"DataError: .*calibration\.json is damaged"),
    row("an index whose model is gone",
        changed(nothing, lambda f: add_images(str(f), ImageSource(str(f)))),
        r"WeightsError: .*model holds no model\.json"),
    row("an index to be written to that is a URI",
        lambda folder: lambda: resolve_local_folder("s3://bucket/index"),
        r"DataError: s3://bucket/index: an index is written to in a local folder"),
    row("labels without a column of paths", labels(b"file,pid\na.jpg,1\n"),
        r"DataError: labels\.csv: its first line"),
    row("labels with a person below 0 among names", 
        labels(b"path,person\nb.jpg,Bob\na.jpg,-1\n"),
        r"DataError: labels\.csv:3: pid '-1' is no number from 0 on, and no name"),
    row("labels with the number that a name has in the index", 
        changed(named, lambda f: GalleryIndex.open(f).add_names([Sighting("b", 1_000_000_000)])),
        r"DataError: person 1000000000 of the data is the number of 'anna' in the index"),
    row("a camera by a name that the index does not have", 
        changed(named, lambda f: require_cameras(
            GalleryIndex.open(f), RowFilter(cameras=["Entrance"]))),
        r"DataError: --camera Entrance: the index has no such name; did you mean 'entrance'"),
    row("a person to delete by a name that the index does not have",
        changed(named, lambda f: delete_images(str(f), [], ["ana"])),
        r"DataError: --pid ana: the index has no such name; did you mean 'anna'"),
    row("labels with a time that is none", labels(b"path,time\na.jpg,noon\n"),
        r"DataError: labels\.csv:2: 'noon' is no time"),
]  # fmt: skip
