"""Tables of a user: CSV as people and programs write it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from dpmpp_core.errors import DataError


def read_table(
    data: bytes, name: str, needed: set[str], known: set[str], aliases: Mapping[str, str]
) -> dict[int, dict[str, str]]:
    """Read CSV in UTF-8, separated by commas, semicolons (Excel) or tabs: line -> its values.

    Raises:
        DataError: no such file, or a column that is absent, unknown or there twice.
    """
    try:
        text = data.decode("utf-8-sig")
        head = text.partition("\n")[0]
        delimiter = next((c for c in ",;\t" if c in head), ",")
        lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        given = [column.strip().lower() for column in lines.fieldnames or []]
        columns = [aliases.get(column, column) for column in given]
        lines.fieldnames = columns
        unique = len(set(columns)) == len(columns) > 1
        if needed - set(columns) or set(columns) - known or not unique:
            others = ", ".join(sorted(known - needed))
            raise DataError(
                f"{name}: its first line must name {' and '.join(sorted(needed))}, and any of "
                f"{others}, each once; it names {', '.join(given) or 'nothing'}"
            )
        rows = {}
        for row in lines:
            if None in row or None in row.values():
                raise DataError(f"{name}:{lines.line_num}: as many values as columns are needed")
            rows[lines.line_num] = dict(row)
        return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name} is no CSV file in UTF-8: {error}") from None
