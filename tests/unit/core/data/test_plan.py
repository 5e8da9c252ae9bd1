"""The step plan: balanced, distinct, the same everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmpp_core.data.plan import Draw, StepPlan, class_labels, stream
from dpmpp_core.errors import DataError


@st.composite
def training_sets(draw):
    """Image counts of 2..12 identities, from one image each, in any row order, P and K."""
    counts = draw(st.lists(st.integers(1, 9), min_size=2, max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    camids = rng.integers(0, 3, len(labels))
    return labels, camids, draw(st.integers(1, len(counts))), draw(st.integers(1, 5))


@given(training_sets(), st.integers(0, 2**40), st.integers(0, 100))
@settings(max_examples=150, deadline=None)
def test_every_step_has_p_identities_with_k_rows_each(training_set, seed, epoch):
    labels, camids, identities, images = training_set
    plan = StepPlan(labels, camids, identities, images, seed)
    assert plan.steps_per_epoch == max(1, len(labels) // (identities * images))
    for step in range(plan.steps_per_epoch):
        rows = plan.rows(epoch, step)
        assert rows.shape == (identities * images,) and rows.dtype == np.int64
        groups = rows.reshape(identities, images)
        chosen = labels[groups]
        assert (chosen == chosen[:, :1]).all()
        assert len(set(chosen[:, 0])) == identities
        for group, label in zip(groups, chosen[:, 0], strict=True):
            _, repeats = np.unique(group, return_counts=True)
            owned = np.count_nonzero(labels == label)
            assert len(repeats) == min(owned, images)
            assert repeats.max() - repeats.min() <= 1


@given(training_sets(), st.integers(0, 50))
@settings(max_examples=150, deadline=None)
def test_an_epoch_deals_identities_and_their_images_evenly(training_set, epoch):
    labels, camids, identities, images = training_set
    plan = StepPlan(labels, camids, identities, images, seed=3)
    rows = np.concatenate([plan.rows(epoch, s) for s in range(plan.steps_per_epoch)])
    dealt = np.bincount(labels[rows], minlength=labels.max() + 1)
    assert dealt.max() - dealt.min() <= images
    for label in np.flatnonzero(dealt):
        each = np.bincount(rows, minlength=len(labels))[labels == label]
        assert each.max() - each.min() <= 1


def test_epochs_and_seeds_differ_and_order_of_asking_does_not_matter():
    labels, camids = np.repeat(np.arange(20), 6), np.zeros(120, np.int64)
    plan = StepPlan(labels, camids, 4, 3, seed=0, epochs=7)
    assert plan.total == 7 * 10
    first = [plan.rows(0, s) for s in range(10)]
    later = [plan.rows(5, s) for s in range(10)]
    assert not np.array_equal(first, later)
    fresh = StepPlan(labels, camids, 4, 3, seed=0)
    assert np.array_equal(fresh.rows(5, 9), later[9])
    assert np.array_equal(fresh.rows(0, 3), first[3])
    assert not np.array_equal(StepPlan(labels, camids, 4, 3, seed=1).rows(0, 0), first[0])


def test_a_caller_that_changes_rows_does_not_change_the_plan():
    plan = StepPlan(np.arange(8) % 4, np.zeros(8, np.int64), 2, 2, 0)
    before = plan.rows(0, 0)
    plan.rows(0, 0)[:] = -1
    assert np.array_equal(plan.rows(0, 0), before)


def test_the_images_of_an_identity_come_from_both_cameras():
    labels = np.repeat(np.arange(6), 8)
    camids = np.tile([0, 0, 0, 0, 1, 1, 1, 1], 6)
    plan = StepPlan(labels, camids, 3, 4, seed=5)
    for epoch in range(10):
        rows = plan.rows(epoch, 0).reshape(3, 4)
        assert (np.sort(camids[rows], axis=1) == [0, 0, 1, 1]).all()


def test_a_batch_has_all_identities_of_a_small_set():
    plan = StepPlan(np.array([0, 0, 1, 2]), np.zeros(4, np.int64), 16, 2, 0)
    assert plan.identities == 3 and plan.steps_per_epoch == 1
    assert set(plan.rows(0, 0).tolist()) == {0, 1, 2, 3}


def test_one_identity_is_the_users_error():
    with pytest.raises(DataError, match="has 1 identities, a batch needs 2"):
        StepPlan(np.array([0, 0, 0]), np.zeros(3, np.int64), 4, 2, 0)


def test_a_step_beyond_the_epoch_is_refused():
    with pytest.raises(IndexError):
        StepPlan(np.arange(4), np.zeros(4, np.int64), 2, 2, 0).rows(0, 1)


def test_streams_differ_in_every_part_of_their_key():
    keys = [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0)]
    draws = {stream(*key, purpose).bytes(8) for key in keys for purpose in Draw}
    assert len(draws) == len(keys) * len(Draw)


@given(st.lists(st.integers(0, 2**40), min_size=1))
def test_class_labels_are_sorted_and_invertible(pids):
    labels, classes = class_labels(pids)
    assert (np.diff(classes) > 0).all()
    assert np.array_equal(classes[labels], pids)
    assert labels.dtype == classes.dtype == np.int64


def test_by_images_each_image_comes_about_once_per_epoch() -> None:
    """On a skewed set: one identity of 400 images, a hundred of 8."""
    labels = np.concatenate([np.zeros(400, np.int64), np.repeat(np.arange(1, 101), 8)])
    camids = np.arange(len(labels)) % 3
    rates = {}
    for by_images in (False, True):
        plan = StepPlan(labels, camids, 8, 4, 0, by_images=by_images)
        counts = np.zeros(len(labels))
        for epoch in range(10):
            for step in range(plan.steps_per_epoch):
                rows = plan.rows(epoch, step)
                assert len(set(labels[rows])) == 8
                np.add.at(counts, rows, 1)
        rates[by_images] = counts[:400].mean() / 10, counts[400:].mean() / 10
    large, small = rates[True]
    assert large > 0.35 and 0.7 < small < 1.4  # P x K bounds the large one: once per step
    assert rates[False][0] < 0.2 < 1.3 < rates[False][1]
    one, other = (StepPlan(labels, camids, 8, 4, 0, by_images=True) for _ in range(2))
    assert np.array_equal(one.rows(3, 5), other.rows(3, 5))
