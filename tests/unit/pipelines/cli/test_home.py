"""`~` that the shell leaves to the program, as in `--option=~/x` or in quotes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import invoke_dpmpp


@pytest.fixture
def home(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "people").symlink_to(small_demo)
    return tmp_path


def test_data_check_reads_the_home_folder(home: Path) -> None:
    done = invoke_dpmpp("data", "check", "~/people", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["root"] == str(home / "people")


def test_data_demo_writes_to_the_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    people = "data.demo.test_identities=2", "data.demo.train_identities=2"
    done = invoke_dpmpp("data", "demo", "~/drawn", *people, "--json")
    assert done.returncode == 0, done.stderr
    assert (home / "drawn" / "query").is_dir() and not (home / "~").exists()
