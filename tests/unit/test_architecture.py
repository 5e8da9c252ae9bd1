"""The shape of the code: how large files get, and their names."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = sorted([*ROOT.glob("dpmpp_core/**/*.py"), *ROOT.glob("pipelines/**/*.py")])


@pytest.mark.parametrize("file", PRODUCT, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_stay_short_and_are_named_for_what_they_hold(file):
    lines = file.read_text().count("\n")
    assert lines <= 400, f"{lines} lines"
    assert file.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}
