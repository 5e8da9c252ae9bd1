"""The inspection cache: what it keeps, what it drops, what damage does."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmpp_core.data.inspection import UNREADABLE
from pipelines.runtime.storage import Storage
from pipelines.stages import inspection_cache as inspected
from pipelines.stages.inspection_cache import CACHE_SCHEMA, FILE, FILE_SCHEMA, InspectionCache

State = tuple[str, int, int]  # path, size, time of change


def rows(*states: State, reason: str = "") -> pa.Table:
    found = {"width": 8, "height": 8, "bytes": 1, "sha256": "", "reason": reason, "detail": ""}
    named = [dict(zip(FILE, state, strict=True)) | found for state in states]
    return pa.Table.from_pylist(named, CACHE_SCHEMA)


def files(*states: State) -> pa.Table:
    return rows(*states).select(FILE).cast(FILE_SCHEMA)


def states(table: pa.Table) -> list[State]:
    return sorted((row["path"], row["size"], row["mtime_ns"]) for row in table.to_pylist())


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("inspected/*/part-*.parquet"))


@pytest.fixture
def cache(tmp_path: Path) -> InspectionCache:
    return InspectionCache(Storage(str(tmp_path)), "/data")


STATES = st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 1))


@settings(max_examples=60, deadline=None)
@given(
    known=st.lists(st.lists(STATES, max_size=4), max_size=4),
    there=st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(0, 2), st.integers(0, 1))),
)
def test_what_is_kept_is_what_was_known_of_the_files_as_they_are(
    known: list[list[State]], there: dict[str, tuple[int, int]]
) -> None:
    with TemporaryDirectory() as folder:
        cache = InspectionCache(Storage(folder), "/data")
        for part in known:
            cache.add(rows(*part))
        now = [(path, *state) for path, state in there.items()]
        expected = sorted({state for part in known for state in part} & set(now))
        assert states(cache.keep(files(*now))) == expected
        assert states(cache.read()) == expected
        assert states(cache.keep(files(*now))) == expected


def test_a_record_of_another_folder_is_another_one(tmp_path: Path, cache: InspectionCache) -> None:
    cache.add(rows(("a", 1, 1)))
    other = InspectionCache(Storage(str(tmp_path)), "/data2")
    assert states(other.read()) == []
    cache.clear()
    assert states(cache.read()) == []


def test_files_that_could_not_be_read_are_tried_again(cache: InspectionCache) -> None:
    cache.add(rows(("a", 1, 1), reason=UNREADABLE))
    cache.add(rows(("b", 1, 1), reason="truncated"))
    assert states(cache.keep(files(("a", 1, 1), ("b", 1, 1)))) == [("b", 1, 1)]


def test_nothing_is_written_where_all_is_true(tmp_path: Path, cache: InspectionCache) -> None:
    cache.add(rows(("a", 1, 1)))
    cache.add(rows(("b", 1, 1)))
    before = parts(tmp_path)
    cache.keep(files(("a", 1, 1), ("b", 1, 1), ("new", 1, 1)))
    assert parts(tmp_path) == before


def test_many_parts_become_few(
    tmp_path: Path, cache: InspectionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspected, "MAX_PARTS", 4)
    monkeypatch.setattr(inspected, "PART_ROWS", 3)
    every = [(name, 1, 1) for name in "abcde"]
    for state in every:
        cache.add(rows(state))
    assert states(cache.keep(files(*every))) == every
    assert len(parts(tmp_path)) == 2 and states(cache.read()) == every


def test_what_a_killed_write_left_is_no_part_and_goes(
    tmp_path: Path, cache: InspectionCache
) -> None:
    cache.add(rows(("a", 1, 1)))
    half = parts(tmp_path)[0].with_name(".part-1.parquet.partial")
    half.write_bytes(b"half")
    assert states(cache.read()) == states(cache.keep(files(("a", 1, 1)))) == [("a", 1, 1)]
    assert not half.exists() and len(parts(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_a_damaged_part_is_named_and_taken_away(
    tmp_path: Path, cache: InspectionCache, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache.add(rows(("a", 1, 1)))
    (broken,) = parts(tmp_path)
    cache.add(rows(("b", 1, 1)))
    data = bytearray(broken.read_bytes())
    if damage == "cut":
        data = data[:-9]
    elif damage == "flip":
        data[data.index(b"PAR1", 4) // 8] ^= 0xFF  # in a page, not in the footer
    else:
        data = bytearray(b"path,size\n")
    broken.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert states(cache.keep(files(("a", 1, 1), ("b", 1, 1)))) == [("b", 1, 1)]
    assert broken.name in caplog.text and "inspected again" in caplog.text
    assert not broken.exists()
