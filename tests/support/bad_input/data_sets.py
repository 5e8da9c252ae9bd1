"""Whole data sets that are lopsided or lack something: used with a warning, or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dpmpp_core.data.manifest import read_manifest
from dpmpp_core.data.plan import StepPlan, class_labels
from tests.support.bad_input.row import Outcome, Row, good_market, look, picture, refusal

TRAIN = "bounding_box_train"


def planned(root: Path, identities: int = 2) -> str:
    """What an epoch of steps draws from the training images."""
    rows = read_manifest(str(root)).subset("train")
    labels, classes = class_labels(rows["pid"].to_numpy())
    plan = StepPlan(labels, rows["camid"].to_numpy(), identities, images=4, seed=0)
    steps = [plan.rows(0, step) for step in range(plan.steps_per_epoch)]
    pids = Counter(classes[labels[np.concatenate(steps)]].tolist())
    drawn = ", ".join(f"person {pid} {count}" for pid, count in sorted(pids.items()))
    return f"used; images drawn in an epoch of {len(steps)} steps: {drawn}"


def trained(given: str, names: list[str], says: str) -> Row:
    """The training folder holds the images `names`."""

    def attempt(folder: Path) -> Outcome:
        root = good_market(folder / "data")
        for old in (root / TRAIN).iterdir():
            old.unlink()
        for seed, name in enumerate(names):
            (root / TRAIN / name).write_bytes(picture("PNG", (8, 16), seed=100 + seed))
        said = refusal(planned, root)
        return Outcome(said.removeprefix("accepted: "), f"{len(list(root.rglob('*.*g')))} files")

    return Row(given, attempt, says, f"{4 + len(names)} files")


def changed(given: str, change: Callable[[Path], object], says: str, keeps: str) -> Row:
    def attempt(folder: Path) -> Outcome:
        root = good_market(folder / "data")
        change(root)
        try:
            return look(root)
        finally:
            assert root.is_dir()

    def refused(folder: Path) -> Outcome:
        root = good_market(folder / "data")
        change(root)
        said = refusal(read_manifest, str(root))
        return Outcome(said, f"{sum(p.is_file() for p in root.rglob('*'))} files")

    return Row(given, attempt if "good images" in keeps else refused, says, keeps)


def renamed(root: Path, folder: str, old: str, new: str) -> None:
    for path in list((root / folder).iterdir()):
        path.rename(path.with_name(path.name.replace(old, new)))


def emptied(root: Path, *folders: str) -> None:
    for folder in folders:
        for path in (root / folder).iterdir():
            path.unlink()


def without_training(folder: Path) -> Outcome:
    root = good_market(folder / "data")
    emptied(root, TRAIN)
    return look(root)


def bare(folder: Path) -> Outcome:
    (folder / "data").mkdir()
    return Outcome(refusal(read_manifest, str(folder / "data")), "")


ROWS = [
    trained(
        "person with one image",
        ["0001_c1.png", *(f"0002_c{camera}.png" for camera in (1, 2, 3, 4, 5, 6, 7))],
        "used; .*person 1 4, person 2 4",
    ),
    trained(
        "one person with 300 images, two with 4",
        [
            *(f"0001_c{i % 6}_{i}.png" for i in range(300)),
            *(f"{pid:04}_c{i}.png" for pid in (2, 3) for i in range(4)),
        ],
        "used; .*38 steps: person 1 100, person 2 10[04], person 3 10[04]",
    ),
    trained(
        "all training images from one camera",
        [f"{pid:04}_c1_{i}.png" for pid in (1, 2) for i in range(4)],
        "used; .*person 1 4, person 2 4",
    ),
    trained("one person alone", ["0001_c1.png", "0001_c2.png"], "DataError.*1 identities.*needs 2"),
    trained("no person twice", ["0001_c1.png", "0002_c1.png"], "DataError.*has 2 images"),
    changed(
        "queries and gallery from one camera",
        lambda root: renamed(root, "bounding_box_test", "_c2", "_c1"),
        "DataError.*own camera only",
        "8 files",
    ),
    changed(
        "one query person without gallery image",
        lambda root: renamed(root, "query", "0003", "0009"),
        "1 query persons have no gallery image and are skipped",
        "7 of 8 good images; nothing changed",
    ),
    changed(
        "no query person in the gallery",
        lambda root: renamed(root, "query", "000", "010"),
        r"DataError.*none of the 2 query persons has a gallery image \(persons 103, 104\)",
        "8 files",
    ),
    changed("empty query folder", lambda r: emptied(r, "query"), "no query image", "6 files"),
    changed(
        "empty gallery", lambda r: emptied(r, "bounding_box_test"), "no gallery image", "6 files"
    ),
    Row(
        "empty training folder, enough to measure on",
        without_training,
        "bounding_box_train: empty_folder",
        "4 of 8 good images; nothing changed",
    ),
    Row("empty folder", bare, "DataError: .*It holds nothing", ""),
]
