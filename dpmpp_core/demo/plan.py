"""The pictures of a demo set: identity, camera and folder of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dpmpp_core.config import DemoConfig
from dpmpp_core.demo.identity import PLAN_STREAM, stream
from dpmpp_core.demo.occluders import TEST_KINDS, TRAINING_KINDS
from dpmpp_core.demo.pose import ORIENTATIONS

FOLDERS = ("bounding_box_train", "bounding_box_test", "query", "query_holistic")
TRAIN, GALLERY, QUERY, HOLISTIC = FOLDERS
QUERY_HIDDEN = (0.10, 0.60)
# Of an `unseen` set: each fifth of the range is wanted equally often, and independently each of the
# parts; a side is left or right, so it comes twice.
QUERY_BANDS = tuple((0.1 * n, 0.1 * (n + 1)) for n in range(1, 6))
QUERY_PARTS = ("top", "side", "bottom", "middle", "side")


@dataclass(frozen=True)
class Shot:
    """One picture to be drawn."""

    folder: str
    pid: int
    camid: int  # from 1
    number: int  # of the picture among all of its identity
    name: str
    orientation: int  # eighths of a turn
    hidden: tuple[float, float] | None  # wanted range of the hidden share; None = unoccluded
    kinds: tuple[str, ...] = ()  # of occluders to choose from; none = all


def plan_shots(config: DemoConfig) -> list[Shot]:
    """Plan all pictures; identities 1..train are for training, the following ones for testing."""
    train, test = config.train_identities, config.test_identities
    shots: list[Shot] = []
    for pid in range(1, train + test + 1):
        rng = stream(config.seed, pid, PLAN_STREAM)
        if config.unseen:
            shots += _unseen(pid, config, rng)
            continue
        places = _train_places if pid <= train else _test_places
        shots += _name(pid, list(places(config, rng)), rng)
    return shots


def _unseen(pid: int, config: DemoConfig, rng: np.random.Generator) -> list[Shot]:
    """Plan one identity of a set whose test has other cameras and occluders than its training.

    The first half of the cameras is for training. The others are redistributed for every test
    identity, half for its gallery and half for its queries.
    """
    half = config.cameras // 2
    if pid <= config.train_identities:
        own = config.model_copy(update={"cameras": half})
        kinds = tuple(kind for part in TRAINING_KINDS.values() for kind in part)
        shots = _name(pid, list(_train_places(own, rng)), rng)
        return [replace(shot, kinds=kinds) if shot.hidden else shot for shot in shots]
    cameras = [half + 1 + int(c) for c in rng.permutation(config.cameras - half)]
    gallery, query = cameras[: len(cameras) // 2], cameras[len(cameras) // 2 :]
    images, queries = config.gallery_images, config.query_images
    places: list[Place] = [(GALLERY, gallery[i % len(gallery)], None) for i in range(images)]
    wanted = [QUERY_BANDS[(pid * queries + i) % len(QUERY_BANDS)] for i in range(queries)]
    places += [(QUERY, query[i % len(query)], band) for i, band in enumerate(wanted)]
    shots = _name(pid, places, rng)
    turn = pid // len(QUERY_BANDS)  # every part meets every band
    parts = [QUERY_PARTS[(turn + i) % len(QUERY_PARTS)] for i in range(queries)]
    hidden = [
        replace(shot, kinds=TEST_KINDS[part])
        for shot, part in zip(shots[images:], parts, strict=True)
    ]
    twins = [replace(shot, folder=HOLISTIC, hidden=None) for shot in shots[images:]]
    return shots[:images] + hidden + twins


Place = tuple[str, int, tuple[float, float] | None]  # folder, camid, hidden


def _train_places(config: DemoConfig, rng: np.random.Generator) -> Iterator[Place]:
    cameras = rng.permutation(config.cameras) + 1
    for image in range(config.train_images):
        occluded = rng.random() < config.occluded_share
        camid = int(cameras[image % config.cameras])
        yield TRAIN, camid, config.occlusion_range if occluded else None


def _test_places(config: DemoConfig, rng: np.random.Generator) -> Iterator[Place]:
    """Plan a gallery of many cameras; every query has a gallery picture from another camera."""
    cameras = [int(c) for c in rng.permutation(config.cameras) + 1]
    gallery = cameras[: config.gallery_images]
    for image in range(config.gallery_images):
        yield GALLERY, cameras[image % config.cameras], None
    # With one gallery camera no query may come from it.
    allowed = cameras if len(gallery) > 1 else cameras[1:]
    order = rng.permutation(len(allowed))
    for image in range(config.query_images):
        camid = allowed[int(order[image % len(allowed)])]
        yield QUERY, camid, QUERY_HIDDEN
        yield HOLISTIC, camid, None


def _name(pid: int, places: list[Place], rng: np.random.Generator) -> list[Shot]:
    turns = np.concatenate(
        [rng.permutation(ORIENTATIONS) for _ in range(len(places) // ORIENTATIONS + 1)]
    )
    taken: Counter[int] = Counter()
    frame = int(rng.integers(1, 900)) * 100
    shots = []
    for number, (folder, camid, hidden) in enumerate(places):
        taken[camid] += 1
        frame += int(rng.integers(3, 90))
        sequence = int(rng.integers(1, 7))
        name = f"{pid:04d}_c{camid}s{sequence}_{frame:06d}_{taken[camid]:02d}.jpg"
        shots.append(Shot(folder, pid, camid, number, name, int(turns[number]), hidden))
    return shots
