"""Cut the persons of videos and pictures out, as files that an index is built of.

A video becomes `VIDEO/TRACKLET/FRAME.jpg`, a picture `PICTURE-NUMBER.jpg`; the rows of `labels.csv`
are those that `read_labels` reads.
"""

from __future__ import annotations

import csv
import datetime
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from dpmpp_core.data.images import Image
from dpmpp_core.detection.boxes import Detector
from dpmpp_core.detection.tracking import NO_TRACK, Tracker
from dpmpp_core.detection.video import Video
from dpmpp_core.errors import DataError

COLUMNS = ("path", "camera", "time")
MIN_PICTURES = 3  # of a tracklet; what is seen less often is mostly no person
MARGIN = 0.04  # added around a box on each side, share of its height
JPEG_QUALITY = 95


@dataclass(frozen=True)
class CropOptions:
    """What is cut out.

    Attributes:
        every: seconds between two frames that are looked at; 0 = each frame.
        min_height: pixels of the smallest person.
        start: time of the first frame, seconds since 1970; 0 = times count from it.

    Raises:
        DataError: a negative number, or persons of no height.
    """

    every: float = 0.2
    min_height: int = 64
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.every < 1e9:
            raise DataError(f"--every {self.every:g}: seconds from 0 on are needed")
        if self.min_height < 8:
            raise DataError(f"--min-height {self.min_height}: at least 8 pixels are needed")


class CropWriter:
    """Writes crops below a folder, and their rows to an open table.

    Args:
        folder: must exist.
        table: text file, opened with `newline=""`.
    """

    def __init__(self, folder: Path, table: TextIO) -> None:
        self.folder = folder
        self._rows = csv.writer(table, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def write_crop(self, path: str, image: Image, box: NDArray[np.float32]) -> None:
        """Write what a box [4] holds of an image, with a margin, as JPEG."""
        height, width = image.shape[:2]
        margin = MARGIN * (box[3] - box[1])
        left, top = np.maximum(np.floor(box[:2] - margin), 0).astype(int)
        right, bottom = np.minimum(np.ceil(box[2:] + margin), (width, height)).astype(int)
        crop = cv2.cvtColor(image[top:bottom, left:right], cv2.COLOR_RGB2BGR)
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        coded = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        file.write_bytes(coded.tobytes())

    def write_row(self, path: str, camera: int | None, time: float | None) -> None:
        """Write the row of a crop; None = not known."""
        seen = ""
        if time is not None:
            when = datetime.datetime.fromtimestamp(int(time), datetime.UTC)
            seen = when.strftime("%Y-%m-%dT%H:%M:%SZ")
        self._rows.writerow((path, "" if camera is None else camera, seen))


@dataclass
class CropCounts:
    """What was cut out of a video: frames looked at, tracklets, crops."""

    frames: int = 0
    tracklets: int = 0
    crops: int = 0


@dataclass
class _Tracklets:
    """The tracklets of one video: those that last on, and the writing of those that ended."""

    writer: CropWriter
    name: str
    camera: int
    counts: CropCounts = field(default_factory=CropCounts)
    open: dict[int, list[tuple[str, float]]] = field(default_factory=dict)  # path and time of each

    def add(
        self, number: int, frame: int, time: float, image: Image, box: NDArray[np.float32]
    ) -> None:
        path = f"{self.name}/{number:04d}/{frame:06d}.jpg"
        self.writer.write_crop(path, image, box)
        self.open.setdefault(number, []).append((path, time))

    def end(self, alive: set[int]) -> None:
        """Write the rows of those that ended; remove the pictures of short ones."""
        for number in sorted(set(self.open) - alive):
            rows = self.open.pop(number)
            if len(rows) < MIN_PICTURES:
                shutil.rmtree(self.writer.folder / self.name / f"{number:04d}")
                continue
            self.counts.tracklets += 1
            self.counts.crops += len(rows)
            for path, time in rows:
                self.writer.write_row(path, self.camera, time)


def crop_video(
    video: Video,
    name: str,
    camera: int,
    detector: Detector,
    options: CropOptions,
    writer: CropWriter,
    progress: Callable[[int], None] = lambda done: None,
) -> CropCounts:
    """Write the crops of a video, one folder for each tracklet of MIN_PICTURES or more.

    Args:
        video: is read to its end; `video.problem` is set then.
        name: folder of its crops.
        camera: number of its camera.
        detector: a new one for each video, if it remembers.
        options: see there.
        writer: of the crops.
        progress: called with the number of frames that are done.
    """
    tracker, tracklets = Tracker(), _Tracklets(writer, name, camera)
    for frame in video.read(options.every):
        found = detector.detect(frame.image)
        tall = found.boxes[:, 3] - found.boxes[:, 1] >= options.min_height
        boxes = found.boxes[tall]
        for number, box in zip(tracker.update(boxes, frame.seconds), boxes, strict=True):
            if number != NO_TRACK:
                time = options.start + frame.seconds
                tracklets.add(number, frame.number, time, frame.image, box)
        tracklets.end(tracker.alive)
        tracklets.counts.frames += 1
        progress(frame.number + 1)
    tracklets.end(set())
    return tracklets.counts


def crop_picture(
    image: Image,
    path: str,
    camera: int | None,
    detector: Detector,
    options: CropOptions,
    writer: CropWriter,
) -> int:
    """Write the crops of a picture, uint8 [H, W, 3] RGB, as `PATH-NUMBER.jpg`; return how many."""
    boxes = detector.detect(image).boxes
    boxes = boxes[boxes[:, 3] - boxes[:, 1] >= options.min_height]
    for number, box in enumerate(boxes, 1):
        name = f"{path}-{number}.jpg"
        writer.write_crop(name, image, box)
        writer.write_row(name, camera, None)
    return len(boxes)
