"""What users and strangers may hand over, row by row: tried for real by `test_bad_input.py`, and
written as a table by `python -m tests.bench.bad_input`.
"""

from __future__ import annotations

from tests.support.bad_input import (
    configuration,
    data_sets,
    indexes,
    lists,
    names,
    pictures,
    reports,
    secrets,
    stored,
    weights,
)
from tests.support.bad_input.row import Row

TABLE: dict[str, list[Row]] = {
    "Pictures": pictures.ROWS,
    "What reports tell": reports.ROWS,
    "Tried beyond the reports": reports.BEYOND_ROWS,
    "Names, links and things that are no files": names.ROWS,
    "List files of MSMT17": lists.ROWS,
    "Lopsided data sets": data_sets.ROWS,
    "Changed files of ours": stored.ROWS,
    "Gallery indexes": indexes.ROWS,
    "Weights": weights.ROWS,
    "Configuration": configuration.ROWS,
    "Secrets": secrets.ROWS,
}
