"""How well motion finds drawn walkers, how pure the tracklets are, and how fast it goes.

    python -m tests.bench.video

Writes `results/video.md`.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path

import cv2
import numpy as np

from dpmpp_core.detection import MotionDetector, Tracker, Video, overlap
from dpmpp_core.detection.cropping import MIN_PICTURES
from dpmpp_core.detection.tracking import NO_TRACK
from tests.bench.timing import RESULTS
from tests.support.video import Truth, draw_video, plan_walk

PERSONS = range(100, 108)
SEEDS = (0, 1)
EVERY = (0.2, 0.4)
HEAD = (
    "| persons | seconds between looks | recall | precision | IoU | tracklets | persons in them "
    "| with two persons | frames/s |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
)


def measure(path: Path, truth: Truth, every: float) -> tuple[float, ...]:
    """Recall, precision, mean IoU, tracklets, persons with one, mixed ones, frames a second."""
    video, detector, tracker = Video(path), MotionDetector(64), Tracker()
    shown: dict[int, list[int]] = defaultdict(list)
    true = found = right = 0
    ious: list[float] = []
    looks, busy = 0, 0.0
    for frame in video.read(every):
        start = time.process_time()
        boxes = detector.detect(frame.image).boxes
        numbers = tracker.update(boxes, frame.seconds)
        busy += time.process_time() - start
        looks += 1
        real = truth.boxes[frame.number]
        shared = overlap(boxes, np.array(list(real.values()), np.float32).reshape(-1, 4))
        true, found = true + len(real), found + len(boxes)
        if len(real) and len(boxes):
            right += int((shared.max(1) >= 0.5).sum())
            ious += [float(best) for best in shared.max(0) if best >= 0.5]
        for number, row in zip(numbers, shared, strict=True):
            if number != NO_TRACK and len(row) and row.max() >= 0.5:
                shown[number].append(list(real)[row.argmax()])
    video.close()
    tracklets = [Counter(pids) for pids in shown.values() if len(pids) >= MIN_PICTURES]
    return (
        len(ious) / true, right / found, float(np.mean(ious)), len(tracklets),
        len({counts.most_common(1)[0][0] for counts in tracklets}),
        sum(len(counts) > 1 for counts in tracklets), looks / busy,
    )  # fmt: skip


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for apart, words in ((5.6, "alone"), (2.6, "meeting in pairs")):
            for every in EVERY:
                runs = []
                for seed in SEEDS:
                    path = Path(folder) / f"{apart}-{seed}.mp4"
                    walk = plan_walk(1, PERSONS, seed, apart)
                    truth = draw_video(path, 1, walk, seed=seed)
                    runs.append(measure(path, truth, every))
                r, p, iou, count, persons, mixed, speed = np.mean(runs, axis=0)
                rows.append(
                    f"| {words} | {every} | {r:.2f} | {p:.2f} | {iou:.2f} | {count:.1f} | "
                    f"{persons:.1f} of {len(PERSONS)} | {mixed:.1f} | {speed:.0f} |\n"
                )
    (RESULTS / "video.md").write_text(
        f"# Persons by motion in drawn videos\n\n`python -m tests.bench.video`; {date.today()}. "
        f"Python {platform.python_version()}, OpenCV {cv2.__version__}; {os.cpu_count()}-core "
        f"{platform.machine()} CPU, processor time. Frames of 640x320, mean of {len(SEEDS)} "
        "videos. A box is right from IoU 0.5 on. A person is found if a box is right for them: one "
        "box may find two who stand close together. Drawn videos have neither shadows nor leaves: "
        "real ones are harder.\n\n" + HEAD + "".join(rows)
    )


if __name__ == "__main__":
    main()
