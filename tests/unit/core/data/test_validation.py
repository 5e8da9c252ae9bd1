"""A validation set out of training identities."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.validation import MIN_OCCLUSION_RATIO, hold_out
from dpmpp_core.errors import DataError
from tests.support.data import row


def manifest(cameras: dict[int, list[int]]) -> Manifest:
    """Training images of each person from the cameras given, and a test set of two others."""
    rows = [
        row(f"train/{pid}-{i}", pid, camid, "train")
        for pid, own in cameras.items()
        for i, camid in enumerate(own)
    ]
    for pid in (900, 901):
        rows += [row(f"q/{pid}", pid, 1, "query"), row(f"g/{pid}", pid, 2, "gallery")]
    return Manifest.build("root", "market1501", rows, [])


def unknown(whole: Manifest) -> np.ndarray:
    return np.full(len(whole.images), np.nan)


CAMERAS = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@given(st.lists(CAMERAS, min_size=8, max_size=16), st.floats(0.05, 0.4), st.integers(0, 5))
def test_no_test_image_comes_in_and_every_query_has_another_camera(
    persons: list[list[int]], share: float, seed: int
) -> None:
    whole = manifest({**dict(enumerate(persons)), 800: [1, 1]})
    try:
        held = hold_out(whole, share, seed, unknown(whole))
    except DataError as error:
        assert "two cameras" in str(error)
        return
    train, query, gallery = (held.subset(name) for name in ("train", "query", "gallery"))
    trained = set(whole.subset("train")["path"].to_pylist())
    assert set(held.images["path"].to_pylist()) == trained
    assert not set(train["pid"].to_pylist()) & set(query["pid"].to_pylist())
    assert set(query["pid"].to_pylist()) == set(gallery["pid"].to_pylist())
    for item in query.to_pylist():
        others = gallery.filter(pc.equal(gallery["pid"], item["pid"]))["camid"].to_pylist()
        assert any(camid != item["camid"] for camid in others)
    again = hold_out(whole, share, seed, unknown(whole))
    assert again.dataset_id == held.dataset_id


def test_what_is_held_out_of_a_person_does_not_depend_on_others() -> None:
    cameras = {pid: [1, 2, 3, 1, 2, 3] for pid in range(8)}
    seen = []
    for extra in ({}, {50: [1]}):  # seen by one camera: cannot be held out
        whole = manifest(cameras | extra)
        held = hold_out(whole, 0.3, 0, unknown(whole))
        seen.append(held.subset("query")["path"].to_pylist())
    assert seen[0] == seen[1]


def test_a_query_known_to_be_hidden_counts_as_occluded() -> None:
    whole = manifest({pid: [1, 2] for pid in range(8)})
    names = whole.images["path"].to_pylist()
    hidden = np.array([MIN_OCCLUSION_RATIO if int(name[-1]) else 0.0 for name in names])
    held = hold_out(whole, 0.5, 0, hidden)
    assert len(held.subset("query")) == 4
    for item in held.subset("query").to_pylist():
        assert item["occluded"] == item["path"].endswith("1")
    assert not pc.any(held.subset("gallery")["occluded"]).as_py()
    assert held.images.schema == whole.images.schema and isinstance(held.images, pa.Table)


def test_too_few_identities_are_refused_with_the_arithmetic() -> None:
    whole = manifest({0: [1, 2], 1: [1, 2], 2: [1]})
    with pytest.raises(DataError, match="of 3 training identities 2 are seen by two cameras"):
        hold_out(whole, 0.5, 0, unknown(whole))
