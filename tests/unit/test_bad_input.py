"""Every row of the table of bad input: what is reported, and what is left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.bad_input import TABLE
from tests.support.bad_input.row import Row

CASES = [pytest.param(row, id=f"{kind}: {row.given}") for kind in TABLE for row in TABLE[kind]]


@pytest.mark.parametrize("row", CASES)
def test_bad_input_is_reported_and_nothing_is_lost(row: Row, tmp_path: Path) -> None:
    said, kept = row.attempt(tmp_path)
    assert re.search(row.says, said, re.DOTALL), said
    assert kept == row.keeps


def test_no_row_stands_twice() -> None:
    given = [row.given for rows in TABLE.values() for row in rows]
    assert len(set(given)) == len(given) >= 40


def test_twenty_rows_and_more_were_tried_beyond_the_reports() -> None:
    assert len(TABLE["Tried beyond the reports"]) >= 20
