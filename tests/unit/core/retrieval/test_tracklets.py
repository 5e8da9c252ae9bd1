"""Several pictures as one query: what fusing must leave alone, and how tracklets are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmpp_core.retrieval import (
    Embeddings,
    draw_tracklets,
    evaluate_ranking,
    evaluate_tracklets,
    fuse,
    masked_similarity,
)

SPACES = ("visual", "bands")


def frames(count, width=6, seed=0, least=0.01):
    rng = np.random.default_rng(seed)
    features = {s: rng.normal(size=(count, width)).astype(np.float32) for s in SPACES}
    masks = {s: rng.uniform(least, 1, (count, width)).astype(np.float32) for s in SPACES}
    return features, masks


def scores(made, seed=9):
    gallery = frames(20, seed=seed)[0]
    return masked_similarity(*made, gallery).numpy()


@given(st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_one_picture_is_itself(count, seed):
    given_frames = frames(count, seed=seed)
    fused = fuse(*given_frames, np.arange(count)[:, None])
    np.testing.assert_allclose(scores(fused), scores(given_frames), atol=1e-6)
    for space in SPACES:
        np.testing.assert_array_equal(fused[1][space], given_frames[1][space])


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_order_and_copies_of_frames_change_nothing(count, copies, seed):
    given_frames = frames(count, seed=seed)
    rows = np.arange(count)
    expected = fuse(*given_frames, rows[None])
    order = np.random.default_rng(seed).permutation(np.repeat(rows, copies))
    made = fuse(*given_frames, order[None])
    for space in SPACES:
        np.testing.assert_allclose(made[0][space], expected[0][space], atol=1e-6)
        np.testing.assert_array_equal(made[1][space], expected[1][space])


def test_fusing_is_the_formula():
    features, masks = frames(5)
    fused, union = fuse(features, masks, np.array([[0, 3, 4], [1, 2, 0]]))
    for space in SPACES:
        for t, members in enumerate([(0, 3, 4), (1, 2, 0)]):
            unit = [features[space][i] / np.linalg.norm(features[space][i]) for i in members]
            for d in range(6):
                m = [masks[space][i, d] for i in members]
                wanted = sum(a * f[d] for a, f in zip(m, unit, strict=True)) / sum(m)
                assert fused[space][t, d] == pytest.approx(wanted, abs=1e-6)
                assert union[space][t, d] == max(m)


def test_lengths_of_features_do_not_matter():
    features, masks = frames(4)
    longer = {s: x * np.array([[1], [100], [0.01], [7]], np.float32) for s, x in features.items()}
    rows = np.array([[0, 1, 2, 3]])
    np.testing.assert_allclose(
        fuse(longer, masks, rows)[0]["bands"], fuse(features, masks, rows)[0]["bands"], atol=1e-6
    )


def test_what_each_frame_hides_the_other_gives():
    truth = np.array([[1.0, -2.0, 3.0, -1.0]], np.float32)
    seen = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)
    noise = np.array([[5, -5, 5, 5], [-5, 5, 5, -5]], np.float32)
    shown = np.where(seen, truth, noise)
    # So long that both have the length they have in the gallery but for the hidden halves.
    features = {"": shown / np.linalg.norm(shown, axis=1, keepdims=True)}
    scale = np.linalg.norm(shown, axis=1)
    fused, union = fuse(features, {"": np.where(seen, 1, 0).astype(np.float32)}, np.array([[0, 1]]))
    expected = truth[0] / np.where(seen[0], scale[0], scale[1])
    np.testing.assert_allclose(fused[""][0], expected, rtol=1e-5)
    np.testing.assert_array_equal(union[""], np.ones((1, 4)))


def test_a_dimension_that_no_frame_shows_stays_unseen_and_finite():
    features, masks = frames(3)
    for mask in masks.values():
        mask[:, 2] = 0
    fused, union = fuse(features, masks, np.array([[0, 1, 2]]))
    assert all(np.isfinite(x).all() for x in fused.values())
    assert union["visual"][0, 2] == 0


# --- drawing ------------------------------------------------------------------------------------

PIDS = np.repeat([1, 2, 3], [9, 8, 1])
CAMIDS = np.array([1] * 5 + [2] * 4 + [1] * 8 + [1])


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_tracklets_are_of_one_person_and_camera_and_share_no_picture(k):
    rows = draw_tracklets(PIDS, CAMIDS, k, seed=3)
    sizes = [5, 4, 8, 1]  # of the groups
    assert rows.shape == (sum(n // k for n in sizes), k) and rows.dtype == np.int64
    assert len(np.unique(rows)) == rows.size
    assert (PIDS[rows] == PIDS[rows[:, :1]]).all() and (CAMIDS[rows] == CAMIDS[rows[:, :1]]).all()


def test_tracklets_come_from_the_seed_and_longer_ones_are_shorter_ones_joined():
    two, four = (draw_tracklets(PIDS, CAMIDS, k, seed=3) for k in (2, 4))
    np.testing.assert_array_equal(two, draw_tracklets(PIDS, CAMIDS, 2, seed=3))
    assert not np.array_equal(two, draw_tracklets(PIDS, CAMIDS, 2, seed=4))
    pairs = {tuple(row) for row in two.tolist()}
    assert all({tuple(row[:2]), tuple(row[2:])} <= pairs for row in four.tolist())


def test_no_one_with_so_many_pictures_gives_no_tracklet():
    assert draw_tracklets(PIDS, CAMIDS, 9, 0).shape == (0, 9)
    assert draw_tracklets(PIDS[:0], CAMIDS[:0], 2, 0).shape == (0, 2)
    with pytest.raises(ValueError, match="at least 1"):
        draw_tracklets(PIDS, CAMIDS, 0, 0)


# --- figures ------------------------------------------------------------------------------------


def people(count, each, camid, noise, seed):
    """Persons of a fixed look, seen with noise where the mask is low."""
    look = np.random.default_rng(0).normal(size=(count, 16))
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(count), each)
    mask = rng.uniform(0.05, 1, (len(pids), 16))
    feature = look[pids] + noise * (1 - mask) * rng.normal(size=mask.shape)
    return Embeddings(
        {"visual": feature.astype(np.float32)}, {"visual": mask.astype(np.float32)},
        pids, np.full(len(pids), camid), [f"{camid}-{i}" for i in range(len(pids))],
    )  # fmt: skip


def test_more_frames_help_where_noise_is_what_hides():
    query, gallery = people(12, 8, 1, 4.0, 1), people(12, 3, 2, 1.0, 2)
    measured = evaluate_tracklets(query, gallery, (1, 2, 4, 8, 16), seed=0)
    assert list(measured) == ["1", "2", "4", "8"]  # nobody has 16
    fused = [measured[k]["fused"]["mAP"] for k in measured]
    assert fused == sorted(fused) and fused[-1] > fused[0] + 0.1
    assert measured["4"]["tracklets"] == 24 and measured["4"]["persons"] == 12
    for k, values in measured.items():
        for way in ("mean", "best", "late", "single"):
            gain = values["gain"][way]
            difference = values["fused"]["mAP"] - values[way]["mAP"]
            assert gain["mean"] == pytest.approx(difference)
            assert gain["low"] <= gain["mean"] <= gain["high"]
            assert k != "1" or abs(difference) < 1e-9  # of one picture all ways are the same


def test_late_fusion_is_the_mean_of_the_frames_scores(monkeypatch):
    query, gallery = people(6, 4, 1, 4.0, 1), people(6, 3, 2, 1.0, 2)
    monkeypatch.setattr("dpmpp_core.retrieval.tracklets.BLOCK_SCORES", 80)  # blocks of 2
    measured = evaluate_tracklets(query, gallery, (2,), seed=5)["2"]
    rows = draw_tracklets(query.pids, query.camids, 2, 5)
    alone = masked_similarity(query.features, query.masks, gallery.features).numpy()
    first = rows[:, 0]
    ids = query.pids[first], gallery.pids, query.camids[first], gallery.camids
    found = evaluate_ranking(alone[rows].mean(axis=1), *ids)
    assert measured["late"]["mAP"] == pytest.approx(found.average_precision.mean())
    single = evaluate_ranking(alone, query.pids, gallery.pids, query.camids, gallery.camids)
    assert measured["single"]["mAP"] == pytest.approx(single.average_precision[rows].mean())


def test_persons_who_are_not_in_the_gallery_are_left_out():
    query, gallery = people(4, 2, 1, 1.0, 1), people(2, 3, 2, 1.0, 2)
    measured = evaluate_tracklets(query, gallery, (2,), seed=0)["2"]
    assert 0 <= measured["fused"]["mAP"] <= 1 and measured["tracklets"] == 2
    stranger = Embeddings(
        gallery.features, gallery.masks, gallery.pids + 100, gallery.camids, gallery.paths
    )
    assert evaluate_tracklets(query, stranger, (1, 2), seed=0) == {}
