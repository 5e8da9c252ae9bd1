"""Paired differences over seeds and identities, and the table made of them."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from dpmpp_core.config.grid import Grid
from dpmpp_core.retrieval import MODES, Embeddings, paired_difference, rank_by_mode
from pipelines.reporting.ablation_table import (
    TABLE,
    Ablation,
    Measured,
    collect_by_variant,
    render_ablation,
)

PIDS = np.repeat(np.arange(30), 4)


def seeds(gain: float, spread: float, count: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    noise = spread * rng.standard_normal((count, 1)) + 0.05 * rng.standard_normal((1, len(PIDS)))
    return list(0.5 + gain + noise)


def test_a_difference_has_the_spread_of_seeds_and_the_interval_of_identities() -> None:
    own, other = seeds(0.1, 0.02), [np.full(len(PIDS), 0.5)] * 5
    made = paired_difference(own, other, PIDS)
    by_seed = [x.mean() - 0.5 for x in own]
    assert made.mean == pytest.approx(np.mean(by_seed))
    assert made.std == pytest.approx(np.std(by_seed, ddof=1))
    assert made.low < made.mean < made.high and made.n == 5


def test_only_what_is_beyond_both_noises_counts_and_harm_does_too() -> None:
    nothing = [np.full(len(PIDS), 0.5)] * 5
    assert paired_difference(seeds(0.1, 0.02), nothing, PIDS).beyond_noise
    assert paired_difference(seeds(-0.1, 0.02), nothing, PIDS).beyond_noise
    assert not paired_difference(seeds(0.1, 0.3), nothing, PIDS).beyond_noise
    assert not paired_difference(seeds(0.0, 0.0001), nothing, PIDS).beyond_noise
    assert not paired_difference(seeds(0.1, 0.02)[:1], nothing[:1], PIDS).beyond_noise
    assert not paired_difference(seeds(0.1, 0.02), nothing, PIDS % 16).beyond_noise  # few people


def test_the_interval_covers_another_training_and_other_people() -> None:
    """Seeds that differ widen it; what all queries share does not, people that differ do."""
    other = [np.full(len(PIDS), 0.5)] * 5
    widths = []
    for spread in (0.0, 0.1, 0.2):
        made = paired_difference(seeds(0.1, spread), other, PIDS)
        widths.append(made.high - made.low)
    assert widths[0] < widths[1] < widths[2]
    same = [np.full(len(PIDS), 0.6 + shift) for shift in (0, 0.1)]
    made = paired_difference(same, other[:2], PIDS)
    assert (made.low, made.high) == pytest.approx((0.1, 0.2))


def test_queries_without_a_positive_take_no_part_and_seeds_must_match() -> None:
    own, other = seeds(0.1, 0), [np.full(len(PIDS), 0.5)] * 5
    own = [np.where(PIDS == 3, np.nan, x) for x in own]
    assert paired_difference(own, other, PIDS).mean == pytest.approx(
        np.nanmean(own) - 0.5, abs=1e-12
    )
    with pytest.raises(ValueError, match="5 and 4 seeds"):
        paired_difference(own, other[:4], PIDS)


def ablation(gains: dict[str, float]) -> Ablation:
    """Variants whose features find better and better."""
    variants = {name: {"says": name, "after": None} for name in gains}
    names = list(gains)
    grid = Grid.model_validate({"full": names[-1], "plain": names[0], "variants": variants})
    centres = np.random.default_rng(9).standard_normal((30, 16))
    measured = []
    for name, gain in gains.items():
        for seed in range(3):
            rng = np.random.default_rng(seed)

            def some(camid: int, gain: float = gain, rng=rng) -> Embeddings:
                x = gain * centres[PIDS] + rng.standard_normal((len(PIDS), 16))
                masks = {"v": rng.random(x.shape).astype(np.float32)}
                camids = np.full(len(PIDS), camid)
                paths = [str(i) for i in range(len(PIDS))]
                return Embeddings({"v": x.astype(np.float32)}, masks, PIDS, camids, paths)

            ranked = {"occluded": rank_by_mode(some(0), some(1), seed)}
            measured.append(Measured(name, seed, ranked, {"occluded": PIDS}, {}, 1.0, "0", []))
    return Ablation("dpmpp ablate", grid, measured, {}, {"x 0": "it broke"}, {"train": 1})


def test_the_table_says_who_is_ahead_and_by_how_much() -> None:
    made = ablation({"plain": 0.2, "better": 0.8})
    files = render_ablation(made)
    table = files[TABLE].decode()
    [row] = [line for line in table.splitlines() if line.startswith("| better | better |")]
    gain = made.gain("occluded", ("better", "masked"), ("plain", "masked"))
    assert gain is not None and gain.beyond_noise
    assert f"**+{100 * gain.mean:.1f} ± {100 * gain.std:.1f}** [+{100 * gain.low:.1f}" in row
    assert "- x 0: it broke" in table
    assert files["ablation.png"].startswith(b"\x89PNG") and "robustness.png" not in files


def test_csv_and_json_hold_the_same_numbers() -> None:
    made = ablation({"plain": 0.2, "better": 0.8})
    values, files = collect_by_variant(made), render_ablation(made)
    rows = list(csv.DictReader(io.StringIO(files["table.csv"].decode())))
    assert len(rows) == 2 * 3 * len(MODES)
    for row in rows:
        shown = values[row["variant"]]["occluded"][row["mode"]]["mAP"][int(row["seed"])]
        assert float(row["mAP"]) == pytest.approx(shown, abs=1e-6)
    assert json.loads(files["table.json"])["variants"] == values
