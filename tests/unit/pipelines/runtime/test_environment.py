"""The commit of the code: that of its own checkout, or none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipelines.runtime.environment import find_commit


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_commit_and_whether_files_were_changed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert find_commit(tmp_path) == commit
    (tmp_path / "a.py").write_text("a = 2\n")
    assert find_commit(tmp_path) == f"{commit}-dirty"
    inside = tmp_path / ".venv"  # an installed package, in the checkout of something else
    inside.mkdir()
    assert find_commit(inside) is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    assert find_commit(tmp_path) is None  # damaged
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_commit(tmp_path) is None
