"""Every row of the table of bad input: what is reported, and what is left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.bad_input import (
    configuration,
    data_sets,
    indexes,
    lists,
    names,
    pictures,
    secrets,
    stored,
    weights,
)
from tests.unit.bad_input.row import Row

TABLE: dict[str, list[Row]] = {
    "Pictures": pictures.ROWS,
    "Names, links and things that are no files": names.ROWS,
    "List files of MSMT17": lists.ROWS,
    "Lopsided data sets": data_sets.ROWS,
    "Changed files of ours": stored.ROWS,
    "Gallery indexes": indexes.ROWS,
    "Weights": weights.ROWS,
    "Configuration": configuration.ROWS,
    "Secrets": secrets.ROWS,
}
CASES = [pytest.param(row, id=f"{kind}: {row.given}") for kind in TABLE for row in TABLE[kind]]


@pytest.mark.parametrize("row", CASES)
def test_bad_input_is_reported_and_nothing_is_lost(row: Row, tmp_path: Path) -> None:
    said, kept = row.attempt(tmp_path)
    assert re.search(row.says, said, re.DOTALL), said
    assert kept == row.keeps


def test_no_row_stands_twice() -> None:
    given = [row.given for rows in TABLE.values() for row in rows]
    assert len(set(given)) == len(given) >= 40
