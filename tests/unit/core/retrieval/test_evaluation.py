"""Embeddings to figures; control masks; mask statistics; baselines; ranked lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmpp_core.errors import DataError
from dpmpp_core.retrieval import (
    Controls,
    Embeddings,
    compute_chance,
    compute_stripe_histogram,
    derangement,
    draw_tracklets,
    evaluate,
    evaluate_by_camera_pair,
    evaluate_ranking,
    exchanges,
    feature_ranks,
    mask_statistics,
    masked_similarity,
    rank_by_mode,
    rank_tracklets,
    static_masks,
    top_matches,
)
from dpmpp_core.retrieval.calibration import score_pairs
from dpmpp_core.retrieval.evaluation import EXCHANGES


def embeddings(
    pids: list[int], camid: int, dims: dict[str, int], seed: int, noise: float = 1.0
) -> Embeddings:
    """A direction an identity plus noise, and random masks."""
    rng = np.random.default_rng(seed)
    features, masks = {}, {}
    for space, d in dims.items():
        centres = np.random.default_rng(d).standard_normal((max(pids) + 1, d))
        x = centres[pids] + noise * rng.standard_normal((len(pids), d))
        features[space] = x.astype(np.float32)
        masks[space] = rng.random((len(pids), d), dtype=np.float32) * 0.98 + 0.01
    ids = np.array(pids, np.int64)
    return Embeddings(
        features,
        masks,
        ids,
        np.full_like(ids, camid),
        [f"{camid}_{i}.jpg" for i in range(len(ids))],
    )


DIMS = {"v": 24, "v_p": 16}


def pair() -> tuple[Embeddings, Embeddings]:
    query = embeddings([0, 1, 2, 3, 9], 0, DIMS, 0, 2.0)
    return query, embeddings([0, 1, 2, 3, 4] * 4, 1, DIMS, 1, 2.0)


def test_evaluate_gives_each_mode_as_computed_step_by_step() -> None:
    query, gallery = pair()
    figures = evaluate(query, gallery, seed=3)
    assert figures.keys() == {
        "masked",
        "unmasked",
        "permuted",
        "static",
        "both",
        "num_queries",
        "num_skipped",
    }
    assert (figures["num_queries"], figures["num_skipped"]) == (5, 1)
    ids = (query.pids, gallery.pids, query.camids, gallery.camids)
    for mode, controls in {
        "masked": [query.masks],
        "unmasked": [None],
        "permuted": [
            {space: mask[order] for space, mask in query.masks.items()}
            for order in exchanges(len(query), 3)
        ],
        "static": [static_masks(query.masks)],
    }.items():
        found = [
            evaluate_ranking(masked_similarity(query.features, masks, gallery.features), *ids)
            for masks in controls
        ]
        for name in found[0].metrics():
            expected = np.mean([result.metrics()[name] for result in found])
            assert figures[mode][name] == pytest.approx(expected)
        assert all(type(value) is float for value in figures[mode].values())
    assert figures["masked"] != figures["unmasked"]


def test_masks_of_both_sides_weigh_the_gallery_by_their_product() -> None:
    query, gallery = pair()
    ids = (query.pids, gallery.pids, query.camids, gallery.camids)
    scores = torch.zeros(len(query), len(gallery))
    for space, x in query.features.items():
        q = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True))
        for i in range(len(query)):
            g = gallery.features[space] * gallery.masks[space] * query.masks[space][i]
            g /= np.linalg.norm(g, axis=1, keepdims=True)
            scores[i] += torch.from_numpy(g) @ q[i] / len(query.features)
    expected = evaluate_ranking(scores, *ids).metrics()
    assert evaluate(query, gallery, seed=0)["both"] == pytest.approx(expected)
    without = evaluate(query, replace(gallery, masks={}), seed=0)
    assert np.isnan(without["both"]["mAP"]) and without["masked"]["mAP"] > 0


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = pair()
    whole = rank_by_mode(query, gallery, seed=0)
    monkeypatch.setattr(feature_ranks, "BLOCK_QUERIES", 2)
    for mode, result in rank_by_mode(query, gallery, seed=0).items():
        np.testing.assert_array_equal(result.average_precision, whole[mode].average_precision)
        np.testing.assert_array_equal(result.cmc, whole[mode].cmc)


def test_true_masks_beat_none_and_permuted_ones_where_noise_hides_dimensions() -> None:
    """Half of each query's dimensions carry nothing but noise, and its mask knows which half."""
    pids = list(range(40))
    gallery = embeddings(pids * 2, 1, {"v": 64}, 1, noise=0.5)
    clean = embeddings(pids, 0, {"v": 64}, 2, noise=0.5)
    rng = np.random.default_rng(3)
    hidden = rng.random((40, 64)) < 0.5
    x = np.where(hidden, rng.standard_normal((40, 64)) * 4, clean.features["v"])
    mask = np.where(hidden, 0.02, 0.98).astype(np.float32)
    figures = evaluate(
        replace(clean, features={"v": x.astype(np.float32)}, masks={"v": mask}), gallery, seed=0
    )
    for control in ("unmasked", "permuted", "static"):
        assert figures["masked"]["mAP"] > figures[control]["mAP"] + 0.1


def test_lone_query_has_no_permuted_figures() -> None:
    query = embeddings([1], 0, DIMS, 0)
    figures = evaluate(query, embeddings([0, 1], 1, DIMS, 1), seed=0)
    assert np.isnan(list(figures["permuted"].values())).all()
    assert figures["masked"]["mAP"] > 0


def test_nan_features_and_foreign_identities_are_refused() -> None:
    query, gallery = pair()
    broken = {space: x.copy() for space, x in gallery.features.items()}
    broken["v"][7, 0] = np.nan
    with pytest.raises(ValueError, match="gallery of space 'v': row 7"):
        evaluate(query, replace(gallery, features=broken), seed=0)
    with pytest.raises(DataError, match="none of the 5 queries"):
        evaluate(query, replace(gallery, pids=gallery.pids + 100), seed=0)


def test_columns_of_different_length_are_refused() -> None:
    query, _ = pair()
    with pytest.raises(ValueError, match="different lengths"):
        replace(query, camids=query.camids[:-1])


@settings(max_examples=100, deadline=None)
@given(size=st.integers(2, 30), seed=st.integers(0, 2**40))
def test_a_derangement_moves_every_query(size: int, seed: int) -> None:
    order = derangement(size, seed)
    assert (order != np.arange(size)).all() and sorted(order) == list(range(size))
    np.testing.assert_array_equal(derangement(size, seed), order)


def test_derangements_depend_on_the_seed_and_need_two_queries() -> None:
    assert len({derangement(20, seed).tobytes() for seed in range(5)}) == 5
    with pytest.raises(ValueError, match="at least 2"):
        derangement(1, 0)
    assert exchanges(1, 0) == []


def test_controls_of_an_attention_mask_are_other_features() -> None:
    """Without controls there is nothing to compare with: no figure, not the masked features."""
    query, gallery = pair()
    masked = replace(query, occluded=np.ones((len(query), 2, 2), np.float32))
    assert set(rank_by_mode(masked, gallery, seed=0)) == {"masked", "both"}
    noise = [embeddings(list(query.pids), 0, DIMS, 50 + i).features for i in range(EXCHANGES + 1)]
    figures = evaluate(replace(masked, controls=Controls(noise[0], noise[1:])), gallery, seed=0)
    plain = evaluate(query, gallery, seed=0)
    assert figures["masked"] == plain["masked"] and figures["both"] == plain["both"]
    other = evaluate(replace(query, features=noise[0]), gallery, seed=0)
    assert figures["unmasked"] == other["unmasked"] and figures["static"] == other["static"]
    ids = (query.pids, gallery.pids, query.camids, gallery.camids)
    found = [
        evaluate_ranking(
            masked_similarity(x, {s: m[order] for s, m in query.masks.items()}, gallery.features),
            *ids,
        ).mAP
        for x, order in zip(noise[1:], exchanges(len(query), 0), strict=True)
    ]
    assert figures["permuted"]["mAP"] == pytest.approx(np.mean(found))


def test_only_the_wanted_modes_are_ranked() -> None:
    assert set(rank_by_mode(*pair(), seed=0, modes=("masked", "both"))) == {"masked", "both"}


def test_static_mask_is_the_mean_for_all() -> None:
    mask = np.array([[0.2, 0.4], [0.6, 0.8]], np.float32)
    expected = np.array([[0.4, 0.6]] * 2)
    static = static_masks({"v": mask})["v"]
    np.testing.assert_allclose(static, expected)
    assert static.dtype == np.float32


def test_mask_statistics_of_known_masks() -> None:
    constant = np.full((4, 10), 0.5, np.float32)
    single = np.eye(10, dtype=np.float32)
    channels = np.tile(np.array([0.0, 1.0], np.float32), (4, 5))
    figures = mask_statistics({"constant": constant, "single": single, "channels": channels})
    assert figures["constant"] == pytest.approx(
        {"mean": 0.5, "std_queries": 0, "std_channels": 0, "participation": 1}
    )
    assert figures["single"] == pytest.approx(
        {"mean": 0.1, "std_queries": 0.3, "std_channels": 0.3, "participation": 0.1}
    )
    assert figures["channels"] == pytest.approx(
        {"mean": 0.5, "std_queries": 0, "std_channels": 0.5, "participation": 0.5}
    )


def test_top_matches_leave_junk_out_and_pad_short_galleries() -> None:
    query = embeddings([0, 1, 2], 0, DIMS, 0, 0.1)
    gallery = embeddings([0, 1, 0, 1], 1, DIMS, 1, 0.1)
    gallery.camids[0] = 0  # junk for query 0 only
    indices, scores = top_matches(query, gallery, k=5, mode="masked", rows=[0, 1])
    assert indices.shape == scores.shape == (2, 5)
    assert indices[0, 0] == 2 and 0 not in indices[0]
    assert indices[0, 3:].tolist() == [-1, -1] and np.isnan(scores[0, 3:]).all()
    assert set(indices[1, :2]) == {1, 3} and sorted(indices[1, :4]) == [0, 1, 2, 3]
    assert (np.diff(scores[1, :4]) <= 0).all()
    expected = masked_similarity(query.features, query.masks, gallery.features)
    assert scores[1, 0] == pytest.approx(float(expected[1, indices[1, 0]]))


def test_top_matches_modes_and_row_choice() -> None:
    query, gallery = pair()
    plain, _ = top_matches(query, gallery, 10, "unmasked", [4, 2])
    scores = masked_similarity(query.features, None, gallery.features)
    np.testing.assert_array_equal(plain, np.argsort(-scores[[4, 2]].numpy(), 1)[:, :10])
    masked, _ = top_matches(query, gallery, 10, "masked", [4, 2])
    scores = masked_similarity(query.features, query.masks, gallery.features)
    np.testing.assert_array_equal(masked, np.argsort(-scores[[4, 2]].numpy(), 1)[:, :10])
    assert (masked != plain).any()


def test_stripe_histogram_is_a_unit_per_stripe_and_blind_to_position_within() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (96, 32, 3), dtype=np.uint8)
    feature = compute_stripe_histogram(image)
    assert feature.dtype == np.float32 and feature.shape == (768,)
    np.testing.assert_allclose(np.square(feature).reshape(6, -1).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(feature, compute_stripe_histogram(image[:, ::-1]))
    assert feature @ compute_stripe_histogram(image[::-1]) < feature @ feature


def test_stripe_histogram_reads_rgb_and_keeps_stripes_apart() -> None:
    red, blue = np.zeros((60, 20, 3), np.uint8), np.zeros((60, 20, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 200
    assert compute_stripe_histogram(red) @ compute_stripe_histogram(blue) == 0
    assert compute_stripe_histogram(red).argmax() // 16 == 0  # hue 0 of 180, in eight bins
    assert compute_stripe_histogram(blue).argmax() // 16 == 5  # hue 120
    half = red.copy()
    half[30:] = blue[30:]
    assert compute_stripe_histogram(half) @ compute_stripe_histogram(red) / 6 == pytest.approx(0.5)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((60, 20), np.uint8),
        np.zeros((60, 20, 3), np.float32),
        np.zeros((5, 9, 3), np.uint8),
    ],
)
def test_stripe_histogram_refuses_other_images(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="image"):
        compute_stripe_histogram(image)


def test_chance_is_what_random_scores_reach() -> None:
    rng = np.random.default_rng(0)
    q_pids, g_pids = rng.integers(0, 6, 10), rng.integers(0, 5, 40)
    q_cams, g_cams = rng.integers(0, 2, 10), rng.integers(0, 2, 40)
    drawn = [
        evaluate_ranking(rng.random((10, 40)), q_pids, g_pids, q_cams, g_cams) for _ in range(1000)
    ]
    mean_ap, rank1 = compute_chance(q_pids, g_pids, q_cams, g_cams)
    assert mean_ap == pytest.approx(np.mean([r.mAP for r in drawn]), abs=0.004)
    assert rank1 == pytest.approx(np.mean([r.cmc[0] for r in drawn]), abs=0.012)


def test_chance_needs_a_positive() -> None:
    one, two, cams = np.array([1]), np.array([2]), np.array([0])
    with pytest.raises(DataError):
        compute_chance(one, two, cams, cams)
    assert compute_chance(one, one, cams, cams + 1) == (1.0, 1.0)


def test_one_mask_value_a_group_gives_the_figures_of_full_masks() -> None:
    """A band has one value, which travels and is stored once."""
    full, compact = [], []
    for embedded in pair():
        values = {s: m[:, ::8] for s, m in embedded.masks.items()}
        masks = {s: np.repeat(m, 8, axis=1) for s, m in values.items()}
        full.append(replace(embedded, masks=masks))
        compact.append(replace(embedded, masks=values))
    for space, mask in compact[0].full_masks().items():
        assert np.array_equal(mask, full[0].masks[space])
    assert evaluate(*compact, seed=3) == evaluate(*full, seed=3)
    for ours, theirs in zip(top_matches(*compact, 3, "masked", [0, 1]),
                            top_matches(*full, 3, "masked", [0, 1]), strict=True):  # fmt: skip
        assert np.array_equal(ours, theirs)
    assert evaluate_by_camera_pair(*compact) == evaluate_by_camera_pair(*full)
    assert np.array_equal(score_pairs(*compact).scores, score_pairs(*full).scores)
    tracks = (draw_tracklets(full[0].pids, full[0].camids, 1, 0),)
    ours, theirs = (rank_tracklets(*x, *tracks) for x in (compact, full))
    assert all(np.array_equal(a, b, equal_nan=True)
               for name in ours for a, b in zip(ours[name], theirs[name], strict=True))  # fmt: skip
    statistics = mask_statistics(full[0].masks)
    for space, values in mask_statistics(compact[0].masks).items():
        assert values == pytest.approx(statistics[space])


def test_masks_that_are_no_equal_groups_are_refused() -> None:
    query, _ = pair()
    bad = replace(query, masks={s: m[:, :5] for s, m in query.masks.items()})
    with pytest.raises(ValueError, match="masks of 'v' have 5 values for 24 dimensions"):
        bad.full_masks()
