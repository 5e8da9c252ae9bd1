"""The bench that asks whether masks follow the visible body finds those that do, and no others."""

import numpy as np
import pytest

from dpmpp_core.retrieval import Embeddings
from tests.bench.mask_following import clean_twins, following, gain_table, groups, spearman

PEOPLE, EACH = 20, 4


@pytest.fixture
def notes():
    rng = np.random.default_rng(0)
    count = PEOPLE * EACH
    seen = rng.uniform(0.4, 0.9, count)
    return {
        "person": np.repeat(np.arange(PEOPLE), EACH),
        "occluder": rng.choice(["umbrella", "wall", "van", "gate"], count),
        "visible": rng.random((count, 8)),
        "rows": np.array([{"visible_share": share} for share in seen], dtype=object),
    }


def embedded(masks, folder, names):
    zero = np.zeros(len(masks), np.int64)
    paths = [f"{folder}/{name}" for name in names]
    return Embeddings({"x": masks}, {"x": masks.astype(np.float32)}, zero, zero, paths)


def measured(masks, notes, names=None):
    names = range(len(masks)) if names is None else names
    whole = embedded(np.hstack([np.ones((len(masks), 8)), np.ones((len(masks), 1))]), "h", names)
    return following(embedded(masks, "q", range(len(masks))), whole, notes)


def test_a_mask_made_of_the_visible_body_follows_it_and_a_random_one_does_not(notes):
    count = len(notes["visible"])
    made_of_it = np.hstack([notes["visible"], np.ones((count, 1))])
    found = measured(made_of_it, notes)
    assert set(found) == {"x, same person", "x, same occluder", "x, clean twin"}
    for figure in found.values():
        assert figure["visible body"] > 0.8
        assert abs(figure["dealt"]) < 0.2
    drawn = measured(np.random.default_rng(1).random((count, 9)), notes)
    assert all(abs(figure["visible body"]) < 0.3 for figure in drawn.values())
    assert measured(np.full((count, 9), 0.5), notes) == {}  # no mask, nothing to follow


def test_pairs_are_of_one_person_or_of_one_occluder_never_both(notes):
    found = measured(np.hstack([notes["visible"]] * 2)[:, :9], notes)
    person, kind = (notes[n][:, None] == notes[n] for n in ("person", "occluder"))
    assert found["x, same person"]["pairs"] == (person & ~kind).sum() // 2
    assert found["x, same occluder"]["pairs"] == (kind & ~person).sum() // 2


def test_twins_bear_the_same_name_or_are_none(notes):
    count = len(notes["visible"])
    query = embedded(np.ones((count, 9)), "q", range(count))
    back = embedded(np.ones((count, 9)), "h", range(count)[::-1])
    assert np.array_equal(clean_twins(query, back), np.arange(count)[::-1])
    assert len(clean_twins(query, embedded(np.ones((count, 9)), "h", range(1, count + 1)))) == 0


def test_rank_correlation_with_ties():
    one = np.array([1.0, 2.0, 2.0, 3.0])
    assert spearman(one, np.exp(one)) == pytest.approx(1)
    assert spearman(one, -one) == pytest.approx(-1)
    # By hand: ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4).
    assert spearman(one, np.array([0.0, 1.0, 5.0, 9.0])) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_gains_are_told_for_each_part_and_fifth(notes):
    found = groups(notes)
    parts = {"top hidden", "bottom hidden", "side hidden"}
    assert parts < set(found) and len(found) == 1 + len(parts) + 5
    fifths = [rows for name, rows in found.items() if name.endswith("% hidden")]
    assert (np.sum(fifths, axis=0) == 1).all()
    own = np.random.default_rng(0).random(len(notes["person"]))
    modes = {"masked": own, "unmasked": own - 0.02, "permuted": own - 0.01, "static": own}
    lines = gain_table(modes, notes)
    assert len(lines) == 2 + len(found)
    assert "+2.00 [+2.00, +2.00] | +1.00 [+1.00, +1.00] | +0.00 [+0.00, +0.00]" in lines[2]
