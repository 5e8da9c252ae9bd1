"""A person detector from the user's own ONNX file, run by onnxruntime.

Three kinds of outputs are understood; the file is asked by names and shapes, nothing is guessed:

- `boxes` [N, 4], `labels` [N], `scores` [N], with or without a leading 1: torchvision's detectors
  (a person is 1), and RT-DETR's and D-FINE's, which have the further input `orig_target_sizes` (a
  person is 0). Boxes are left, top, right, bottom in pixels of the input.
- one output [1, K, 6] (K at most 1,000): left, top, right, bottom, score, class, as of YOLO files
  that suppress overlaps themselves.
- one output [1, 4 + classes, K]: centre, width and height, then a score for each class, as of
  YOLOv8 and later.

The input is one picture, [1, 3, H, W] or [3, H, W], RGB in [0, 1]. Of a fixed size: the picture is
shrunk to fit, its rest is grey.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dpmpp_core.data.images import Image
from dpmpp_core.detection.boxes import Detections, clip
from dpmpp_core.errors import ConfigError, WeightsError

FREE_SIDE = 640  # pixels of the longer side where the file leaves the size open
GREY = 114  # of the part of the input that no picture covers, as YOLO is trained
MAX_FINAL = 1000  # rows of an output [1, K, 6]; more are taken for candidates
MAX_SHARED = 0.5  # overlap of two candidates from which the weaker one is left out
NAMED = ("boxes", "labels", "scores")
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
UNDERSTOOD = (
    "understood are boxes, labels and scores (torchvision, RT-DETR), one [1, K, 6] or one "
    "[1, 4 + classes, K] (YOLOv8 and later)"
)


class OnnxDetector:
    """A detector from a file.

    Args:
        path: The file.
        confidence: Score from which a box counts, in [0, 1].
        threads: Threads of onnxruntime; 0 = as many as there are cores.

    Raises:
        ConfigError: The extra is not installed.
        WeightsError: The file is missing, damaged, or has other inputs or outputs.
    """

    def __init__(self, path: Path, confidence: float, threads: int = 0) -> None:
        if not path.is_file():
            raise WeightsError(f"{path}: no such file; --detector names motion or an ONNX file")
        self._session = _open_session(path, threads)
        self._confidence = confidence
        first, *others = self._session.get_inputs()
        self._input, shape, kind = first.name, first.shape, FLOATS.get(first.type)
        if kind is None or len(shape) not in (3, 4) or shape[-3] != 3:
            raise WeightsError(
                f"{path}: its input is {first.type} {shape}; RGB of floats [1, 3, H, W] is needed"
            )
        if [x.name for x in others] not in ([], ["orig_target_sizes"]):
            raise WeightsError(f"{path}: it has the inputs {[x.name for x in (first, *others)]}")
        self._float, self._batched, self._sized = kind, len(shape) == 4, bool(others)
        sides = shape[-2:]
        self._size = tuple(sides) if all(isinstance(side, int) for side in sides) else None
        self._names = [output.name for output in self._session.get_outputs()]
        self._form = _recognise(path, self._session.get_outputs())
        facts = self._session.get_modelmeta().custom_metadata_map
        named = self._form == "named"
        self._person = _person_class(facts, 1 if named and not self._sized else 0)

    def detect(self, image: Image) -> Detections:
        """Return the persons of a picture; see `Detector`.

        Raises:
            WeightsError: The file does not run, or returns other shapes than it states.
        """
        height, width = image.shape[:2]
        pixels, scale = self._fit(image)
        feed: dict[str, Any] = {self._input: pixels[None] if self._batched else pixels}
        if self._sized:
            feed["orig_target_sizes"] = np.array([[pixels.shape[2], pixels.shape[1]]], np.int64)
        try:
            outputs = dict(zip(self._names, self._session.run(None, feed), strict=True))
            boxes, scores = self._persons(outputs)
        except Exception as error:  # onnxruntime has many; a shape that differs from the stated one
            problem = " ".join(str(error).split())
            raise WeightsError(f"the detector does not run: {problem[:200]}") from None
        good = (scores >= self._confidence) & np.isfinite(boxes).all(1)
        boxes, scores = clip(boxes[good] / np.float32(scale), height, width), scores[good]
        kept = _suppress(boxes, scores, self._confidence)
        return Detections(boxes[kept], scores[kept])

    def _fit(self, image: Image) -> tuple[NDArray[Any], float]:
        """Return the input [3, H, W] and how much smaller the picture is in it."""
        height, width = image.shape[:2]
        if self._size is not None:
            tall, wide = self._size
            scale = min(tall / height, wide / width)
        else:
            scale = FREE_SIDE / max(height, width)
            # A multiple of 32, the coarsest grid of these detectors.
            tall, wide = (-(-round(side * scale) // 32) * 32 for side in (height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        canvas = np.full((tall, wide, 3), GREY, np.uint8)
        canvas[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        return np.ascontiguousarray(canvas.transpose(2, 0, 1), self._float) / 255, scale

    def _persons(self, outputs: dict[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return boxes float32 [K, 4] in pixels of the input, and scores float32 [K]."""
        if self._form == "named":
            boxes = outputs["boxes"].reshape(-1, 4).astype(np.float32)
            labels, scores = (outputs[name].reshape(-1) for name in ("labels", "scores"))
            persons = labels == self._person
            return boxes[persons], scores[persons].astype(np.float32)
        (rows,) = outputs.values()
        rows = rows[0].astype(np.float32)
        if self._form == "final":
            rows = rows[np.round(rows[:, 5]) == self._person]
            return rows[:, :4], rows[:, 4]
        centre, half = rows[:2].T, rows[2:4].T / 2
        return np.concatenate([centre - half, centre + half], 1), rows[4 + self._person]


def _open_session(path: Path, threads: int) -> Any:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        raise ConfigError(
            "a detector from a file needs onnxruntime: pip install 'dpmpp[onnx]'"
        ) from None
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    preferred = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in preferred if name in runtime.get_available_providers()]
    try:
        return runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime has many exception types for unreadable files
        problem = " ".join(str(error).split())
        raise WeightsError(f"{path} does not load as an ONNX model: {problem[:200]}") from None


def _recognise(path: Path, outputs: Any) -> str:
    """Return which kind of outputs a file has: named, final or candidates; else WeightsError."""
    names, shapes = [x.name for x in outputs], [x.shape for x in outputs]
    if sorted(names) == sorted(NAMED):
        return "named"
    if len(shapes) == 1 and len(shapes[0]) == 3:
        _, rows, columns = shapes[0]
        if columns == 6 and (not isinstance(rows, int) or rows <= MAX_FINAL):
            return "final"
        few = isinstance(rows, int) and rows >= 5
        if few and (not isinstance(columns, int) or columns > rows):
            return "candidates"
    stated = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
    raise WeightsError(f"{path}: its outputs are {stated}; {UNDERSTOOD}")


def _person_class(facts: dict[str, str], default: int) -> int:
    """Return the number of the class `person`, from the file's `names` if it has them."""
    try:
        names = ast.literal_eval(facts.get("names", ""))
        return next(int(n) for n, name in dict(names).items() if name in ("person", "pedestrian"))
    except (ValueError, SyntaxError, TypeError, StopIteration):
        return default


def _suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], confidence: float
) -> NDArray[np.int64]:
    """Return the places of boxes that no better one overlaps by MAX_SHARED, the best first."""
    if not len(boxes):
        return np.zeros(0, np.int64)
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    kept = cv2.dnn.NMSBoxes(corners.tolist(), scores.tolist(), confidence, MAX_SHARED)
    return np.array(kept, np.int64).reshape(-1)
