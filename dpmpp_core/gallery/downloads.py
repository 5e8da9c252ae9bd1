"""Hits as files: a table, and the pictures themselves."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence

from dpmpp_core.data.sightings import show_time
from dpmpp_core.gallery.hits import Hit, hit_fields, read_indexed

TABLE = "hits.csv"
# A spreadsheet runs a cell that starts so.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_hits_csv(hits: Sequence[Hit]) -> str:
    """Return hits as CSV, best first: rank and `hit_fields`; empty = not known.

    A name that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = hit_fields(hits)
    writer.writerow(["rank", *fields])
    for rank, hit in enumerate(hits, 1):
        row = hit._asdict() | {"time": show_time(hit.time)}
        writer.writerow([rank, *(_escape(row[field]) for field in fields)])
    return text.getvalue()


def _escape(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def zip_hits(hits: Sequence[Hit]) -> bytes:
    """Return a ZIP archive: hits.csv, and the file of each hit named RANK-NAME.

    Left out is a file that is gone or another one now, as it is no longer the one of the index.
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as folder:  # pictures are compressed already
        folder.writestr(TABLE, write_hits_csv(hits))
        for rank, hit in enumerate(hits, 1):
            data = read_indexed(hit.image, hit.sha256)
            if data is not None:
                folder.writestr(f"{rank:03}-{hit.image.rpartition('/')[2]}", data)
    return archive.getvalue()
