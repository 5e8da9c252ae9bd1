"""Hits as files."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from pathlib import Path

from dpmpp_core.gallery.downloads import write_hits_csv, zip_hits
from dpmpp_core.gallery.hits import Hit


def test_the_archive_has_the_table_and_the_files_of_the_index_only(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    digest = hashlib.sha256(b"a.jpg").hexdigest()
    hits = [
        Hit(str(tmp_path / "a.jpg"), 0.75, 0.5, 3, 2, 1_795_784_700, digest),
        Hit(str(tmp_path / "b.jpg"), 0.5, None, None, None, None, digest),  # another file now
        Hit(str(tmp_path / "gone.jpg"), 0.25, None, None, None, None, digest),
    ]
    with zipfile.ZipFile(io.BytesIO(zip_hits(hits))) as archive:
        assert archive.namelist() == ["hits.csv", "001-a.jpg"]
        assert archive.read("001-a.jpg") == b"a.jpg"
        rows = list(csv.DictReader(io.StringIO(archive.read("hits.csv").decode())))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["score"] == "0.75" and rows[0]["time"] == "2026-11-27 13:05:00"
    assert rows[1]["pid"] == rows[1]["time"] == rows[1]["probability"] == ""


def test_names_have_columns_where_there_are_some() -> None:
    plain = Hit("a.jpg", 0.5, None, 3, None, None, "")
    assert write_hits_csv([plain]).splitlines()[0].endswith(",time,sha256")
    table = write_hits_csv([plain, plain._replace(person="=ben")])
    assert [row["person"] for row in csv.DictReader(io.StringIO(table))] == ["", "'=ben"]
    assert "camera" not in table


def test_a_spreadsheet_runs_no_name() -> None:
    table = write_hits_csv([Hit("=cmd()/a.jpg", 0.5, None, None, None, None, "")])
    assert table.splitlines()[1].startswith("1,'=cmd()/a.jpg,0.5,")
