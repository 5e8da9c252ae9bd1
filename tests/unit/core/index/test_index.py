"""The index on disk: what is put in is found again, nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dpmpp_core.errors import DataError, WeightsError
from dpmpp_core.index import (
    ROW_SCHEMA,
    STORED,
    GalleryIndex,
    ModelVersion,
    RowFilter,
    describe_index,
    gallery,
    merge_results,
    search,
)
from dpmpp_core.retrieval import masked_similarity, sketches

MODEL = ModelVersion(weights_sha256="a" * 64, spaces={"visual": 6, "bands": 8})
OTHER = MODEL.model_copy(update={"weights_sha256": "b" * 64})


def rows_of(names, pids=None, camids=None, times=None, version=0):
    count = len(names)
    columns = {
        "image": list(names),
        "sha256": [f"{name}-{version}".ljust(64, "0") for name in names],
        "bytes": [1] * count,
        "mtime_ns": [version] * count,
        "pid": pids or [None] * count,
        "camid": camids or [None] * count,
        "time": times or [None] * count,
    }
    return pa.table(columns, schema=ROW_SCHEMA)


def features_for(count, seed=0, levels=None):
    """Random features; with few `levels` many are equal."""
    rng = np.random.default_rng(seed)
    found = {}
    for space, width in MODEL.spaces.items():
        values = rng.normal(size=(count, width))
        if levels:
            values = np.round(values * levels) / levels
            values[~values.any(axis=1)] = 1
        found[space] = values.astype(np.float32)
    return found


def masks_for(count, seed=9):
    rng = np.random.default_rng(seed)
    sizes = MODEL.spaces.items()
    return {
        space: rng.uniform(0.01, 1, (count, width)).astype(np.float32) for space, width in sizes
    }


@pytest.fixture
def index(tmp_path):
    return GalleryIndex.create(tmp_path / "index", MODEL, "models/m")


def names_in(index):
    return index.images()["image"].to_pylist()


@pytest.mark.parametrize("stored", STORED)
def test_what_is_put_in_is_found_again(stored, tmp_path):
    index = GalleryIndex.create(tmp_path / "index", MODEL, "m", stored)
    names, features = [f"{i}.jpg" for i in range(40)], features_for(40)
    index.append(
        MODEL, rows_of(names[:25], pids=list(range(25))), {s: x[:25] for s, x in features.items()}
    )
    index = GalleryIndex.open(index.folder)
    index, added = index.append(
        MODEL, rows_of(names[25:]), {s: x[25:] for s, x in features.items()}
    )
    assert added == (15, 0, 0)
    found = search(GalleryIndex.open(index.folder), features, None, 1)
    assert found.positions[:, 0].tolist() == list(range(40))
    assert found.scores[:, 0] == pytest.approx(
        1, abs=2e-3 if stored in ("int8", "bfloat16") else 1e-6
    )
    taken = index.take(np.array([30, 3, 3]))
    assert taken["image"].to_pylist() == ["30.jpg", "3.jpg", "3.jpg"]
    assert taken["pid"].to_pylist() == [None, 3, 3]


def test_int8_beside_float32_finds_what_float32_finds(tmp_path):
    found = {}
    for stored in ("float32", "int8", "int8+float32"):
        index = GalleryIndex.create(tmp_path / stored, MODEL, "m", stored)
        features = features_for(600, seed=3)
        # Copies that int8 cannot tell apart.
        near = {s: x[:200] + 1e-4 * features_for(200, seed=4)[s] for s, x in features.items()}
        index, _ = index.append(MODEL, rows_of([f"{i}.jpg" for i in range(600)]), features)
        index, _ = index.append(MODEL, rows_of([f"near{i}.jpg" for i in range(200)]), near)
        index = index.delete(images=["5.jpg"])[0].compact()
        found[stored] = search(index, features_for(20, seed=5), masks_for(20), 30)
        codes = next(index.blocks()).features["bands"]
        assert codes.dtype == (torch.float32 if stored == "float32" else torch.int8)
    whole, alone, both = found.values()
    assert np.array_equal(both.positions, whole.positions)
    assert np.array_equal(both.scores, whole.scores)
    assert not np.array_equal(alone.positions, whole.positions)


def test_opening_reads_no_segment(index):
    index.append(MODEL, rows_of(["a"]), features_for(1))
    (file,) = (index.folder / "segments").iterdir()
    file.write_bytes(b"not arrow")
    opened = GalleryIndex.open(index.folder)
    assert len(opened) == 1
    with pytest.raises(DataError, match=rf"{file.name} is damaged"):
        search(opened, features_for(1), None, 1)


def test_features_are_mapped_not_copied(index):
    index, _ = index.append(MODEL, rows_of(["a", "b"]), features_for(2))
    first, second = (next(iter(index.blocks())).features["bands"] for _ in range(2))
    assert first.is_contiguous()
    assert {type(first.untyped_storage()), type(second.untyped_storage())} == {torch.UntypedStorage}
    (file,) = (index.folder / "segments").iterdir()
    maps = Path("/proc/self/maps")
    if maps.exists():
        spans = [line.split()[0] for line in maps.read_text().splitlines() if file.name in line]
        inside = [
            int(low, 16) <= first.data_ptr() < int(high, 16)
            for low, high in (span.split("-") for span in spans)
        ]
        assert any(inside)


def test_the_same_picture_is_added_once_and_a_changed_one_takes_its_place(index):
    index, _ = index.append(MODEL, rows_of(["a", "b"]), features_for(2))
    index, added = index.append(MODEL, rows_of(["b", "c"]), features_for(2, seed=1))
    assert added == (1, 0, 1)
    index, added = index.append(MODEL, rows_of(["b"], version=1), features_for(1, seed=2))
    assert added == (1, 1, 0)
    assert names_in(index) == ["a", "c", "b"]
    assert index.deleted == 1
    best_of_b = search(index, features_for(1, seed=2), None, 1)
    assert index.take(best_of_b.positions[0])["mtime_ns"].to_pylist() == [1]


def test_a_row_takes_new_labels_and_keeps_its_features(index):
    features = features_for(4)
    index, _ = index.append(MODEL, rows_of("abcd", [1, 2, None, 4], [1, 1, 1, 1]), features)
    labels = pa.table(
        {"image": ["a", "b", "c", "x"], "pid": [1, 7, 8, 9], "camid": [None, None, 5, 9],
         "time": [None, 60, None, 9]},
        schema=pa.schema([ROW_SCHEMA.field(n) for n in ("image", "pid", "camid", "time")]),
    )  # fmt: skip
    index, changed = index.relabel(labels)
    assert changed == 2
    found = {row["image"]: row for row in index.images(ROW_SCHEMA.names).to_pylist()}
    told = {name: (row["pid"], row["camid"], row["time"]) for name, row in found.items()}
    assert told == {"a": (1, 1, None), "b": (7, 1, 60), "c": (8, 5, None), "d": (4, 1, None)}
    best = search(GalleryIndex.open(index.folder), features, None, 1)
    assert index.take(best.positions[:, 0])["image"].to_pylist() == list("abcd")
    before = index.manifest
    index, changed = index.relabel(labels)
    assert changed == 0 and index.manifest == before


def test_deleted_rows_are_found_no_more_and_compaction_gives_their_space_back(index):
    rows = rows_of(list("abcdef"), pids=[1, 1, 2, None, 3, 3])
    features = features_for(6)
    index, _ = index.append(MODEL, rows, features)
    index, gone = index.delete(images=["d", "nobody.jpg"], pids=[1])
    assert gone == 3
    assert (len(index), index.deleted) == (3, 3)
    found = search(index, features, None, 6)
    assert set(found.positions[0].tolist()) == {2, 4, 5, -1}
    assert np.isnan(found.scores[0, 3:]).all()
    before = index.bytes
    compacted = index.compact()
    assert (names_in(compacted), compacted.deleted) == (["c", "e", "f"], 0)
    assert compacted.bytes < before
    again = search(compacted, features, None, 3)
    assert np.array_equal(again.scores, found.scores[:, :3])
    index, gone = GalleryIndex.open(index.folder).delete(pids=[2, 3])
    assert (gone, len(index), index.manifest.segments) == (3, 0, ())
    assert search(index, features, None, 2).positions.tolist() == [[-1, -1]] * 6


def test_many_segments_become_few_full_ones_in_the_same_order(index, monkeypatch):
    monkeypatch.setattr(gallery, "SEGMENT_ROWS", 8)
    monkeypatch.setattr(gallery, "BLOCK", 3)
    for start in range(0, 27, 3):
        index, _ = index.append(
            MODEL, rows_of([str(i) for i in range(start, start + 3)]), features_for(3, start)
        )
    index, _ = index.delete(images=["4"])
    full = index.compact()
    assert [s.rows for s in full.manifest.segments] == [8, 8, 8, 2]
    assert names_in(full) == [str(i) for i in range(27) if i != 4]
    again = full.compact()
    assert again.manifest == full.manifest


def test_features_of_another_model_are_refused_by_name(index):
    with pytest.raises(WeightsError, match=r"aaaaaaaaaaaa .*\(models/m\).* of bbbbbbbbbbbb"):
        index.append(OTHER, rows_of(["a"]), features_for(1))
    with pytest.raises(WeightsError, match="the query is of bbbbbbbbbbbb"):
        index.check(OTHER, "the query")
    index.check(MODEL, "the query")


def test_a_feature_without_direction_is_refused_and_nothing_is_written(index):
    features = features_for(2)
    features["visual"][1] = 0
    with pytest.raises(DataError, match="space 'visual'"):
        index.append(MODEL, rows_of(["a", "b"]), features)
    assert list((index.folder / "segments").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "format None"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1, "model": 3}', "damaged"),
    ],
)
def test_a_damaged_index_is_refused(index, text, says):
    (index.folder / "index.json").write_text(text)
    with pytest.raises(DataError, match=says):
        GalleryIndex.open(index.folder)


def test_no_index_is_made_in_a_folder_with_other_things(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DataError, match="not empty"):
        GalleryIndex.create(tmp_path, MODEL, "m")
    with pytest.raises(DataError, match="not an index"):
        GalleryIndex.open(tmp_path)


def test_adders_side_by_side_lose_nothing_and_add_nothing_twice(index):
    def add(first):
        names = [f"{i}.jpg" for i in range(first, first + 30)]
        for start in range(0, 30, 5):
            part = names[start : start + 5]
            index.append(MODEL, rows_of(part), features_for(5, seed=start))

    threads = [threading.Thread(target=add, args=(first,)) for first in (0, 15, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = names_in(GalleryIndex.open(index.folder))
    assert sorted(names) == sorted(f"{i}.jpg" for i in range(60))


def killed(work, call, when):
    """Do `work` in a process that is killed before or after the n-th file takes its place."""
    child = os.fork()
    if child == 0:
        replace, left = os.replace, [call]

        def die(source, target):
            left[0] -= 1
            if left[0] == 0:
                if when == "after":
                    replace(source, target)
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = die
        try:
            work()
        finally:
            os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def files_named(index):
    return {name for segment in index.manifest.segments for name in segment.files}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_adder_killed_at_any_point_leaves_the_old_index_or_the_new(index, call, when):
    """Its three files are tombstones, the segment, index.json; SIGKILL before or after each."""
    index, _ = index.append(MODEL, rows_of(["a", "b"]), features_for(2))
    more = MODEL, rows_of(["b", "new"], version=1), features_for(2, seed=5)
    assert killed(lambda: index.append(*more), call, when)
    left = GalleryIndex.open(index.folder)
    committed = (call, when) == (3, "after")
    assert names_in(left) == (["a", "b", "new"] if committed else ["a", "b"])
    assert search(left, features_for(2), None, 1).positions.shape == (2, 1)

    again, added = left.append(*more)
    assert added == ((0, 0, 2) if committed else (2, 1, 0))
    assert names_in(again) == ["a", "b", "new"]
    assert {file.name for file in (index.folder / "segments").iterdir()} == files_named(again)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_killed_compaction_loses_nothing(index, call, when):
    for name in "abc":
        index, _ = index.append(MODEL, rows_of([name]), features_for(1, ord(name)))
    assert killed(index.compact, call, when)
    left = GalleryIndex.open(index.folder)
    assert names_in(left) == ["a", "b", "c"]
    compacted = left.compact()
    assert names_in(compacted) == ["a", "b", "c"]
    assert {file.name for file in (index.folder / "segments").iterdir()} == files_named(compacted)


def brute_force(index, query, masks, k, keep):
    """All scores in float64, sorted whole; ties by position."""
    parts = [block for block in index.blocks()]
    g = {s: torch.cat([b.features[s] for b in parts]).double() for s in MODEL.spaces}
    q = {s: torch.from_numpy(x).double() for s, x in query.items()}
    m = masks and {s: torch.from_numpy(x).double() for s, x in masks.items()}
    scores = masked_similarity(q, m, g).numpy()
    order = []
    for line in np.round(scores * 2**24):
        ranked = [i for i in np.lexsort((np.arange(len(line)), -line)) if keep[i]]
        order.append(([*ranked, *[-1] * k])[:k])
    return np.array(order), scores


@given(data=st.data())
@settings(max_examples=30)
def test_search_is_the_brute_force_ranking_however_the_index_is_cut(data, tmp_path_factory):
    count = data.draw(st.integers(1, 60), "rows")
    k = data.draw(st.integers(1, 70), "k")
    levels = data.draw(st.sampled_from([None, 1]), "levels")  # 1: many equal vectors
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=6), "cuts") | {count})
    masked = data.draw(st.booleans(), "masked")
    seed = data.draw(st.integers(0, 99), "seed")
    index = GalleryIndex.create(tmp_path_factory.mktemp("i") / "index", MODEL, "m")
    features = features_for(count, seed, levels)
    rng = np.random.default_rng(seed)
    times = [None if t < 0 else int(t) for t in rng.integers(-1, 20, count)]
    camids = [None if c < 0 else int(c) for c in rng.integers(-1, 4, count)]
    rows = rows_of([str(i) for i in range(count)], camids=camids, times=times)
    start = 0
    for end in cuts:
        index, _ = index.append(
            MODEL, rows.slice(start, end - start), {s: x[start:end] for s, x in features.items()}
        )
        start = end
    dead = data.draw(st.sets(st.integers(0, count - 1), max_size=5), "deleted")
    index, _ = index.delete(images=[str(i) for i in dead])
    if len(index.manifest.segments) < len(cuts):
        return  # a segment without rows is dropped, which moves the positions
    where = data.draw(
        st.sampled_from([RowFilter(), RowFilter(cameras=[1, 2]), RowFilter(since=5, until=15)])
    )
    keep = [
        i not in dead
        and (where.cameras is None or camids[i] in where.cameras)
        and (where.since is None or (times[i] is not None and 5 <= times[i] < 15))
        for i in range(count)
    ]
    query, masks = features_for(3, seed + 1, levels), masks_for(3) if masked else None
    found = search(index, query, masks, k, where)
    order, scores = brute_force(index, query, masks, k, keep)
    assert np.array_equal(found.positions, order)
    there = found.positions >= 0
    chosen = np.take_along_axis(scores, np.maximum(order, 0), axis=1)
    assert found.scores[there] == pytest.approx(chosen[there], abs=1e-7)
    assert np.isnan(found.scores[~there]).all()

    files = [segment.file for segment in index.manifest.segments]
    shards = [set(files[i::3]) for i in range(3)]
    merged = merge_results([search(index, query, masks, k, where, shard) for shard in shards], k)
    assert np.array_equal(merged.positions, found.positions)
    assert np.array_equal(merged.scores, found.scores, equal_nan=True)


def test_thousands_of_equal_vectors_are_listed_in_the_order_they_were_added(index, monkeypatch):
    monkeypatch.setattr(gallery, "BLOCK", 700)
    one = features_for(1)
    same = {s: np.repeat(x, 2000, axis=0) for s, x in one.items()}
    index, _ = index.append(MODEL, rows_of([str(i) for i in range(2000)]), same)
    found = search(index, one, masks_for(1), 30)
    assert found.positions[0].tolist() == list(range(30))


@pytest.fixture
def few_candidates(monkeypatch):
    """So that small indexes do not have all of their rows as candidates."""
    monkeypatch.setattr(sketches, "MIN_CANDIDATES", 40)


def people_for(count, seed=0):
    """Twenty persons and the pictures around them."""
    centres, own = features_for(20, seed=77), features_for(count, seed)
    return {s: centres[s][np.arange(count) % 20] + 0.4 * x for s, x in own.items()}


def filled(index, count, seed=0, name="{}.jpg"):
    names = [name.format(i) for i in range(count)]
    rows = rows_of(names, camids=[i % 3 for i in range(count)], pids=[i % 20 for i in range(count)])
    return index.append(MODEL, rows, people_for(count, seed))[0]


def both_ways(index, k=10, where=None):
    asked = people_for(20, seed=5), masks_for(20)
    exact = search(index, *asked, k, where)
    return exact, search(index, *asked, k, where, approximate=True)


@pytest.mark.parametrize("stored", STORED)
def test_an_approximate_answer_has_exact_scores_and_nearly_all_of_the_best(
    stored, tmp_path, few_candidates
):
    index = GalleryIndex.create(tmp_path / "index", MODEL, "m", stored)
    index = filled(filled(index, 600), 300, seed=1, name="more{}.jpg").compact(approximate=True)
    exact, found = both_ways(index)
    assert (index.sketched, exact.scored, found.scored) == (900, 900, 40)
    hits = (exact.positions[:, :, None] == found.positions[:, None]).any(2)
    assert hits.mean() > 0.9
    same = exact.positions == found.positions
    assert np.array_equal(exact.scores[same], found.scores[same])
    again = both_ways(GalleryIndex.open(index.folder))[1]
    assert np.array_equal(again.positions, found.positions)
    assert np.array_equal(again.scores, found.scores)
    exact, found = both_ways(index, k=900)  # all rows are candidates
    assert np.array_equal(exact.positions, found.positions)


def test_an_approximate_search_misses_no_new_row_and_finds_no_deleted_one(index, few_candidates):
    index = filled(index, 600).compact(approximate=True)
    first = {space: x[:1] for space, x in people_for(20, seed=5).items()}
    index, _ = index.append(MODEL, rows_of(["new"]), first)
    assert (index.sketched, len(index)) == (600, 601)
    exact, found = both_ways(index)
    assert found.scored == 41
    assert found.positions[0, 0] == exact.positions[0, 0] == 600
    best_name = index.take(exact.positions[1, :1])["image"].to_pylist()
    index, _ = index.delete(images=best_name)
    assert index.sketched == 599
    assert exact.positions[1, 0] not in both_ways(index)[1].positions
    exact, found = both_ways(index, where=RowFilter(cameras=[1]))
    assert {row["camid"] for row in index.take(found.positions.ravel()).to_pylist()} == {1}
    parts = [
        search(index, people_for(20, seed=5), masks_for(20), 10, None, {segment.file}, True)
        for segment in index.manifest.segments
    ]
    assert np.array_equal(merge_results(parts, 10).positions, both_ways(index)[1].positions)
    compacted = index.compact()
    assert compacted.sketched == len(compacted) == 600
    nothing = both_ways(compacted, where=RowFilter(cameras=[9]))[1]
    assert (nothing.positions == -1).all() and nothing.scored == 0


def test_an_index_without_sketches_is_searched_exactly(index):
    index = filled(index, 50).compact()
    exact, found = both_ways(index)
    assert index.sketched == 0
    assert np.array_equal(exact.positions, found.positions) and found.scored == 50


@pytest.mark.parametrize("harm", ["cut", "gone", "other"])
def test_damaged_sketches_are_named_and_written_again(index, harm):
    index = filled(index, 50).compact(approximate=True)
    _, found = both_ways(index)
    (file,) = (index.folder / "segments").glob("*.safetensors")
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif harm == "gone":
        file.unlink()
    else:
        save_file({"codes": torch.zeros(3), "directions": torch.zeros(3)}, file)
    opened = GalleryIndex.open(index.folder)
    with pytest.raises(DataError, match=rf"{file.name} .*`dpmpp index compact --approximate`"):
        both_ways(opened)
    assert search(opened, people_for(1), None, 1).positions.shape == (1, 1)
    again = both_ways(opened.compact(approximate=True))[1]
    assert np.array_equal(again.positions, found.positions)


def test_sketches_of_another_format_are_named(index):
    index = filled(index, 50).compact(approximate=True)
    file = index.folder / "index.json"
    manifest = json.loads(file.read_text())
    manifest["segments"][0]["sketches"]["format"] = 2
    file.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="format 2, this code reads 1"):
        both_ways(GalleryIndex.open(index.folder))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_killed_while_sketches_are_written_nothing_is_lost(index, call, when):
    """Its three files are the segment, its sketches, index.json."""
    for name in "abc":
        index, _ = index.append(MODEL, rows_of([name]), features_for(1, ord(name)))
    assert killed(lambda: index.compact(approximate=True), call, when)
    left = GalleryIndex.open(index.folder)
    assert names_in(left) == ["a", "b", "c"]
    assert left.sketched == (3 if (call, when) == (3, "after") else 0)
    compacted = left.compact(approximate=True)
    assert compacted.sketched == 3
    assert {file.name for file in (index.folder / "segments").iterdir()} == files_named(compacted)


def test_info_tells_what_is_inside(index):
    rows = rows_of(["a", "b", "c"], pids=[1, 1, None], camids=[4, None, 2], times=[50, None, 7])
    index, _ = index.append(MODEL, rows, features_for(3))
    index, _ = index.delete(images=["c"])
    told = describe_index(index)
    assert told["images"] == 2
    assert (told["persons"], told["cameras"], told["deleted"]) == (1, [4], 1)
    assert (told["first_time"], told["last_time"]) == (50, 50)
    json.dumps(told)
