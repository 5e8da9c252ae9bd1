"""From files on disk to the manifest: quarantine, usability, identity, storage."""

import hashlib
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpmpp_core.data import manifest as manifests
from dpmpp_core.data.files import Rejected
from dpmpp_core.data.manifest import (
    IMAGE_SCHEMA,
    QUARANTINE_SCHEMA,
    Manifest,
    load_split,
    read_manifest,
)
from dpmpp_core.data.published import PUBLISHED, compare_counts
from dpmpp_core.errors import DataError
from tests.support.data import row

ROWS = [
    row("train/1a", 1, 1, "train"),
    row("train/1b", 1, 2, "train"),
    row("train/2a", 2, 1, "train"),
    row("train/2b", 2, 2, "train"),
    row("query/3", 3, 1, "query"),
    row("query/4", 4, 1, "query"),
    row("gallery/3", 3, 2, "gallery"),
    row("gallery/4", 4, 2, "gallery"),
]


def build(*rows: dict[str, Any], layout: str = "market1501", **changes: Any) -> Manifest:
    return Manifest.build("root", layout, rows or ROWS, **{"rejected": [], **changes})


def quarantined(manifest: Manifest) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in manifest.quarantine.to_pylist()}


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG" if path.suffix == ".png" else "JPEG")
    path.write_bytes(buffer.getvalue())


def make_market(root: Path) -> None:
    names = [f"bounding_box_train/{pid:04}_c{cam}.jpg" for pid in (1, 2) for cam in (1, 2)]
    names += [f"query/{pid:04}_c1.jpg" for pid in (3, 4)]
    names += [f"bounding_box_test/{pid:04}_c2.jpg" for pid in (3, 4)]
    for seed, name in enumerate(names):
        write_image(root / name, seed)


def test_good_rows_become_the_tables_of_the_schema() -> None:
    manifest = build()
    assert manifest.images.schema == IMAGE_SCHEMA
    assert manifest.quarantine.schema == QUARANTINE_SCHEMA and not manifest.quarantine.num_rows
    assert manifest.subset("train")["path"].to_pylist() == [
        f"train/{n}" for n in ("1a", "1b", "2a", "2b")
    ]
    assert manifest.warnings == []


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(shuffle: random.Random) -> None:
    rows = [
        *ROWS,
        row("train/1c", 1, 1, "train", sha256="train/1a"),
        row("query/5", 3, 1, "query", reason="truncated", detail="cut"),
    ]
    expected = build(*rows)
    shuffle.shuffle(rows)
    assert build(*rows) == expected and build(*rows).dataset_id == expected.dataset_id


@pytest.mark.parametrize(
    "change", [{"pid": 2}, {"camid": 3}, {"sha256": "other"}, {"path": "train/1z"}]
)
def test_the_dataset_id_sees_every_label_and_content(change: dict[str, Any]) -> None:
    assert build({**ROWS[0], **change}, *ROWS[1:]).dataset_id != build().dataset_id


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_the_dataset_id_is_the_hash_of_the_rows_as_json_lines(names: list[str]) -> None:
    rows = [row(f"train/{name}", 7, 0, "train") for name in names]
    images = build(*ROWS, *rows).images.to_pylist()
    lines = [json.dumps(list(image.values())).encode() + b"\n" for image in images]
    assert build(*ROWS, *rows).dataset_id == hashlib.sha256(b"".join(lines)).hexdigest()


def test_the_dataset_id_is_the_one_of_earlier_versions() -> None:
    assert build().dataset_id == (
        "7e2766e3c9b7933a071ab679335ae8229a7720647865f40c70f07de73ba93fa0"
    )


def test_of_duplicates_the_first_by_path_is_kept() -> None:
    manifest = build(row("train/1c", 1, 1, "train", sha256="train/1a"), *ROWS)
    assert quarantined(manifest) == {"train/1c": "duplicate"}
    assert "train/1a" in manifest.quarantine["detail"][0].as_py()


def test_duplicates_with_two_labels_are_all_refused() -> None:
    manifest = build(row("train/2c", 2, 1, "train", sha256="train/1a"), *ROWS)
    assert quarantined(manifest) == {p: "conflicting_label" for p in ("train/1a", "train/2c")}
    assert "persons 1, 2" in manifest.quarantine["detail"][0].as_py()


def test_the_same_picture_in_two_sets_stays_and_is_warned_of_if_trained_on() -> None:
    twin = row("query_occluded/3", 3, 1, "query", occluded=True, sha256="query/3")
    assert quarantined(build(*ROWS, twin)) == {} and build(*ROWS, twin).warnings == []
    leak = row("gallery/9", 9, 2, "gallery", sha256="train/1a")
    manifest = build(*ROWS, leak)
    assert quarantined(manifest) == {} and "gallery/9" in manifest.warnings[0]


def test_a_person_who_loses_every_image_is_named() -> None:
    lost = [row(f"gallery/5{i}", 5, 2, "gallery", reason="truncated", detail="cut") for i in "ab"]
    manifest = build(*ROWS, *lost)
    assert quarantined(manifest)["gallery"] == "empty_identity"
    assert "person 5 of gallery lost every image: 2 truncated" in manifest.warnings[0]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda r: r["split"] != "train" or r["path"].endswith("a"), "no person of the training"),
        (lambda r: r["split"] != "query", "no query image"),
        (lambda r: r["split"] != "gallery", "no gallery image"),
    ],
)
def test_unusable_data_sets_are_refused(keep: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(*[r for r in ROWS if keep(r)])


def test_queries_need_gallery_images_from_another_camera() -> None:
    def changed(**change: int) -> list[dict[str, Any]]:
        return [r | change if r["split"] == "gallery" else r for r in ROWS]

    with pytest.raises(DataError, match=r"none of the 2 query persons .* \(persons 3, 4\)"):
        build(*changed(pid=8))
    with pytest.raises(DataError, match="own camera"):
        build(*changed(camid=1))
    some = [r for r in ROWS if r["path"] != "gallery/4"]
    assert "1 query persons have no gallery image" in build(*some).warnings[0]
    blind = [r | {"camid": 1} if r["path"] == "gallery/4" else r for r in ROWS]
    assert "query/4" in build(*blind).warnings[0]


def test_the_refusal_says_what_was_quarantined() -> None:
    rows = [
        r | {"reason": "truncated", "detail": "cut"} if r["split"] == "train" else r for r in ROWS
    ]
    with pytest.raises(DataError, match=r"Images kept: 4\. Quarantined: 4 truncated"):
        build(*rows)


@pytest.mark.parametrize("layout", ["occluded_reid", "market1501"])
def test_data_to_measure_on_needs_no_training_images(layout: str) -> None:
    manifest = build(*[r for r in ROWS if r["split"] != "train"], layout=layout)
    assert manifest.subset("train").num_rows == 0


def test_persons_in_both_splits_are_named() -> None:
    rows = [*ROWS, row("train/3c", 3, 3, "train"), row("train/3d", 3, 4, "train")]
    (warning,) = build(*rows).warnings
    assert "1 persons are in the training split and in query or gallery" in warning
    assert warning.endswith(": 3")
    assert build(*rows, layout="msmt17").warnings == []  # numbers each split by itself


def test_counts_are_by_split_and_query_set_without_distractors() -> None:
    extra = [
        row("gallery/0", 0, 6, "gallery"),
        row("query_occluded/3", 3, 1, "query", occluded=True),
    ]
    counts = build(*ROWS, *extra, rejected=[Rejected("x", "misnamed", "")]).counts()
    assert counts == {
        "train": {"images": 4, "identities": 2, "cameras": 2, "distractors": 0},
        "query_occluded": {"images": 1, "identities": 1, "cameras": 1, "distractors": 0},
        "query_holistic": {"images": 2, "identities": 2, "cameras": 1, "distractors": 0},
        "gallery": {"images": 3, "identities": 2, "cameras": 2, "distractors": 1},
        "quarantined": {"misnamed": 1},
    }


def test_subset_by_query_set_and_unknown_split() -> None:
    manifest = build(*ROWS, row("query_occluded/3", 3, 1, "query", occluded=True))
    assert manifest.subset("query", occluded=True)["path"].to_pylist() == ["query_occluded/3"]
    assert manifest.subset("query").num_rows == 3
    with pytest.raises(ValueError, match="unknown split 'test'"):
        manifest.subset("test")


def test_save_and_load_give_the_same_and_notice_a_mixture(tmp_path: Path) -> None:
    manifest = build(rejected=[Rejected("x", "misnamed", "why")])
    manifest.save(tmp_path / "a/b")
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == [
        "images.parquet",
        "manifest.json",
        "quarantine.parquet",
    ]
    assert Manifest.load(tmp_path / "a/b") == manifest
    build({**ROWS[0], "camid": 5}, *ROWS[1:]).save(tmp_path / "other")
    shutil.copy(tmp_path / "other/images.parquet", tmp_path / "a/b")
    with pytest.raises(DataError, match="do not belong together"):
        Manifest.load(tmp_path / "a/b")


@pytest.mark.parametrize("split", ["train", "query", "gallery"])
def test_one_split_is_read_without_the_others(
    tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "ROW_GROUP", 2)
    manifest = build()
    manifest.save(tmp_path)
    root, rows = load_split(tmp_path, split)
    assert root == manifest.root and rows == manifest.subset(split)
    for number, start in enumerate(range(0, 8, 2)):  # damage all that is not of this split
        if ROWS[start]["split"] != split:
            damage_group(tmp_path / "images.parquet", number)
    assert load_split(tmp_path, split)[1] == rows
    with pytest.raises(DataError, match="prepare the data again"):
        Manifest.load(tmp_path)


def damage_group(file: Path, number: int) -> None:
    column = pq.read_metadata(file).row_group(number).column(0)
    data = bytearray(file.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
    file.write_bytes(data)


@pytest.mark.parametrize("file", ["images.parquet", "quarantine.parquet", "manifest.json"])
def test_a_damaged_or_missing_part_is_a_data_error(tmp_path: Path, file: str) -> None:
    build().save(tmp_path)
    (tmp_path / file).write_bytes(b"{")
    with pytest.raises(DataError, match="prepare the data again"):
        Manifest.load(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match="prepare the data again"):
        Manifest.load(tmp_path)


def test_published_counts_are_compared_number_by_number() -> None:
    sentences = compare_counts(build(), "occluded_duke")
    assert "train: 4 images, published are 15,618 (15,614 fewer)" in sentences
    assert "2 cameras, published are 8" in sentences and len(sentences) == 7
    with pytest.raises(DataError, match="market1501, dukemtmc_reid"):
        compare_counts(build(), "market")


def test_published_counts_that_agree_give_no_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, "ours", {"train": (4, 2), "query": (2, 2), "gallery": (2, None)})
    assert compare_counts(build(), "ours") == []


def test_read_manifest_from_files_with_every_fault(tmp_path: Path) -> None:
    make_market(tmp_path)
    train = tmp_path / "bounding_box_train"
    whole = (train / "0001_c1.jpg").read_bytes()
    (train / "0001_c3.jpg").write_bytes(whole)
    (train / "0002_c3.jpg").write_bytes(whole[:-20])
    (train / "0002_c4.jpg").write_text("text")
    (train / "0002_c5.jpg").write_bytes(b"")
    (train / "holiday.jpg").write_bytes(whole)
    Image.new("RGB", (1, 1)).save(train / "0002_c6.png")
    (train / "0009").mkdir()
    (train / "loop").symlink_to(tmp_path)
    steps: list[tuple[int, int]] = []
    manifest = read_manifest(
        str(tmp_path), progress=lambda done, total: steps.append((done, total))
    )
    assert quarantined(manifest) == {
        f"bounding_box_train/{name}": reason
        for name, reason in {
            "0001_c3.jpg": "duplicate",
            "0002_c3.jpg": "truncated",
            "0002_c4.jpg": "not_an_image",
            "0002_c5.jpg": "empty_file",
            "0002_c6.png": "too_small",
            "0009": "empty_folder",
            "holiday.jpg": "misnamed",
            "loop": "symlink_loop",
        }.items()
    }
    assert manifest.images.num_rows == 8 and steps[-1] == (13, 13)


def test_the_dataset_id_stays_when_the_folder_moves(tmp_path: Path) -> None:
    make_market(tmp_path / "here")
    before = read_manifest(str(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there/deeper", copy_function=shutil.copyfile)
    after = read_manifest(str(tmp_path / "there/deeper"))
    assert before.dataset_id == after.dataset_id and before.root != after.root


def test_the_sample_images_have_their_known_counts(samples: Path) -> None:
    manifest = read_manifest(str(samples))
    counts = manifest.counts()
    images = {name: counts[name]["images"] for name in counts if name != "quarantined"}
    assert images == {
        "train": 608 - 1,
        "query_occluded": 128,
        "query_holistic": 128,
        "gallery": 128,
    }
    assert [counts[name]["identities"] for name in images] == [38, 16, 16, 16]
    assert quarantined(manifest) == {"bounding_box_train/0085_c1_o5.png": "duplicate"}
    assert manifest.warnings == []
