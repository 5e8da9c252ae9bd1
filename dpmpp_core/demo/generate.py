"""Generation of a demo data set in the layout of Market-1501, with annotations."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from dpmpp_core.config import DemoConfig
from dpmpp_core.data.annotations import ANNOTATIONS, GENERATED, pack_mask
from dpmpp_core.data.files import new_folder
from dpmpp_core.demo.cameras import Camera, make_camera
from dpmpp_core.demo.identity import caption, member
from dpmpp_core.demo.occluders import hidden_part
from dpmpp_core.demo.plan import FOLDERS, Shot, plan_shots
from dpmpp_core.demo.render import Picture, render

TASK_SHOTS = 128  # scenes of a camera take half a second to paint, the pictures two
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("pid", pa.int64()),
        ("camid", pa.int64()),
        ("split", pa.string()),
        ("visible_share", pa.float64()),
        ("occluder", pa.string()),
        ("hidden", pa.string()),
        ("caption", pa.string()),
        ("person_mask", pa.binary()),
        ("body_mask", pa.binary()),
    ],
    GENERATED,
)


@dataclass(frozen=True)
class DemoSummary:
    """Summary of a written set: images by folder, number of identities, duration in seconds."""

    images: Mapping[str, int]
    identities: int
    seconds: float


@dataclass(frozen=True)
class Drawn:
    """A finished picture: its path in the data set, its JPEG, its row of the annotations."""

    path: str
    jpeg: bytes
    row: dict[str, Any]


Task = tuple[DemoConfig, list[Shot]]


def draw_shots(task: Task) -> list[Drawn]:
    """Draw pictures of one camera: the unit of work for another process."""
    config, shots = task
    camera = make_camera(config.seed, config.cameras, shots[0].camid)
    return [_draw(shot, camera, config) for shot in shots]


def draw_here(tasks: list[Task]) -> Iterable[list[Drawn]]:
    """Apply `draw_shots` to each task, one after the other, in this process.

    It is the default `run` of `generate`. A task is drawn when its result is taken, not before.

    Args:
        tasks: pairs (configuration, shots); all shots of a task are of one camera.

    Returns:
        An iterator, which can be read once, with an item per task in their order. An item lists the
        pictures of a task, in the order of its shots.
    """
    return map(draw_shots, tasks)


def generate(
    out: Path,
    config: DemoConfig,
    progress: Callable[[int, int], None] | None = None,
    run: Callable[[list[Task]], Iterable[list[Drawn]]] = draw_here,
) -> DemoSummary:
    """Draw a demo data set into a new or empty folder (ours).

    Folders `bounding_box_train`, `bounding_box_test`, `query` (10-60 % of the person hidden) and
    `query_holistic` (the same identities and cameras, nothing hidden; of an `unseen` set the same
    photographs, each by the name of its occluded twin) hold JPEG images 256 high and 128 wide named
    `PPPP_cCsS_FFFFFF_KK.jpg`. `annotations.parquet` has one row per image (SCHEMA); its masks are
    read by `unpack_mask`. The same config gives the same bytes. Nothing appears at `out` before all
    is written.

    Args:
        out: the folder to write.
        config: size, seed and kind of the set.
        progress: called repeatedly with (images done, images in all).
        run: applies `draw_shots` to every task, in any order and any process.

    Raises:
        DataError: `out` is not an empty or absent folder.
    """
    start = time.perf_counter()
    with new_folder(out) as folder:
        images = _write_all(folder, config, progress, run)
    identities = config.train_identities + config.test_identities
    return DemoSummary(images, identities, time.perf_counter() - start)


def _write_all(
    folder: Path,
    config: DemoConfig,
    progress: Callable[[int, int], None] | None,
    run: Callable[[list[Task]], Iterable[list[Drawn]]],
) -> dict[str, int]:
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    shots = plan_shots(config)
    rows: dict[str, dict[str, Any]] = {}
    for drawn in run(_tasks(config, shots)):
        for picture in drawn:
            (folder / picture.path).write_bytes(picture.jpeg)
            rows[picture.path] = picture.row
        if progress is not None:
            progress(len(rows), len(shots))
    table = pa.Table.from_pylist([rows[_path(shot)] for shot in shots], SCHEMA)
    pq.write_table(table, folder / ANNOTATIONS)
    counts = Counter(shot.folder for shot in shots)
    return {name: counts[name] for name in FOLDERS}


def _tasks(config: DemoConfig, shots: list[Shot]) -> list[Task]:
    by_camera: dict[int, list[Shot]] = {}
    for shot in shots:
        by_camera.setdefault(shot.camid, []).append(shot)
    return [
        (config, of_camera[i : i + TASK_SHOTS])
        for _, of_camera in sorted(by_camera.items())
        for i in range(0, len(of_camera), TASK_SHOTS)
    ]


def _path(shot: Shot) -> str:
    return f"{shot.folder}/{shot.name}"


def _draw(shot: Shot, camera: Camera, config: DemoConfig) -> Drawn:
    picture = render(shot, camera, config)
    coding = [cv2.IMWRITE_JPEG_QUALITY, picture.jpeg_quality]
    coded = cv2.imencode(".jpg", picture.image, coding)[1]
    return Drawn(_path(shot), coded.tobytes(), _annotate(shot, picture, config))


def _annotate(shot: Shot, picture: Picture, config: DemoConfig) -> dict[str, Any]:
    return {
        "path": _path(shot),
        "pid": shot.pid,
        "camid": shot.camid,
        "split": shot.folder,
        "visible_share": float(picture.visible.sum() / picture.body.sum()),
        "occluder": picture.occluder,
        "hidden": hidden_part(picture.body, picture.visible),
        "caption": caption(member(config, shot.pid)),
        "person_mask": pack_mask(picture.visible),
        "body_mask": pack_mask(picture.body),
    }
