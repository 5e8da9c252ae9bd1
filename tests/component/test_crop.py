"""From drawn videos to tracklets, from these to an index, and the same person by another camera."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dpmpp_core.data.sightings import read_labels
from dpmpp_core.detection import MotionDetector, Tracker, Video, overlap
from dpmpp_core.detection.tracking import NO_TRACK
from pipelines.gallery.index import ImageSource, build_index
from pipelines.gallery.search import SearchRequest, run_search
from tests.support.cli import assert_mistake, invoke_dpmpp
from tests.support.models import saved_model
from tests.support.video import Truth, draw_video, plan_walk

PIDS = range(100, 104)
APART = 5.6  # seconds between two persons, who so are alone in view


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Truth]]:
    """Two cameras, past which the same persons walk, in other orders and directions."""
    folder = tmp_path_factory.mktemp("videos")
    names = {1: "entrance.mp4", 2: "yard.avi"}
    truth = {
        name: draw_video(folder / name, camid, plan_walk(camid, PIDS, apart=APART))
        for camid, name in names.items()
    }
    return folder, truth


@pytest.fixture(scope="module")
def crops(videos: tuple[Path, dict[str, Truth]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crops") / "out"
    done = invoke_dpmpp(
        "crop", "--from", str(videos[0]), "--out", str(out), "--start", "2026-11-27T14:05"
    )
    assert done.returncode == 0, done.stderr
    assert "entrance.mp4" in done.stdout and "dpmpp index build" in done.stdout
    return out


def persons(name: str, truth: Truth, out: Path) -> dict[str, Counter[int]]:
    """Of each tracklet of a video: how often it shows whom, by the true boxes of its frames."""
    shown = {}
    for folder in sorted((out / name).iterdir()):
        frames = [int(file.stem) for file in folder.iterdir()]
        shown[f"{name}/{folder.name}"] = Counter(
            pid for frame in frames for pid in truth.boxes[frame]
        )
    return shown


def test_each_walking_person_gives_a_tracklet_over_the_true_boxes(
    videos: tuple[Path, dict[str, Truth]],
) -> None:
    folder, truths = videos
    for name, truth in truths.items():
        video, detector, tracker = Video(folder / name), MotionDetector(64), Tracker()
        seen: dict[int, Counter[int]] = {}
        wrong = 0
        for frame in video.read(0):
            found = detector.detect(frame.image).boxes
            numbers = tracker.update(found, frame.seconds)
            boxes = truth.boxes[frame.number]
            true = np.array(list(boxes.values()), np.float32).reshape(-1, 4)
            for number, row in zip(numbers, overlap(found, true), strict=True):
                if number == NO_TRACK or not len(row) or row.max() < 0.5:
                    wrong += 1
                    continue
                seen.setdefault(number, Counter())[list(boxes)[row.argmax()]] += 1
        video.close()
        right = sum(max(counts.values()) for counts in seen.values())
        assert video.problem == "" and video.frames == truth.frames
        assert {counts.most_common(1)[0][0] for counts in seen.values()} == set(PIDS), (name, seen)
        assert right >= 0.5 * sum(map(len, truth.boxes.values()))
        assert wrong <= 0.2 * right


def test_the_table_has_camera_and_time_of_each_picture(
    crops: Path, videos: tuple[Path, dict[str, Truth]]
) -> None:
    labels = read_labels((crops / "labels.csv").read_bytes(), "labels.csv")
    files = {file.relative_to(crops).as_posix() for file in crops.rglob("*.jpg")}
    assert files == set(labels)
    for path, label in labels.items():
        name, _, frame = path.split("/")
        assert label.camid == list(videos[1]).index(name) + 1
        second = int(int(frame.removesuffix(".jpg")) / videos[1][name].fps)
        assert label.time is not None and abs(label.time - 1795788300 - second) <= 1
        height, width = cv2.imread(str(crops / path)).shape[:2]
        assert height >= 64 and height > width
    for name, truth in videos[1].items():
        shown = persons(name, truth, crops)
        assert {counts.most_common(1)[0][0] for counts in shown.values()} == set(PIDS), shown
        assert all(len(counts) == 1 for counts in shown.values())


def test_a_tracklet_finds_its_person_by_the_other_camera(
    cluster: None, crops: Path, videos: tuple[Path, dict[str, Truth]], tmp_path: Path
) -> None:
    index = tmp_path / "index"
    model = saved_model(tmp_path / "model")
    source = ImageSource(str(crops), labels=str(crops / "labels.csv"))
    made = build_index(str(index), str(model), "float32", source)
    assert made["quarantined"] == [] and made["cameras"] == [1, 2] and made["hint"] == ""
    whom = {}
    for name, truth in videos[1].items():
        for path, counts in persons(name, truth, crops).items():
            whom[path] = counts.most_common(1)[0][0]
    from dpmpp_core.index import RowFilter

    first = []
    for path, pid in whom.items():
        other = 2 if path.startswith("entrance") else 1
        request = SearchRequest(
            index=str(index), query=str(crops / path), top=1, where=RowFilter(cameras=[other]),
            tracklet=True,
        )  # fmt: skip
        (query,) = run_search(request)["queries"]
        (hit,) = query["hits"]
        first.append(whom["/".join(Path(hit["image"]).parts[-3:-1])] == pid)
    assert np.mean(first) >= 2 / len(PIDS)  # twice what chance would find


def test_scenes_in_a_folder_need_a_detector_and_give_crops(
    videos: tuple[Path, dict[str, Truth]], tmp_path: Path
) -> None:
    data = tmp_path / "scenes"
    (data / "gate").mkdir(parents=True)
    (data / "broken.jpg").write_bytes(b"no picture")
    (data / "photo.raw").write_bytes(b"a picture of a camera")
    video = Video(videos[0] / "entrance.mp4")
    frame = next(video.read(0))
    video.close()
    cv2.imwrite(str(data / "gate" / "scene.png"), frame.image[..., ::-1])
    rows = np.array([[[10, 10, 60, 160, 0.9, 0]]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["o"], value=numpy_helper.from_array(rows))],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 320, 320))],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, rows.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "d.onnx")
    refused = invoke_dpmpp("crop", "--from", str(data), "--out", str(tmp_path / "out"))
    assert_mistake(refused, "pictures need --detector FILE.onnx")
    done = invoke_dpmpp(
        "crop", "--from", str(data), "--out", str(tmp_path / "out"),
        "--detector", str(tmp_path / "d.onnx"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 left out: 1 not_an_image, 1 not_an_image_name" in done.stdout
    with open(tmp_path / "out" / "labels.csv", encoding="utf-8") as table:
        (row,) = csv.DictReader(table)
    assert row == {"path": "gate/scene.png-1.jpg", "camera": "1", "time": ""}
    assert cv2.imread(str(tmp_path / "out" / row["path"])).shape[:2] == (
        312,
        124,
    )  # at half the size, cut at the lower edge


def test_videos_that_break_off_are_named_and_the_rest_is_kept(
    videos: tuple[Path, dict[str, Truth]], tmp_path: Path
) -> None:
    data = tmp_path / "videos"
    data.mkdir()
    whole = (videos[0] / "yard.avi").read_bytes()
    (data / "cut.avi").write_bytes(whole[: len(whole) // 2])
    (data / "text.mp4").write_text("no video " * 200)
    out = tmp_path / "out"
    done = invoke_dpmpp("crop", "--from", str(data), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "cut.avi: breaks_off (the video breaks off after" in done.stdout
    assert "text.mp4: not_a_video" in done.stdout
    assert sorted(x.name for x in out.iterdir()) == ["cut.avi", "labels.csv"]


def test_mistakes_end_with_one_sentence_and_write_nothing(
    videos: tuple[Path, dict[str, Truth]], tmp_path: Path
) -> None:
    text, empty, full = tmp_path / "a.mp4", tmp_path / "empty", tmp_path / "full"
    text.write_text("no video")
    empty.mkdir()
    full.mkdir()
    (full / "kept").write_text("")
    video = str(videos[0] / "yard.avi")
    cases = [
        (["--from", str(text)], "is no video that can be read"),
        (["--from", str(empty)], "holds no video and no picture"),
        (["--from", str(tmp_path / "none")], "none cannot be read"),
        (["--from", "s3://bucket/videos"], "of this machine is needed"),
        (["--from", video, "--every", "-1"], "seconds from 0 on"),
        (["--from", video, "--min-height", "0"], "at least 8 pixels"),
        (["--from", video, "--confidence", "1.5"], "above 0 and below 1"),
        (["--from", video, "--detector", "yolo"], "no such file; --detector names motion"),
        (["--from", video, "--start", "today"], "is no time"),
        (["--from", video, "--min-height", "900"], "no person of 900 pixels or more"),
    ]
    for arguments, says in cases:
        done = invoke_dpmpp("crop", *arguments, "--out", str(tmp_path / "out"))
        assert_mistake(done, says, lines=2 if "900" in arguments else 1)  # a bar before it
    assert_mistake(invoke_dpmpp("crop", "--from", video, "--out", str(full)), "is not empty")
    left = sorted(x.name for x in tmp_path.iterdir())
    assert left == ["a.mp4", "empty", "full"]
