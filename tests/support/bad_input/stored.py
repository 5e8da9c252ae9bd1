"""Files of ours that somebody or a disk has changed: they are refused, never believed or mended."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from dpmpp_core.config import load_config
from dpmpp_core.data.captions import read_captions
from dpmpp_core.data.files import read_bytes
from dpmpp_core.data.given_masks import GivenMasks, has_true_masks
from dpmpp_core.data.manifest import FORMAT, Manifest, read_manifest
from pipelines.inference.embeddings_file import load_embeddings
from pipelines.runtime.storage import MARKER, Storage
from pipelines.training.masks import load_masks, save_masks
from pipelines.training.training_set import TrainingSet
from pipelines.training.worker import Job
from tests.support.bad_input.pictures import png_bomb
from tests.support.bad_input.row import Outcome, Row, good_market, picture, refusal

GRID = (8, 4)


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def row(given: str, make: Callable[[Path], Callable[[], object]], says: str) -> Row:
    """`make` prepares a folder and gives what reads it."""

    def attempt(folder: Path) -> Outcome:
        read = make(folder)
        before = bytes_in(folder)
        said = refusal(read)
        return Outcome(said, f"files {'as they were' if bytes_in(folder) == before else 'changed'}")

    return Row(given, attempt, says, "files as they were")


def manifest(change: Callable[[Path], object]) -> Callable[[Path], Callable[[], object]]:
    def make(folder: Path) -> Callable[[], object]:
        read_manifest(str(good_market(folder / "data"))).save(folder / "manifest")
        change(folder / "manifest")
        return lambda: Manifest.load(folder / "manifest").images.num_rows

    return make


def with_path(folder: Path, path: str) -> None:
    """The first row's path replaced in the table alone."""
    table = pq.read_table(folder / "images.parquet")
    paths = [path, *table["path"].to_pylist()[1:]]
    column = pa.array(paths, table.schema.field("path").type)
    table = table.set_column(0, table.schema.field("path"), column)
    pq.write_table(table, folder / "images.parquet")


def forged(folder: Path) -> Callable[[], object]:
    """A path out of the root, and files that vouch for it."""
    read_manifest(str(good_market(folder / "data"))).save(folder / "manifest")
    (folder / "secret.jpg").write_bytes(picture())
    with_path(folder / "manifest", "../secret.jpg")
    head = json.loads((folder / "manifest/manifest.json").read_text())
    table = pq.read_table(folder / "manifest/images.parquet")
    lines = "".join(json.dumps(list(row.values())) + "\n" for row in table.to_pylist())
    head["dataset_id"] = hashlib.sha256(lines.encode()).hexdigest()
    (folder / "manifest/manifest.json").write_text(json.dumps(head))
    for name in ("images", "quarantine"):
        file = folder / f"manifest/{name}.parquet"
        told = pq.read_table(file).replace_schema_metadata({"dataset_id": head["dataset_id"]})
        pq.write_table(told, file)
    loaded = Manifest.load(folder / "manifest")
    return lambda: read_bytes(loaded.root, loaded.images["path"][0].as_py())


def swapped(folder: Path) -> None:
    shutil.copy(folder / "quarantine.parquet", folder / "images.parquet")


def newer(folder: Path) -> None:
    head = json.loads((folder / "manifest.json").read_text()) | {"format": FORMAT + 1}
    (folder / "manifest.json").write_text(json.dumps(head))
    pq.write_table(pa.table({"other": [1]}), folder / "images.parquet")


def cut_part(name: str) -> Callable[[Path], object]:
    return lambda folder: cut(folder / name)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def found_masks(
    given: str, change: Callable[[Path], object], says: str, asked: str = "a.jpg"
) -> Row:
    """Stage 0's masks of a.jpg and b.jpg, read for `asked` on the 8x4 grid."""

    def make(folder: Path) -> Callable[[], object]:
        save_masks(folder, ["a.jpg", "b.jpg"], np.ones((2, *GRID), bool))
        change(folder)
        return lambda: load_masks(folder, [asked], GRID)

    return row(given, make, says)


def given_masks(given: str, change: Callable[[Path], object], says: str) -> Row:
    """Masks that come with the data, of the picture a.jpg, 32x64 pixels."""

    def make(folder: Path) -> Callable[[], object]:
        (folder / "a.jpg").write_bytes(picture())
        (folder / "masks").mkdir()
        change(folder)
        return lambda: GivenMasks(str(folder), GRID)(np.empty(0, np.uint8), ["a.jpg"])

    return row(given, make, says)


def annotated(packed: bytes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        table = pa.table({"path": ["a.jpg"], "person_mask": [packed]})
        pq.write_table(table, folder / "annotations.parquet")

    return change


def cut_annotations(folder: Path) -> Callable[[], object]:
    """The table's end, where Parquet keeps its index, is whole; what it points at is not."""
    text = [f"caption {i} {os.urandom(20).hex()}" for i in range(500)]
    pq.write_table(pa.table({"path": text, "caption": text}), folder / "annotations.parquet")
    data = bytearray((folder / "annotations.parquet").read_bytes())
    data[4:4000] = bytes(3996)
    (folder / "annotations.parquet").write_bytes(data)
    return lambda: read_captions(str(folder), ["a.jpg"])


def text_annotations(folder: Path) -> Callable[[], object]:
    (folder / "annotations.parquet").write_text("path,person_mask\n")
    return lambda: has_true_masks(str(folder))


def cached(given: str, file: str, kind: str, tensors: dict[str, torch.Tensor], says: str) -> Row:
    """What a stage of training starts from, in a committed folder."""

    def make(folder: Path) -> Callable[[], object]:
        storage = Storage(str(folder))
        with storage.commit("stages/x") as (inside, _):
            save_file(tensors, inside / file)
        training_set = TrainingSet(load_config("demo"), str(folder), "stages/p", "stages/s")
        job = Job(kind, training_set, "stages/x", "training/x", 1, False, None)
        return job.build_task if kind == "prompts" else lambda: job._load(file)

    return row(given, make, says)


def marker(text: str) -> Callable[[Path], Callable[[], object]]:
    def make(folder: Path) -> Callable[[], object]:
        storage = Storage(str(folder))
        with storage.commit("stages/x") as (inside, _):
            (inside / "weights").write_bytes(b"kept")
        (folder / "stages/x" / MARKER).write_text(text)
        return lambda: storage.marker("stages/x")

    return make


def embeddings(folder: Path) -> Callable[[], object]:
    save_file({"pids": torch.zeros(99)}, folder / "gallery.safetensors")
    cut(folder / "gallery.safetensors")
    return lambda: load_embeddings(folder / "gallery.safetensors")


def storage_is_a_file(folder: Path) -> Callable[[], object]:
    (folder / "runs").write_text("mine")
    return lambda: Storage(str(folder / "runs"))


NAN = float("nan")
LABELS = torch.arange(4)

ROWS = [
    row("manifest, a path edited", manifest(lambda f: with_path(f, "../x")), "not belong together"),
    row("manifest, a path out of the root vouched for", forged, "'../secret.jpg' leads out of"),
    row("manifest, its tables swapped", manifest(swapped), "DataError.*prepare the data again"),
    row(
        "manifest of a newer format",
        manifest(newer),
        f"has format {FORMAT + 1}, this version reads {FORMAT}",
    ),
    *(
        row(f"manifest, {file} cut", manifest(cut_part(file)), "cannot be read")
        for file in ("images.parquet", "quarantine.parquet", "manifest.json")
    ),
    row(
        "manifest.json nested without end",
        manifest(lambda f: (f / "manifest.json").write_text("[" * 100_000)),
        "cannot be read .*recursion",
    ),
    found_masks("person masks, cut", lambda f: cut(f / "masks.parquet"), "makes them again"),
    found_masks(
        "person masks of another grid",
        lambda f: save_masks(f, ["a.jpg"], np.ones((1, 16, 8), bool)),
        "16 bytes are no mask of 8x4 patches",
    ),
    found_masks("person masks, one lacking", lambda f: None, "no column or image 'c.jpg'", "c.jpg"),
    given_masks(
        "mask picture of another size",
        lambda f: (f / "masks/a.jpg.png").write_bytes(picture("PNG", (8, 8))),
        "is 8x8 pixels, its image 64x32",
    ),
    given_masks(
        "mask picture that is a bomb",
        lambda f: (f / "masks/a.jpg.png").write_bytes(png_bomb(8000, 8000)),
        "8000x8000 pixels are more than",
    ),
    given_masks(
        "packed mask that is a bomb", annotated(zlib.compress(bytes(10**8))), "not the zlib"
    ),
    given_masks("packed mask, cut", annotated(zlib.compress(bytes(4096))[:-6]), "not the zlib"),
    row("annotations.parquet, damaged inside", cut_annotations, "DataError: annotations.parquet"),
    row(
        "annotations.parquet that is text",
        text_annotations,
        "not a Parquet table",
    ),
    cached(
        "NaN in the cached features of stage 1",
        "features.safetensors",
        "prompts",
        {"features": torch.full((4, 8), NAN), "labels": LABELS},
        "WeightsError.*NaN or infinite values in features",
    ),
    cached(
        "infinity in the text prototypes",
        "texts.safetensors",
        "metric",
        {"texts": torch.full((4, 8), float("inf")), "scale": torch.ones(())},
        "WeightsError.*NaN or infinite values in texts",
    ),
    row("stage.json, cut", marker('{"summary"'), "stage.json is damaged: delete its folder"),
    row("stage.json, another value", marker("[]"), "stage.json is damaged: delete its folder"),
    row("embeddings of an evaluation, cut", embeddings, "WeightsError.*damaged"),
    row("storage that is a file", storage_is_a_file, "ConfigError: the storage .* is no folder"),
]
