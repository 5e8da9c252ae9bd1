"""Tracklets: each person alone, also where boxes leave each other, are missing or merge."""

from __future__ import annotations

import numpy as np

from dpmpp_core.detection import Tracker
from dpmpp_core.detection.boxes import overlap, share_inside
from dpmpp_core.detection.tracking import MAX_GAP_S, NO_TRACK


def box(x: float, wide: float = 40) -> list[float]:
    return [x, 10, x + wide, 110]


def boxes(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def test_overlap_and_share_are_those_of_the_areas() -> None:
    first, second = boxes([0, 0, 4, 2]), boxes([2, 0, 6, 2], [0, 0, 4, 4], [9, 9, 10, 10])
    np.testing.assert_allclose(overlap(first, second), [[4 / 12, 8 / 16, 0]], rtol=1e-6)
    np.testing.assert_allclose(share_inside(first, second), [[0.5, 1, 0]], rtol=1e-6)


def test_a_walker_who_leaves_the_own_box_at_each_step_is_one_tracklet() -> None:
    tracker = Tracker()
    numbers = [tracker.update(boxes(box(45 * step)), 0.2 * step) for step in range(8)]
    assert numbers == [[1]] * 8


def test_a_gap_is_bridged_by_the_speed_up_to_its_limit() -> None:
    tracker = Tracker()
    for step in range(3):
        tracker.update(boxes(box(30 * step)), 0.2 * step)
    assert tracker.update(boxes(), 0.6) == []
    assert tracker.update(boxes(box(120)), 0.8) == [1]
    assert tracker.alive == {1}
    assert tracker.update(boxes(box(120)), 0.8 + MAX_GAP_S + 0.1) == [2]


def test_two_who_pass_each_other_keep_their_numbers() -> None:
    tracker = Tracker()
    for step in range(12):
        pair = [box(20 * step), box(220 - 20 * step)]
        numbers = tracker.update(boxes(*pair), 0.2 * step)
        assert numbers == [1, 2], step


def test_where_two_become_one_box_both_tracklets_end() -> None:
    tracker = Tracker()
    for step in range(4):
        assert tracker.update(boxes(box(20 * step), box(160 - 20 * step)), 0.2 * step) == [1, 2]
    assert tracker.update(boxes(box(75, wide=50)), 0.8) == [NO_TRACK]
    assert tracker.update(boxes(box(78, wide=44)), 1.0) == [NO_TRACK]
    apart = tracker.update(boxes(box(55), box(105)), 1.2)
    assert len(set(apart)) == 2 and not {1, 2} & set(apart)


def test_numbers_depend_on_the_boxes_alone() -> None:
    rng = np.random.default_rng(3)
    frames = [boxes(*(box(float(x)) for x in rng.uniform(0, 600, 5))) for _ in range(20)]
    runs = []
    for _ in range(2):
        tracker = Tracker()
        runs.append([tracker.update(frame, 0.2 * i) for i, frame in enumerate(frames)])
    assert runs[0] == runs[1]
