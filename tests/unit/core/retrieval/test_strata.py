"""Intervals and strata of an evaluation, against plain loops."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpmpp_core.data.occlusion_ratios import occlusion_ratios
from dpmpp_core.errors import DataError
from dpmpp_core.retrieval import (
    Embeddings,
    compute_intervals,
    evaluate_by_camera_pair,
    evaluate_by_occlusion,
    evaluate_ranking,
    masked_similarity,
    paired_bootstrap,
    rank_by_mode,
)


def embedded(count, seed, cameras=3, persons=7):
    rng = np.random.default_rng(seed)
    pids = rng.integers(0, persons, count)
    feature = rng.normal(size=(count, 5)) + 2 * np.random.default_rng(0).normal(size=(9, 5))[pids]
    # Few values, so that scores tie.
    feature = np.round(feature) + 0.5
    masks = rng.integers(1, 4, (count, 5)) / 4
    return Embeddings(
        {"visual": feature.astype(np.float32)}, {"visual": masks.astype(np.float32)},
        pids, rng.integers(1, cameras + 1, count), [f"{seed}/{i}" for i in range(count)],
    )  # fmt: skip


QUERY, GALLERY = embedded(40, 1, persons=9), embedded(60, 2)
RANKED = rank_by_mode(QUERY, GALLERY, seed=0)


def scored(rows):
    """Of a block by itself: with another number of rows scores may differ in their last bits,
    by which equal ones would be told apart."""
    parts = [{"visual": values["visual"][rows]} for values in (QUERY.features, QUERY.masks)]
    return masked_similarity(*parts, GALLERY.features).numpy()


def test_the_pair_of_cameras_decides_the_positives_and_all_others_distract(monkeypatch):
    monkeypatch.setattr("dpmpp_core.retrieval.strata.BLOCK_SCORES", 7 * 60)  # blocks of 7
    table = evaluate_by_camera_pair(QUERY, GALLERY)
    scores = np.concatenate([scored(slice(i, i + 7)) for i in range(0, 40, 7)])
    pairs = {(row["query_camera"], row["gallery_camera"]): row for row in table}
    assert list(pairs) == sorted(pairs) and len(pairs) == 6  # 3 x 3 without the same camera
    for (own, other), row in pairs.items():
        precisions, firsts = [], []
        for i in np.flatnonzero(QUERY.camids == own):
            of_person = GALLERY.pids == QUERY.pids[i]
            kept = ~of_person | (GALLERY.camids == other)
            if not (of_person & kept).any():
                continue
            ids = [np.array([QUERY.pids[i]]), GALLERY.pids[kept], np.array([own])]
            result = evaluate_ranking(scores[i : i + 1, kept], *ids, GALLERY.camids[kept])
            precisions.append(result.mAP)
            firsts.append(result.rank(1))
        assert row["queries"] == len(precisions)
        assert row["mAP"] == pytest.approx(np.mean(precisions))
        assert row["rank1"] == pytest.approx(np.mean(firsts))


def test_intervals_are_those_of_the_bootstrap_and_their_means_the_figures():
    sure = compute_intervals(RANKED, QUERY.pids)
    masked, unmasked = RANKED["masked"], RANKED["unmasked"]
    assert sure["masked"]["mAP"]["mean"] == pytest.approx(masked.mAP)
    assert sure["unmasked"]["rank1"]["mean"] == pytest.approx(unmasked.rank(1))
    gain = paired_bootstrap(masked.average_precision - unmasked.average_precision, QUERY.pids)
    assert sure["gain"]["mAP"] == gain._asdict()
    assert masked.num_skipped_queries > 0  # NaN in, none out
    for figures in sure.values():
        for values in figures.values():
            assert values["low"] <= values["mean"] <= values["high"]


def test_queries_go_into_the_bucket_of_their_share():
    hidden = np.linspace(0, 1, len(QUERY))
    hidden[3] = np.nan
    result = RANKED["masked"]
    table = evaluate_by_occlusion(result, hidden, QUERY.pids)
    valid = ~np.isnan(result.average_precision) & ~np.isnan(hidden)
    assert sum(row["queries"] for row in table.values()) == valid.sum()
    for name, row in table.items():
        low, high = (int(edge) / 100 for edge in name.split("-"))
        inside = valid & (hidden >= low) & ((hidden < high) | (high == 1))
        assert row["queries"] == inside.sum()
        assert row["mAP"]["mean"] == pytest.approx(result.average_precision[inside].mean())
        first = result.first_match_rank[inside] == 1
        assert row["rank1"]["mean"] == pytest.approx(first.mean())
    assert list(table)[-1] == "90-100"
    assert evaluate_by_occlusion(result, np.full(len(QUERY), np.nan), QUERY.pids) == {}
    assert list(evaluate_by_occlusion(result, np.full(len(QUERY), 0.3), QUERY.pids)) == ["30-40"]


def test_one_person_has_a_mean_and_no_interval():
    own = np.flatnonzero(QUERY.pids == 2)[:1]
    share = np.full(len(QUERY), np.nan)
    share[own] = 0.25
    row = evaluate_by_occlusion(RANKED["masked"], share, QUERY.pids)["20-30"]
    assert row["mAP"]["mean"] == RANKED["masked"].average_precision[own[0]]
    assert row["mAP"]["low"] is None and row["mAP"]["high"] is None


# --- what the data says of its pictures ---------------------------------------------------------

PATHS = ["query/a.jpg", "query/b.jpg", "query/c.jpg"]


def shares(folder):
    return occlusion_ratios(str(folder), PATHS).tolist()


def test_shares_are_read_where_a_file_states_them(tmp_path):
    np.testing.assert_array_equal(shares(tmp_path), [np.nan] * 3)
    table = pa.table({"path": PATHS[:2] + ["other.jpg"], "visible_share": [0.75, None, 0.1]})
    pq.write_table(table, tmp_path / "annotations.parquet")
    np.testing.assert_array_equal(shares(tmp_path), [0.25, np.nan, np.nan])
    table = pa.table({"path": PATHS[1:], "hidden": [None, 0.5]})
    pq.write_table(table, tmp_path / "synthesis.parquet")
    np.testing.assert_array_equal(shares(tmp_path), [0.25, 0, 0.5])
    (tmp_path / "occlusion.csv").write_text("file,kind,frac\nquery/a.jpg,left,0.469\n")
    np.testing.assert_array_equal(shares(tmp_path), [0.469, 0, 0.5])


def test_files_of_other_columns_say_nothing(tmp_path):
    pq.write_table(pa.table({"path": PATHS, "pid": [1, 2, 3]}), tmp_path / "annotations.parquet")
    (tmp_path / "occlusion.csv").write_text("name,share\nquery/a.jpg,0.4\n")
    assert np.isnan(shares(tmp_path)).all()


@pytest.mark.parametrize("value", ["47", "-0.1", "nan", "much", ""])
def test_a_share_that_is_none_is_refused_by_name(tmp_path, value):
    (tmp_path / "occlusion.csv").write_text(f"file,frac\nquery/b.jpg,{value}\n")
    with pytest.raises(DataError, match=r"occlusion\.csv in .*: the share of query/b\.jpg is"):
        shares(tmp_path)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "synthesis.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"synthesis\.parquet in .* is not a Parquet table"):
        shares(tmp_path)
    (tmp_path / "synthesis.parquet").unlink()
    (tmp_path / "occlusion.csv").write_bytes(b"file,frac\n\xff\xfe,0.2\n")
    with pytest.raises(DataError, match=r"occlusion\.csv in .* is not a table"):
        shares(tmp_path)
