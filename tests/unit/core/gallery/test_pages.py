"""The page of a search is one safe file and shows what was found."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from dpmpp_core.gallery import pages
from dpmpp_core.gallery.downloads import zip_hits
from dpmpp_core.gallery.hits import Hit
from dpmpp_core.gallery.pages import (
    QueryAnswer,
    draw_trusted,
    format_probability,
    load_thumbnail,
    render_answer,
    write_search_page,
)
from dpmpp_core.gallery.queries import QueryEmbeddings

HOSTILE = "/d/<script>alert(1)</script>\"'><img src=x onerror=alert(1)>.jpg"
NOISE = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)


def asked(visible=True, bands=(0.0, 0.25, 0.5, 0.25)):
    seen = np.zeros((1, 4, 2), np.float32)
    seen[0, :, 0] = 1
    return QueryEmbeddings({}, {}, seen if visible else None, np.array([bands]) if bands else None)


def hits(image):
    return [
        Hit(image, 0.75, 0.5, 3, 2, 1_795_784_700, sha256(image)),
        Hit(HOSTILE, -0.25, None, None, None, None, "0" * 64),
    ]


def sha256(image):
    return hashlib.sha256(Path(image).read_bytes()).hexdigest()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "0003_c2.png"
    path.write_bytes(cv2.imencode(".png", NOISE)[1].tobytes())
    return str(path)


def test_the_page_shows_what_was_found_and_loads_nothing(image, tmp_path):
    out = tmp_path / "new" / "page.html"
    answers = [
        QueryAnswer(HOSTILE, NOISE, asked(), hits(image)),
        QueryAnswer(image, NOISE, asked(), []),
    ]
    write_search_page(out, {"index": "<b>x</b>"}, answers)
    page = out.read_text()
    for text in ("50 %", "0.750", "person 3", "camera 2", "2026-11-27 13:05:00", "missing",
                 "No image of the index", "2 queries"):  # fmt: skip
        assert text in page
    assert "<script" not in page and "<b>x" not in page and "onerror=alert(1)>" not in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "default-src 'none'" in page


def test_the_part_for_other_pages_is_the_same(image):
    part = render_answer(QueryAnswer(HOSTILE, NOISE, asked(), hits(image)))
    assert part.count('class="hit"') == 2
    assert "<script" not in part


def test_what_was_not_seen_is_dark_and_bars_show_the_mask():
    picture = np.full((64, 32, 3), 200, np.uint8)
    shown = draw_trusted(picture, asked())
    assert shown.shape == (256, 128 + 6 + 128 + 6 + 46, 3)
    assert shown[:, 20].mean() == 200
    assert shown[128, 134 + 10].mean() > 150 > shown[128, 134 + 118].mean()
    bars = shown[:, -46:]
    lengths = [(bars[row] == (0, 114, 178)).all(axis=1).sum() for row in (32, 96, 160, 224)]
    assert lengths == [0, 23, 46, 23]
    assert draw_trusted(picture, asked(visible=False, bands=None)).shape == (256, 128, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-9, "< 0.1 %"), (0.05, "5.0 %"), (0.5, "50 %"), (0.99951, "> 99.9 %")],
)
def test_no_probability_is_told_as_certain(value, text):
    assert format_probability(value) == text


def test_a_picture_that_is_gone_has_no_thumbnail(image, tmp_path):
    assert load_thumbnail(image, sha256(image)).shape == (128, 64, 3)
    assert load_thumbnail(str(tmp_path / "gone.jpg"), sha256(image)) is None


def test_an_index_shows_no_other_file_than_the_one_that_was_indexed(image, tmp_path, monkeypatch):
    """Rows of a foreign index name files out of its data: none is decoded, shown or waited for."""
    assert load_thumbnail(image, sha256(image)) is not None
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.png").symlink_to(image)
    named = [image, f"{tmp_path}/x/../0003_c2.png", str(tmp_path / "link.png"),
             str(tmp_path / "pipe"), "/dev/zero", str(tmp_path), "/..", ""]  # fmt: skip
    monkeypatch.setattr(pages, "decode", lambda data: pytest.fail("a foreign file was decoded"))
    planted = [Hit(name, 0.5, None, None, None, None, "0" * 64) for name in named]
    part = render_answer(QueryAnswer(HOSTILE, NOISE, asked(), planted))
    assert part.count("<img") == 1  # the query
    with zipfile.ZipFile(io.BytesIO(zip_hits(planted))) as archive:
        assert archive.namelist() == ["hits.csv"]


def test_a_file_that_is_no_picture_has_no_thumbnail_even_with_its_hash(tmp_path):
    (tmp_path / "key").write_bytes(b"secret")
    assert load_thumbnail(str(tmp_path / "key"), sha256(tmp_path / "key")) is None


def test_hits_of_one_name_are_told_apart(image):
    found = [Hit(f"/d/{camera}/1.jpg", 0.5, None, 1, 2, None, "") for camera in ("A", "B")]
    part = render_answer(QueryAnswer(image, NOISE, asked(), found))
    assert ">A/1.jpg<" in part and ">B/1.jpg<" in part


def test_hits_of_known_persons_are_marked(image):
    found = [Hit(image, 0.5, None, pid, 2, None, "") for pid in (3, 4, None)]
    part = render_answer(QueryAnswer(image, NOISE, asked(), found, pid=3))
    marks = ["hit right", "hit wrong", "hit"]
    assert re.findall('<figure class="(hit[^"]*)"', part) == marks
    assert part.count("✓ right") == part.count("✗ wrong") == 1
    unknown = render_answer(QueryAnswer(image, NOISE, asked(), found))
    assert re.findall('<figure class="(hit[^"]*)"', unknown) == ["hit"] * 3
