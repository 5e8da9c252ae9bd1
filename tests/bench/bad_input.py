"""The table of bad input: every row of `tests/support/bad_input` handed over, and what was said.

    python -m tests.bench.bad_input

Writes `results/bad_input.md`; exit code 1 if a row is not reported as the tests want it.
"""

from __future__ import annotations

import re
import tempfile
from datetime import date
from pathlib import Path

from dpmpp_core.config.text import shorten
from dpmpp_core.redaction import one_line
from tests.support.bad_input import TABLE
from tests.support.bad_input.row import Row

RESULT = Path(__file__).parent / "results" / "bad_input.md"
SHOWN = 400  # characters of what is said


def main() -> int:
    count = sum(map(len, TABLE.values()))
    wrong: list[str] = []
    lines = [
        "# Bad input",
        "",
        f"`python -m tests.bench.bad_input`; {date.today()}. {count} rows, each handed over for "
        "real; `tests/unit/test_bad_input.py` holds every one to what is said here. FOLDER stands "
        "for a new folder, `...` for the rest of a long message.",
    ]
    for kind, rows in TABLE.items():
        lines += ["", f"## {kind}", "", "| given | what is said | what is left |", "|---|---|---|"]
        for row in rows:
            lines.append(tried(row, wrong))
    RESULT.write_text("\n".join(lines) + "\n")
    for given in wrong:
        print(f"not as wanted: {given}")
    print(f"{count - len(wrong)} of {count} rows as wanted: {RESULT}")
    return 1 if wrong else 0


def tried(row: Row, wrong: list[str]) -> str:
    """The row's line of the table; notes it in `wrong` if it is not reported as wanted."""
    with tempfile.TemporaryDirectory() as folder:
        said, kept = row.attempt(Path(folder))
        if not re.search(row.says, said, re.DOTALL) or kept != row.keeps:
            wrong.append(row.given)
        said = re.sub(r"/tmp/tmp\w+", "FOLDER", said.replace(folder, "FOLDER"))
    cells = (one_line(row.given), f"`{shorten(one_line(said), SHOWN).replace('`', chr(39))}`", kept)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
