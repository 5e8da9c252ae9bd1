"""Which images form which training step: identity-balanced, from (seed, epoch, step) alone.

Any process computes any step without replaying earlier ones, so a run resumes exactly and workers
need not communicate about sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpmpp_core.errors import DataError


class Draw(IntEnum):
    """What a stream of random numbers is for; part of its seed, so never renumber."""

    PLAN = 1
    GEOMETRY = 2
    PAIRING = 3
    ERASING = 4
    CAMERA = 5
    PATCHES = 6
    BANK = 7
    SYNTHESIS = 8
    CUT_TOP = 9
    CUT_BOTTOM = 10
    CUT_SIDE = 11
    OCCLUDER_TEXTURE = 12
    ATTENTION_MASK = 13


def stream(seed: int, epoch: int, step: int, item: int, purpose: Draw) -> np.random.Generator:
    """Return an independent random generator for one purpose at one place of the training."""
    return np.random.default_rng(np.random.SeedSequence((seed, epoch, step, item, int(purpose))))


def class_labels(pids: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return labels int64 [N] in 0..C-1 and classes int64 [C], sorted; classes[labels] == pids."""
    classes, labels = np.unique(np.asarray(pids, np.int64), return_inverse=True)
    return labels.astype(np.int64), classes


class StepPlan:
    """The rows of each training step: P identities, K consecutive rows of each.

    Identities are dealt like cards, P per step, from a shuffled deck of all of them. When a deck is
    used up, the next one follows, less the identities of the step. So a step's identities differ,
    and over an epoch the counts of any two differ by one at most. The images of an identity are
    dealt K at a time in the same way; decks are ordered so that its cameras are spread evenly. Only
    an identity with fewer than K images repeats any within a step, each about equally often.

    With `by_images` an identity comes once for every K of its images, as in the published codes:
    each image about once per epoch, large identities more often than small ones.

    Args:
        labels: int64 [N] class index of each training row.
        camids: int64 [N] camera of each training row.
        identities: P, at least 1; all identities of the set where it has fewer.
        images: K, at least 1.
        seed: non-negative.
        epochs: only for `total`.
        by_images: whether identities are drawn in proportion to their images, or equally often.

    Raises:
        DataError: one identity, and P is 2 or more: nobody is another person.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        camids: NDArray[np.int64],
        identities: int,
        images: int,
        seed: int,
        epochs: int = 1,
        by_images: bool = False,
    ) -> None:
        order = np.argsort(labels, kind="stable")
        classes, starts = np.unique(labels[order], return_index=True)
        if len(classes) < min(identities, 2):
            raise DataError(
                f"the training set has {len(classes)} identities, a batch needs 2: give more "
                "identities; half of those without a split are for the test"
            )
        self.identities, self.images, self.seed = min(identities, len(classes)), images, seed
        self._rows = np.split(order, starts[1:])
        self._camids = np.asarray(camids)
        self.steps_per_epoch = max(1, len(labels) // (self.identities * images))
        """N // (P * K), at least 1."""
        self.total = epochs * self.steps_per_epoch
        """Steps of the whole training."""
        self._by_images = by_images
        self._latest: tuple[int, NDArray[np.int64]] | None = None

    def rows(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Return the row numbers of one step, int64 [P * K], K consecutive ones per identity.

        Raises:
            IndexError: the step is not in 0..steps_per_epoch-1.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch} steps")
        if self._latest is None or self._latest[0] != epoch:
            self._latest = (epoch, self._deal_epoch(epoch))
        return self._latest[1][step].copy()

    def _deal_epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return all rows of an epoch, int64 [steps, P * K]."""
        rng = stream(self.seed, epoch, 0, 0, Draw.PLAN)
        if self._by_images:
            chosen = self._draw_by_images(rng)
        else:
            shuffle = partial(rng.permutation, np.arange(len(self._rows)))
            chosen = _deal(shuffle, self.identities, self.steps_per_epoch)
        rows = np.empty((self.steps_per_epoch, self.identities, self.images), np.int64)
        for identity in np.unique(chosen):
            places = chosen == identity
            shuffle = partial(self._spread_cameras, self._rows[identity], rng)
            rows[places] = _deal(shuffle, self.images, int(places.sum()))
        return rows.reshape(self.steps_per_epoch, -1)

    def _draw_by_images(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw the identities of every step, int64 [steps, P], none twice in a step.

        The more of an identity's images are left, the likelier it comes; small ones come last, when
        the others are used up, or not at all.
        """
        left = np.array([len(rows) for rows in self._rows]) / self.images
        chosen = np.empty((self.steps_per_epoch, self.identities), np.int64)
        for row in chosen:
            weight = np.maximum(left, 1e-9)  # where too few are left, any other fills the step
            row[:] = rng.choice(len(left), self.identities, replace=False, p=weight / weight.sum())
            left[row] = np.maximum(left[row] - 1, 0)
        return chosen

    def _spread_cameras(
        self, rows: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Shuffle rows so that those of each camera are spread evenly over the deck (ours)."""
        rows = rng.permutation(rows)
        camids = self._camids[rows]
        place = np.empty(len(rows))
        for camid in np.unique(camids):
            of_camera = np.flatnonzero(camids == camid)
            place[of_camera] = (np.arange(len(of_camera)) + rng.random(len(of_camera))) / len(
                of_camera
            )
        return rows[np.argsort(place, kind="stable")]


def _deal(shuffle: Callable[[], NDArray[np.int64]], hand: int, hands: int) -> NDArray[np.int64]:
    """Deal cards from shuffled decks in turn, int64 [hands, hand].

    No card comes twice in a hand before all have come once: at the change of decks, cards already
    in the hand are skipped and stay on the new deck.
    """
    whole, rest = divmod(hand, len(shuffle()))
    out = np.empty((hands, hand), np.int64)
    deck = shuffle()
    for row in out:
        dealt, deck = deck[:rest], deck[rest:]
        if len(dealt) < rest:
            next_deck = shuffle()
            added = next_deck[~np.isin(next_deck, dealt)][: rest - len(dealt)]
            dealt, deck = np.concatenate([dealt, added]), next_deck[~np.isin(next_deck, added)]
        row[:] = np.concatenate([dealt, *(shuffle() for _ in range(whole))])
    return out
