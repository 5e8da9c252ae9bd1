"""Tracklets: the boxes of one person in consecutive frames (ours).

A track moves on with its last speed; boxes join the track that they overlap most, the best pair
first. Overlap is that of boxes enlarged in each direction (Yang et al., WACV 2023), as somebody who
walks leaves the own box within a few looks a second. Where two persons become one box, both tracks
end: a tracklet may be short, but should show one person alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.detection.boxes import Boxes, overlap, share_inside

MIN_OVERLAP = 0.1  # of the enlarged boxes
ENLARGED = 0.3  # on each side, share of the box
MERGED_SHARE = 0.5  # of a box that lies in another one
MAX_GAP_S = 1.0  # seconds for which a track waits for its person, and a merged box for its parting
NEW_SPEED = 0.5  # weight of the last step in a track's speed
NO_TRACK = 0


@dataclass
class _Track:
    number: int  # NO_TRACK: of several persons
    box: NDArray[np.float32]  # [4], at `seconds`
    seconds: float
    start: float
    speed: NDArray[np.float32] = field(default_factory=lambda: np.zeros(4, np.float32))  # pixels/s

    def predict(self, seconds: float) -> NDArray[np.float32]:
        """Return the box at a later time: moved, of the same size."""
        return self.box + self.speed * np.float32(seconds - self.seconds)

    def add(self, box: NDArray[np.float32], seconds: float) -> None:
        """Add the next box."""
        gap = max(seconds - self.seconds, 1e-3)
        step = (box[:2] + box[2:] - self.box[:2] - self.box[2:]) / 2 / gap
        step = np.concatenate([step, step])
        if self.speed.any():
            step = (1 - NEW_SPEED) * self.speed + NEW_SPEED * step
        self.speed = step.astype(np.float32)
        self.box, self.seconds = box, seconds


class Tracker:
    """Number the persons of a video; numbers start at 1 and are never used twice."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._last = NO_TRACK

    @property
    def alive(self) -> set[int]:
        """Tracks that the next frame may continue."""
        return {track.number for track in self._tracks}

    def update(self, boxes: Boxes, seconds: float) -> list[int]:
        """Return the track of each box, [N, 4], of a frame later than the last one.

        NO_TRACK = a box of several persons.
        """
        tracks = [t for t in self._tracks if seconds - t.seconds <= MAX_GAP_S]
        predicted = np.array([t.predict(seconds) for t in tracks], np.float32).reshape(-1, 4)
        owners = _match(overlap(_enlarge(predicted), _enlarge(boxes)))
        lost = set(range(len(tracks))) - set(owners.values())
        swallowed = share_inside(predicted, boxes) >= MERGED_SHARE
        parting = (share_inside(boxes, predicted) >= MERGED_SHARE).sum(0) > 1
        kept = [True] * len(tracks)
        current: list[_Track] = []  # of each box
        for column, box in enumerate(boxes):
            row = owners.get(column)
            into = [other for other in lost if swallowed[other, column]]
            if row is None:
                current.append(self._start(box, seconds))
            elif into:  # two persons, one box
                kept[row] = False
                for other in into:
                    kept[other] = False
                current.append(_Track(NO_TRACK, box, seconds, seconds))
            elif tracks[row].number == NO_TRACK and parting[row]:
                kept[row] = False
                current.append(self._start(box, seconds))
            else:
                tracks[row].add(box, seconds)
                self._release(tracks[row])
                current.append(tracks[row])
        going_on = [track for track, keep in zip(tracks, kept, strict=True) if keep]
        known = {id(track) for track in going_on}
        self._tracks = going_on + [track for track in current if id(track) not in known]
        return [track.number for track in current]

    def _start(self, box: NDArray[np.float32], seconds: float) -> _Track:
        self._last += 1
        return _Track(self._last, box, seconds, seconds)

    def _release(self, track: _Track) -> None:
        """Give a merged box that does not part a number: one of the two may have left."""
        if track.number == NO_TRACK and track.seconds - track.start > MAX_GAP_S:
            self._last += 1
            track.number = self._last


def _match(shared: NDArray[np.float32]) -> dict[int, int]:
    """Return column -> row of the best pairs of a matrix, the best first."""
    shared = shared.copy()
    owners: dict[int, int] = {}
    while shared.size and shared.max() >= MIN_OVERLAP:
        row, column = np.unravel_index(shared.argmax(), shared.shape)
        shared[row], shared[:, column] = 0, 0
        owners[int(column)] = int(row)
    return owners


def _enlarge(boxes: Boxes) -> Boxes:
    sides = np.tile((boxes[:, 2:] - boxes[:, :2]) * ENLARGED, 2)
    return (boxes + sides * np.array([-1, -1, 1, 1], np.float32)).astype(np.float32)
