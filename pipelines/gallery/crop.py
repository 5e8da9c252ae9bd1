"""Cut the persons out of videos and of folders of whole scenes; see `dpmpp crop --help`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpmpp_core.data.files import Rejected, list_files, new_folder, resolve_path
from dpmpp_core.data.headers import IMAGE_NAME
from dpmpp_core.data.images import read_image
from dpmpp_core.data.own_data import TABLE
from dpmpp_core.detection import (
    VIDEO_NAME,
    CropOptions,
    CropWriter,
    Detector,
    MotionDetector,
    OnnxDetector,
    Video,
    crop_picture,
    crop_video,
)
from dpmpp_core.errors import ConfigError, DataError
from pipelines.runtime.progress import progress_bar

MOTION = "motion"
NEITHER = "neither a picture nor a video, by its name"
PICTURES_NEED_A_DETECTOR = "pictures need --detector FILE.onnx: motion shows in videos alone"


@dataclass(frozen=True)
class CropRequest:
    """What to cut out of what; see `dpmpp crop --help`."""

    source: str
    out: str
    options: CropOptions
    detector: str = MOTION
    confidence: float = 0.5


@dataclass(frozen=True)
class _Sources:
    """Videos and pictures below a root, and the number of each one's camera."""

    root: str
    videos: list[str]
    pictures: list[str]
    rejected: list[Rejected]

    @property
    def cameras(self) -> dict[str, int]:
        """Number of each video, and of each folder of pictures, from 1 on."""
        folders = sorted({path.rpartition("/")[0] for path in self.pictures} - {""})
        return {name: number for number, name in enumerate([*self.videos, *folders], 1)}


def run_crop(request: CropRequest) -> dict[str, Any]:
    """Write the crops and their table `labels.csv` into a new folder.

    Nothing appears at `out` before all is written.

    Returns:
        out, labels (the table), frames, tracklets, crops, seconds; cameras: of each number, source,
        frames, tracklets and crops; quarantined: what was skipped or broke off.

    Raises:
        UserError: the source, the folder, the detector, or no person in all of it.
    """
    start = time.monotonic()
    create_detector = _prepare_detector(request)
    sources = _find_sources(request)
    with new_folder(Path(resolve_path(request.out))) as folder:
        with open(folder / TABLE, "w", encoding="utf-8", newline="") as table:
            writer = CropWriter(folder, table)
            cameras, rejected = _crop_videos(request, sources, create_detector, writer)
            if sources.pictures:
                seen, bad = _crop_pictures(request, sources, create_detector, writer)
                cameras += seen
                rejected += bad
        total = {key: sum(row[key] for row in cameras) for key in ("frames", "tracklets", "crops")}
        if not total["crops"]:
            _refuse_nothing(request, rejected)
    return {
        "root": sources.root,
        "out": str(Path(resolve_path(request.out))),
        "labels": str(Path(resolve_path(request.out)) / TABLE),
        **total,
        "cameras": cameras,
        "quarantined": [row._asdict() for row in sorted([*sources.rejected, *rejected])],
        "seconds": round(time.monotonic() - start, 2),
    }


def _prepare_detector(request: CropRequest) -> Callable[[], Detector]:
    """Return what creates the detector of a video; ConfigError if there is none of the name."""
    if not 0 < request.confidence < 1:
        raise ConfigError(f"--confidence {request.confidence:g}: above 0 and below 1 is needed")
    if request.detector == MOTION:
        return lambda: MotionDetector(request.options.min_height)
    detector = OnnxDetector(Path(resolve_path(request.detector)), request.confidence)
    return lambda: detector


def _find_sources(request: CropRequest) -> _Sources:
    """List the videos and pictures of a folder; a file is a folder of one.

    Raises:
        DataError: a URI, a missing path, or a folder without a video or a picture.
    """
    if "://" in request.source:
        raise DataError(f"--from {request.source}: a file or a folder of this machine is needed")
    path = Path(resolve_path(request.source))
    if path.is_file():
        pictures = [path.name] if IMAGE_NAME.search(path.name) else []
        videos = [] if pictures else [path.name]
        sources = _Sources(str(path.parent), videos, pictures, [])
    else:
        listing = list_files(str(path))
        names = [file.path for file in listing.files]
        videos = [name for name in names if VIDEO_NAME.search(name)]
        pictures = [name for name in names if IMAGE_NAME.search(name)]
        problems = [row for row in listing.problems if row.reason != "empty_folder"]
        others = set(names) - {*videos, *pictures}
        problems += [Rejected(name, "not_an_image_name", NEITHER) for name in others]
        sources = _Sources(str(path), videos, pictures, problems)
    if not sources.videos and not sources.pictures:
        raise DataError(f"{request.source} holds no video and no picture, by their names")
    if not sources.videos and request.detector == MOTION:
        raise DataError(f"{request.source}: {PICTURES_NEED_A_DETECTOR}")
    return sources


def _crop_videos(
    request: CropRequest,
    sources: _Sources,
    create_detector: Callable[[], Detector],
    writer: CropWriter,
) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """Crop each video; return a row for each one, and those that are none or break off."""
    rows: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    for name in sources.videos:
        camera = sources.cameras[name]
        try:
            video = Video(Path(sources.root) / name)
        except DataError as error:
            if len(sources.videos) + len(sources.pictures) == 1:
                raise
            rejected.append(Rejected(name, "not_a_video", str(error)))
            continue
        try:
            with progress_bar(name, max(video.frames, 1)) as shown:
                counts = crop_video(
                    video, name, camera, create_detector(), request.options, writer, shown.update
                )
        finally:
            video.close()
        if video.problem:
            rejected.append(Rejected(name, "breaks_off", f"the video {video.problem}"))
        rows.append({"camera": camera, "source": name, **asdict(counts)})
    return rows, rejected


def _crop_pictures(
    request: CropRequest,
    sources: _Sources,
    create_detector: Callable[[], Detector],
    writer: CropWriter,
) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """Crop each picture; return a row for each folder, and the pictures that are none."""
    if request.detector == MOTION:
        return [], [
            Rejected(path, "no_detector", PICTURES_NEED_A_DETECTOR) for path in sources.pictures
        ]
    detector = create_detector()
    rows: dict[str, dict[str, Any]] = {}
    rejected = []
    with progress_bar("pictures", len(sources.pictures)) as shown:
        for done, path in enumerate(sources.pictures, 1):
            folder = path.rpartition("/")[0]
            camera = sources.cameras.get(folder)
            shown.update(done)
            try:
                image = read_image(sources.root, path)
            except DataError as error:
                rejected.append(Rejected(path, "not_an_image", str(error)))
                continue
            crops = crop_picture(image, path, camera, detector, request.options, writer)
            start = {"camera": camera, "source": folder or ".", "frames": 0, "tracklets": 0}
            row = rows.setdefault(folder, {**start, "crops": 0})
            row["frames"] += 1
            row["crops"] += crops
    return list(rows.values()), rejected


def _refuse_nothing(request: CropRequest, rejected: list[Rejected]) -> None:
    skipped = "".join(f"; {row.path}: {row.detail}" for row in rejected[:3])
    advice = "lower --min-height or --confidence"
    if request.detector == MOTION:
        advice = "does the camera stand still? Else name --detector FILE.onnx"
    raise DataError(
        f"{request.source}: no person of {request.options.min_height} pixels or more is in it; "
        f"{advice}{skipped}"
    )
