"""Frames of a video file, one at a time: memory does not grow with its length."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dpmpp_core.data.headers import MAX_PIXELS
from dpmpp_core.data.images import Image
from dpmpp_core.errors import DataError

VIDEO_NAME = re.compile(
    r"\.(mp4|m4v|mov|avi|mkv|webm|mpe?g|ts|m2ts|mts|wmv|flv|3gp|ogv)$", re.IGNORECASE
)
WHOLE_SHARE = 0.95  # of the frames that the header counts; headers of some cameras estimate
# Our own errors name the file; and a playlist must not make the decoder open other files or hosts.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")


class Frame(NamedTuple):
    """One frame: its number from 0 on, seconds from the start of the video, the picture.

    The picture is uint8 [H, W, 3] RGB, upright.
    """

    number: int
    seconds: float
    image: Image


class Video:
    """A video file.

    Attributes:
        frames: number of frames by the header; 0 = not stated.
        problem: after `read`: why less was read than the header promises; empty if all was.

    Raises:
        DataError: the file is no video that can be read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.problem = path, ""
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not path.is_file() or not self._capture.isOpened():
            raise DataError(f"{path} is no video that can be read, or its index is missing")
        width, height, count, rate = (
            self._capture.get(key)
            for key in (
                cv2.CAP_PROP_FRAME_WIDTH,
                cv2.CAP_PROP_FRAME_HEIGHT,
                cv2.CAP_PROP_FRAME_COUNT,
                cv2.CAP_PROP_FPS,
            )
        )
        if width * height > MAX_PIXELS:
            raise DataError(
                f"{path}: frames of {width:.0f}x{height:.0f} pixels are more than the "
                f"{MAX_PIXELS:,} allowed"
            )
        self.frames = max(0, int(count))
        self._rate = rate if rate > 0 else 25.0

    def read(self, every: float) -> Iterator[Frame]:
        """Yield the first frame, and then one every `every` seconds; 0 = each frame."""
        number, due, last = -1, 0.0, -1.0
        while self._capture.grab():
            number += 1
            seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if seconds <= last:  # a container without times
                seconds = last + 1 / self._rate if last >= 0 else 0.0
            last = seconds
            if seconds + 0.5 / self._rate < due:
                continue
            whole, picture = self._capture.retrieve()
            if whole:
                due = seconds + every
                image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
                yield Frame(number, seconds, image)
        if number + 1 < WHOLE_SHARE * self.frames:
            self.problem = f"breaks off after {number + 1:,} of {self.frames:,} frames"
        elif number < 0:
            self.problem = "holds no frame that can be decoded"

    def close(self) -> None:
        """Release the file."""
        self._capture.release()
