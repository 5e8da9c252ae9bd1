"""Detectors from files: which outputs are understood, where their boxes land, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dpmpp_core.detection import OnnxDetector
from dpmpp_core.errors import WeightsError

IMAGE = np.full((200, 400, 3), 255, np.uint8)  # fits into 320 x 320 at a scale of 0.8
# Two persons in pixels of the input, the first one twice; something else; a weak one.
PERSONS = [[8, 16, 48, 144], [80, 16, 120, 144]]
ROWS = [[*PERSONS[0], 0.9], [10, 16, 50, 144, 0.8], [*PERSONS[1], 0.7], [200, 0, 240, 99, 0.2]]
OTHER = [150, 16, 190, 144, 0.95]


def save(
    path: Path,
    outputs: dict[str, np.ndarray],
    shape: tuple = (1, 3, 320, 320),
    kind: int = TensorProto.FLOAT,
    sized: bool = False,
    names: str = "",
) -> Path:
    """A file whose outputs do not depend on its input."""
    inputs = [helper.make_tensor_value_info("images", kind, shape)]
    if sized:
        inputs.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, (1, 2)))
    nodes, stated = [], []
    for name, values in outputs.items():
        nodes.append(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values))
        )
        code = helper.np_dtype_to_tensor_dtype(values.dtype)
        stated.append(helper.make_tensor_value_info(name, code, values.shape))
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, stated), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 10
    if names:
        model.metadata_props.append(onnx.StringStringEntryProto(key="names", value=names))
    onnx.save(model, path)
    return path


def named(person: int) -> dict[str, np.ndarray]:
    rows = np.array([*ROWS, OTHER], np.float32)
    labels = np.array([person] * len(ROWS) + [person + 1], np.int64)
    return {"boxes": rows[:, :4], "labels": labels, "scores": rows[:, 4]}


def final(person: int = 0) -> dict[str, np.ndarray]:
    rows = [[*row, person] for row in ROWS] + [[*OTHER, person + 1]]
    return {"output0": np.array([rows], np.float32)}


def candidates(person: int = 0, classes: int = 3) -> dict[str, np.ndarray]:
    columns = np.zeros((1, 4 + classes, 50), np.float32)
    for place, (left, top, right, bottom, score) in enumerate([*ROWS, OTHER]):
        one = person if place < len(ROWS) else (person + 1) % classes
        columns[0, :4, place] = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        columns[0, 4 + one, place] = score
    return {"output0": columns}


@pytest.mark.parametrize(
    ("outputs", "options"),
    [
        (named(1), {}),
        (named(0), {"sized": True}),
        (final(), {}),
        (candidates(), {}),
        (candidates(2), {"names": "{0: 'car', 1: 'dog', 2: 'person'}"}),
        (candidates(), {"kind": TensorProto.FLOAT16}),
        (named(1), {"shape": (3, 320, 320)}),
    ],
    ids=["torchvision", "RT-DETR", "YOLO final", "YOLO", "YOLO names", "half", "no batch"],
)
def test_persons_are_found_where_they_are_in_the_picture(
    outputs: dict[str, np.ndarray], options: dict, tmp_path: Path
) -> None:
    detector = OnnxDetector(save(tmp_path / "d.onnx", outputs, **options), 0.5, threads=1)
    found = detector.detect(IMAGE)
    np.testing.assert_allclose(found.boxes, np.array(PERSONS) / 0.8, atol=1e-3)
    np.testing.assert_allclose(found.scores, [0.9, 0.7], atol=1e-6)


def test_a_free_size_is_a_multiple_of_the_grid_and_boxes_are_cut_at_the_edge(
    tmp_path: Path,
) -> None:
    outputs = {"output0": np.array([[[-20, 0, 700, 300, 0.9, 0]]], np.float32)}
    path = save(tmp_path / "d.onnx", outputs, shape=(1, 3, "h", "w"))
    detector = OnnxDetector(path, 0.5, threads=1)
    pixels, scale = detector._fit(IMAGE)
    assert pixels.shape == (3, 320, 640) and scale == 1.6 and pixels.max() == 1.0
    np.testing.assert_allclose(detector.detect(IMAGE).boxes, [[0, 0, 400, 187.5]])


@pytest.mark.parametrize(
    ("outputs", "options", "says"),
    [
        ({"output0": np.zeros((1, 2000, 85), np.float32)}, {}, "its outputs are output0 .*YOLOv8"),
        ({"a": np.zeros((1, 3, 6)), "b": np.zeros(3)}, {}, "understood are boxes, labels"),
        (final(), {"shape": (1, 1, 320, 320)}, "RGB of floats"),
        (final(), {"kind": TensorProto.UINT8}, "RGB of floats"),
        (candidates(classes=1), {"names": "{0: 'a', 7: 'person'}"}, "does not run"),
    ],
)
def test_other_files_are_refused(
    outputs: dict[str, np.ndarray], options: dict, says: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "d.onnx", outputs, **options)
    with pytest.raises(WeightsError, match=says):
        OnnxDetector(path, 0.5, threads=1).detect(IMAGE)


def test_no_file_and_no_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for name, says in (("no.onnx", "no such file"), ("text.onnx", "does not load")):
        with pytest.raises(WeightsError, match=says):
            OnnxDetector(tmp_path / name, 0.5)
