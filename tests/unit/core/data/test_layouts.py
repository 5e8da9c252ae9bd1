"""Readers of the layouts, each on a tiny tree of empty files (names are all they read)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmpp_core.data.files import FileListing, FileStat, list_files
from dpmpp_core.data.layouts import REQUIRED, Entry, Scan, detect_layout, scan
from dpmpp_core.errors import DataError

MARKET = {
    "bounding_box_train/0002_c1s1_000451_03.jpg": Entry("", 2, 1, "train", False),
    "bounding_box_train/0002_c6s4_000001_01.JPG": Entry("", 2, 6, "train", False),
    "bounding_box_test/0000_c2s1_000001_00.jpg": Entry("", 0, 2, "gallery", False),
    "bounding_box_test/0007_c3_f0046182.png": Entry("", 7, 3, "gallery", False),
    "query/0007_c4_o1.tif": Entry("", 7, 4, "query", False),
}
COMPANIONS = ["readme.txt", "LICENSE", "occlusion.csv", ".DS_Store", "gt/x.mat"]


def make(root: Path, *paths: str) -> str:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return str(root)


def made(found: Scan) -> dict[str, Entry]:
    return {entry.path: entry._replace(path="") for entry in found.entries}


def reasons(found: Scan) -> dict[str, str]:
    return {row.path: row.reason for row in found.rejected}


def test_market_names(tmp_path: Path) -> None:
    found = scan(make(tmp_path, *MARKET, *COMPANIONS, "query/Thumbs.db", "query/._a.jpg"), "auto")
    assert found.layout == "market1501"
    assert made(found) == MARKET
    assert found.rejected == []
    assert found.entries == sorted(found.entries)


def test_market_refuses_with_reasons(tmp_path: Path) -> None:
    bad = {
        "bounding_box_train/-1_c1s1_000001_00.jpg": "junk_pid",
        "bounding_box_train/0000_c1s1_000001_00.jpg": "junk_pid",
        "bounding_box_test/-1_c1s1_000001_00.jpg": "junk_pid",
        "query/0000_c1.jpg": "junk_pid",
        "query/photo.jpg": "misnamed",
        "query/0007_c.jpg": "misnamed",
        "query/0007_c4x.jpg": "misnamed",
        "query/99999999999999999999_c1.jpg": "misnamed",
        "query/-2_c1.jpg": "misnamed",
        "query/notes.txt": "not_an_image_name",
        "query/0007_c4.gif": "not_an_image_name",
    }
    found = scan(make(tmp_path, *MARKET, *bad))
    assert made(found) == MARKET
    assert reasons(found) == bad


LITTER = ["@eaDir/0001_c1s1_000009_00.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/0005_c1_9.jpg",
          "$RECYCLE.BIN/0005_c1_9.jpg", ".Trash-1000/0005_c1_9.jpg", "__MACOSX/0005_c1_9.jpg",
          ".ipynb_checkpoints/0005_c1_9.jpg", ".0005_c1_9.jpg.Xy12", "desktop.ini"]  # fmt: skip


def test_what_systems_and_programs_leave_is_left_out_and_counted(tmp_path: Path) -> None:
    root = make(tmp_path, *MARKET, *(f"query/{path}" for path in LITTER))
    listing = list_files(root)
    assert {file.path for file in listing.files} == {*MARKET} and not listing.problems
    assert listing.litter == len(LITTER)
    assert made(scan(root)) == MARKET and scan(root).rejected == []


def test_a_persons_folder_has_no_litter(tmp_path: Path) -> None:
    good = [f"{kind}_body_images/{n}/{n}_1.jpg" for kind in ("occluded", "whole") for n in "12"]
    found = scan(make(tmp_path, *good, "occluded_body_images/1/@eaDir/1_1.jpg/SYNO_M.jpg"))
    assert {entry.path for entry in found.entries} == {*good} and found.rejected == []


def test_occluded_queries_are_told_or_implied(tmp_path: Path) -> None:
    root = make(tmp_path, *MARKET)
    told = scan(root, "market1501", occluded_queries=True)
    assert {e.path for e in told.entries if e.occluded} == {"query/0007_c4_o1.tif"}
    implied = scan(make(tmp_path, "query_holistic/0007_c4_o1.tif"))
    assert {e.path: e.occluded for e in implied.entries if e.split == "query"} == {
        "query/0007_c4_o1.tif": True,
        "query_holistic/0007_c4_o1.tif": False,
    }


def test_problems_of_the_listing_reach_the_quarantine(tmp_path: Path) -> None:
    root = make(tmp_path, *MARKET)
    (tmp_path / "query/loop").symlink_to(tmp_path / "query")
    (tmp_path / "bounding_box_train/0009").mkdir()
    (tmp_path / "unrelated").mkdir()
    assert reasons(scan(root)) == {
        "query/loop": "symlink_loop",
        "bounding_box_train/0009": "empty_folder",
    }


@given(
    pid=st.integers(0, 10**9 - 1),
    camid=st.integers(0, 10**9 - 1),
    width=st.integers(1, 9),
    tail=st.sampled_from(["", "s1_000451_03", "_f0046182", "_o8", ".copy"]),
    ending=st.sampled_from(["jpg", "JPEG", "png", "bmp", "tif", "tiff"]),
)
def test_market_names_parse_back(pid: int, camid: int, width: int, tail: str, ending: str) -> None:
    path = f"bounding_box_test/{pid:0{width}}_c{camid}{tail}.{ending}"
    others = ["bounding_box_train/1_c1.jpg", "query/1_c1.jpg"]
    listing = FileListing("x", [FileStat(p, 1, 1) for p in (path, *others)], [])
    entries = scan("x", "market1501", listing=listing).entries
    assert Entry(path, pid, camid, "gallery", False) in entries


def msmt(root: Path, version: int) -> str:
    train, test = [("train", "test"), ("mask_train_v2", "mask_test_v2")][version - 1]
    images = ["0000/0000_000_01_0303morning_0015_0.jpg", "0000/0000_001_15_0303noon_0016_1.jpg"]
    make(root, *(f"{folder}/{image}" for folder in (train, test) for image in images))
    make(root, f"{test}/0005/0005_000_07_0302morning_0001_0.jpg")
    (root / "list_train.txt").write_text(f"{images[0]} 0\n\n")
    (root / "list_val.txt").write_text(f"\ufeff{images[1]}\t0\r\n")
    (root / "list_query.txt").write_text(f"{images[0]} 0\n")
    (root / "list_gallery.txt").write_text(
        f"{images[1]} 0\n0005\\0005_000_07_0302morning_0001_0.jpg 12\n"
    )
    return str(root)


@pytest.mark.parametrize("version", [1, 2])
def test_msmt17(tmp_path: Path, version: int) -> None:
    found = scan(msmt(tmp_path, version))
    assert found.layout == "msmt17" and found.rejected == []
    rows = sorted((e.split, e.pid, e.camid, e.path.split("/")[0]) for e in found.entries)
    train, test = [("train", "test"), ("mask_train_v2", "mask_test_v2")][version - 1]
    assert rows == [
        ("gallery", 0, 15, test),
        ("gallery", 12, 7, test),
        ("query", 0, 1, test),
        ("train", 0, 1, train),
        ("train", 0, 15, train),
    ]


def test_msmt17_images_must_be_listed_and_named_well(tmp_path: Path) -> None:
    root = msmt(tmp_path, 1)
    make(tmp_path, "train/0001/a.jpg", "train/0001/new.jpg", "train/0001/x.txt")
    with open(f"{root}/list_train.txt", "a") as file:
        file.write("0001/a.jpg 4\n0001/x.txt 5\n")
    found = scan(root)
    assert len(found.entries) == 5
    assert reasons(found) == {
        "train/0001/a.jpg": "misnamed",
        "train/0001/x.txt": "not_an_image_name",
        "train/0001/new.jpg": "not_listed",
    }


def test_occluded_reid_has_a_folder_a_person(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        "occluded_body_images/001/001_01.tif",
        "whole_body_images/001/001_06.tif",
        "whole_body_images/002/notes.txt",
        "whole_body_images/bob/1.jpg",
    )
    (tmp_path / "whole_body_images/003").mkdir()
    found = scan(root)
    assert found.layout == "occluded_reid"
    assert made(found) == {
        "occluded_body_images/001/001_01.tif": Entry("", 1, 0, "query", True),
        "whole_body_images/001/001_06.tif": Entry("", 1, 1, "gallery", False),
    }
    assert reasons(found) == {
        "whole_body_images/002": "empty_identity",
        "whole_body_images/002/notes.txt": "not_an_image_name",
        "whole_body_images/003": "empty_identity",
        "whole_body_images/bob": "empty_identity",
        "whole_body_images/bob/1.jpg": "misnamed",
    }


def test_p_duke_trains_on_both_kinds(tmp_path: Path) -> None:
    found = scan(
        make(
            tmp_path,
            "train/occluded_body_images/0005/0005_c2_f1.jpg",
            "train/whole_body_images/0005/0005_c3_f2.jpg",
            "test/occluded_body_images/0009/0009_c2_f1.jpg",
            "test/whole_body_images/0009/0009_c2_f3.jpg",
        )
    )
    assert found.layout == "p_duke" and found.rejected == []
    assert made(found) == {
        "train/occluded_body_images/0005/0005_c2_f1.jpg": Entry("", 5, 0, "train", True),
        "train/whole_body_images/0005/0005_c3_f2.jpg": Entry("", 5, 1, "train", False),
        "test/occluded_body_images/0009/0009_c2_f1.jpg": Entry("", 9, 0, "query", True),
        "test/whole_body_images/0009/0009_c2_f3.jpg": Entry("", 9, 1, "gallery", False),
    }


@pytest.mark.parametrize("extra", [(), ("partial_body_images/",)])
def test_partial_reid_with_and_without_partial_pictures(
    tmp_path: Path, extra: tuple[str, ...]
) -> None:
    folders = ("occluded_body_images/", "whole_body_images/", *extra)
    found = scan(make(tmp_path, *(f"{folder}060_05.jpg" for folder in folders)))
    queries = extra[0] if extra else "occluded_body_images/"
    assert found.layout == "partial_reid" and found.rejected == []
    assert made(found) == {
        f"{queries}060_05.jpg": Entry("", 60, 0, "query", True),
        "whole_body_images/060_05.jpg": Entry("", 60, 1, "gallery", False),
    }


def test_an_unknown_folder_says_what_was_sought_what_is_there_and_what_fits(tmp_path: Path) -> None:
    root = make(tmp_path, "Market/holiday.jpg", *(f"Market/{path}" for path in MARKET))
    with pytest.raises(DataError) as error:
        scan(root)
    message = str(error.value)
    assert "It holds Market/" in message and "Market/ looks like market1501" in message
    assert "bounding_box_test/" in message and all(name in message for name in REQUIRED)


def test_a_layout_asked_for_must_be_there(tmp_path: Path) -> None:
    root = make(tmp_path, *MARKET)
    with pytest.raises(DataError, match=r"list_train\.txt.*It holds bounding_box_test/"):
        scan(root, "msmt17")
    with pytest.raises(DataError, match="unknown layout 'market'"):
        scan(root, "market")


def test_two_layouts_in_one_folder_need_a_choice(tmp_path: Path) -> None:
    root = make(tmp_path, *MARKET)
    msmt(tmp_path, 1)
    with pytest.raises(DataError, match="market1501 and msmt17"):
        detect_layout(list_files(root))
    assert scan(root, "market1501").layout == "market1501"


def test_a_file_named_like_a_folder_does_not_count(tmp_path: Path) -> None:
    root = make(tmp_path, "bounding_box_train/1_c1.jpg", "bounding_box_test/1_c1.jpg", "query")
    with pytest.raises(DataError):
        scan(root)
