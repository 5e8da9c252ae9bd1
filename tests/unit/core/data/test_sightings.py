"""Who was seen where and when, out of any folder."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmpp_core.data.files import FileListing, FileStat, list_files
from dpmpp_core.data.sightings import (
    Sighting,
    find_sightings,
    parse_time,
    read_labels,
    show_time,
    to_label,
)
from dpmpp_core.errors import DataError

MARKET = [
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_test/0000_c2s1_000451_03.jpg",
    "bounding_box_test/0007_c3s1_000451_03.jpg",
    "query/0007_c4s1_000451_03.jpg",
]


def listing(*paths):
    return FileListing("/data", [FileStat(path, 1, 2) for path in sorted(paths)], [])


def test_a_flat_folder_of_pictures_is_enough():
    found = find_sightings(listing("b.JPG", "deep/er/a.png", "notes.txt"))
    assert found.layout == "any"
    assert found.images == [Sighting("b.JPG"), Sighting("deep/er/a.png")]
    assert [row[:2] for row in found.rejected] == [("notes.txt", "not_an_image_name")]


def test_names_tell_persons_and_cameras_only_if_all_of_them_do():
    names = ["0005_c3s1_01.jpg", "-1_c2_02.jpg", "0000_c2_03.jpg"]
    found = find_sightings(listing(*names)).images
    assert {image.path: (image.pid, image.camid) for image in found} == {
        names[0]: (5, 3),
        names[1]: (None, 2),
        names[2]: (None, 2),
    }
    found = find_sightings(listing(*names, "holiday.jpg")).images
    assert {(image.pid, image.camid) for image in found} == {(None, None)}


def test_of_a_layout_one_split_or_all_of_it_is_taken():
    found = find_sightings(listing(*MARKET), "gallery")
    assert (found.layout, len(found.images)) == ("market1501", 2)
    assert {(image.pid, image.camid) for image in found.images} == {(None, 2), (7, 3)}
    assert len(find_sightings(listing(*MARKET)).images) == 4
    with pytest.raises(DataError, match="no known layout, so no split query"):
        find_sightings(listing("a.jpg"), "query")


CAFE = unicodedata.normalize("NFD", "café.jpg")


@pytest.mark.parametrize(
    ("line", "path"),
    [("sub\\x.jpg,5", "sub/x.jpg"), ("./sub/x.jpg,5.0", "sub/x.jpg"), ("café.jpg,5", CAFE)],
)
def test_a_label_names_its_image_in_the_ways_of_other_systems(line, path):
    labels = read_labels(f"path,pid\n{line}\n".encode(), "labels.csv")
    found = find_sightings(listing("sub/x.jpg", CAFE), labels=labels)
    assert [image.path for image in found.images if image.pid == 5] == [path]


def test_a_label_is_not_guessed_where_two_images_fit():
    labels = read_labels("path,pid\ncafé.jpg,5\n".encode(), "labels.csv")
    assert CAFE != "café.jpg"
    found = find_sightings(listing("café.jpg", CAFE), labels=labels)
    assert [image.path for image in found.images if image.pid == 5] == ["café.jpg"]
    labels = read_labels(b"path,pid\nx.jpg,5\n./x.jpg,6\n", "labels.csv")
    with pytest.raises(DataError, match=r"of one image: those of x\.jpg and \./x\.jpg"):
        find_sightings(listing("x.jpg"), labels=labels)
    with pytest.raises(DataError, match=r"labels.csv:2: pid '5.5' is no number"):
        read_labels(b"path,pid\nx.jpg,5.5\n", "labels.csv")


def test_a_folder_without_images_is_refused():
    with pytest.raises(DataError, match="holds no image: 1 files"):
        find_sightings(listing("a.txt"))


def test_labels_go_before_names():
    csv = b"\xef\xbb\xbftime,path,camid\n2026-11-27T14:05+01:00,x/a.jpg,12\n,b.jpg,\n"
    labels = read_labels(csv, "l.csv")
    images = find_sightings(listing("x/a.jpg", "b.jpg", "c.jpg"), labels=labels).images
    assert images[2] == Sighting("x/a.jpg", None, 12, 1_795_784_700)
    assert images[0] == Sighting("b.jpg")
    found = find_sightings(listing(*MARKET), labels={MARKET[3]: Sighting(MARKET[3], time=5)})
    assert Sighting(MARKET[3], 7, 4, 5, "query") in found.images


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "first line"),
        (b"path\na.jpg\n", "first line"),
        (b"path,age\na.jpg,3\n", "first line"),
        (b"path,pid\na.jpg\n", "l.csv:2: as many values"),
        (b"path,pid\na.jpg,3,4\n", "l.csv:2: as many values"),
        (b"path,pid\na.jpg,-3\n", "l.csv:2: pid '-3'"),
        (b"path,pid\na.jpg,1\nb.jpg,1e3\n", "l.csv:3: pid '1e3'"),
        (b"path,pid\na.jpg,1\na.jpg,1\n", "l.csv:3: a.jpg stands there twice"),
        (b"path,time\na.jpg,noon\n", "l.csv:2: 'noon' is no time"),
        (b"path,time\na.jpg,\xff\n", "no CSV file in UTF-8"),
    ],
)
def test_bad_labels_are_named(text, says):
    with pytest.raises(DataError, match=says):
        read_labels(text, "l.csv")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("7", 7), ("007", 7), (" 7.0 ", 7), ("0", 0), ("anna", "anna"), (" Anna\tLee ", "Anna Lee"),
        (unicodedata.normalize("NFD", "Zoë"), "Zoë"), ("7b", "7b"), ("9" * 19, "9" * 19),
        ("\u0665", "\u0665"), ("-1", "-1"), ("", ""),
    ],
)  # fmt: skip
def test_a_label_is_a_number_or_a_name_in_one_spelling(text, label):
    assert to_label(text) == label and type(to_label(text)) is type(label)


def test_persons_and_cameras_may_have_names():
    csv = b"path;person;camera\na.jpg;anna;entrance\nb.jpg; 12 ;\nc.jpg;;3\n"
    labels = read_labels(csv, "l.csv")
    images = find_sightings(listing("a.jpg", "b.jpg", "c.jpg"), labels=labels).images
    assert images == [
        Sighting("a.jpg", "anna", "entrance"), Sighting("b.jpg", 12), Sighting("c.jpg", None, 3),
    ]  # fmt: skip


def table_of(root, *lines):
    (root / "labels.csv").write_text("\n".join(["path,person,camera", *lines]) + "\n")
    names = [line.partition(",")[0] for line in lines]
    for name in names:
        (root / name).touch()
    return list_files(str(root))


def test_a_table_of_own_data_gives_its_names(tmp_path):
    found = find_sightings(table_of(tmp_path, "a.jpg,anna,door", "b.jpg,7,", "c.jpg,anna,2"))
    assert found.layout == "table"
    assert [(image.pid, image.camid) for image in found.images] == [
        ("anna", "door"), (7, None), ("anna", 2),
    ]  # fmt: skip


def test_a_folder_per_person_gives_names_where_that_is_said():
    paths = ["anna/front/cam7.jpg", "anna/back/cam8.jpg", "ben/back/cam8.jpg", "stray.jpg"]
    found = find_sightings(listing(*paths), layout="folders")
    assert {image[:3] for image in found.images} == {
        (paths[0], "anna", "front"), (paths[1], "anna", "back"), (paths[2], "ben", "back"),
    }  # fmt: skip
    assert [row.path for row in found.rejected] == ["stray.jpg"]
    found = find_sightings(listing(*paths), layout="folders", camera=r"cam(\d)")
    assert {image.camid for image in found.images} == {7, 8}
    assert find_sightings(listing(*paths)).layout == "any"


def test_two_names_of_a_table_that_are_one_label_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"labels\.csv: '007' and '7' are one label in an index"):
        find_sightings(table_of(tmp_path, "a.jpg,007,", "b.jpg,7,", "c.jpg,anna,"))


def test_labels_of_no_image_are_refused():
    with pytest.raises(DataError, match=r"of no image of the folder, as that of z\.jpg"):
        find_sightings(listing("a.jpg"), labels={"z.jpg": Sighting("z.jpg", 1)})


@given(st.integers(100_000_000, 4_000_000_000))
def test_a_time_that_is_shown_is_the_time_that_is_read(seconds):
    assert parse_time(show_time(seconds)) == seconds
    assert parse_time(str(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1795784700", 1795784700),
        ("1795784700.0", 1795784700),
        ("20261127.0", 1795737600),
        ("2026-11-27", 1795737600),
        ("20261127", 1795737600),
        ("20261127140500", 1795788300),
        ("2026-11-27T14:05:00+01:00", 1795784700),
    ],
)
def test_a_time_is_read_in_any_usual_form(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1795784700000", "divide milliseconds by 1000"),
        ("-5", "not in the years 1970 to 2100"),
        ("9" * 40, "not in the years 1970 to 2100"),
        ("20261345", "is no time"),
        ("\u0665" * 9, "is no time"),
    ],
)
def test_a_number_in_another_unit_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        parse_time(text)
