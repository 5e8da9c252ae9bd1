"""Nodes that lack the data or the storage are named before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpmpp_core.errors import DataError
from pipelines.runtime.nodes import _describe_problem, check_nodes
from pipelines.runtime.storage import Storage
from pipelines.stages.prepare import _refuse_absent


def test_a_node_without_the_data_or_the_storage_is_named(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    check_nodes(str(small_demo), str(tmp_path / "runs"), [(), ()])
    with pytest.raises(DataError, match=r"node .*: no data folder /nowhere"):
        check_nodes("/nowhere", str(tmp_path / "runs"), [()])
    check_nodes("/nowhere", str(tmp_path / "runs"), [("pool=elsewhere",)])  # none to ask
    assert not list((tmp_path / "runs").glob(".probe-*"))


def test_a_node_whose_storage_is_another_or_refuses_files_says_so(tmp_path: Path) -> None:
    runs = str(tmp_path / "runs")
    assert "is not the driver's" in _describe_problem(None, runs, ".probe-elsewhere")
    (tmp_path / "file").touch()
    answer = _describe_problem(None, str(tmp_path / "file" / "runs"), ".probe")
    assert "nothing can be written to" in answer


def test_an_empty_mount_point_is_not_the_data(small_demo: Path, tmp_path: Path) -> None:
    (file, *_) = (p.relative_to(small_demo).as_posix() for p in small_demo.rglob("*.jpg"))
    runs = Storage(str(tmp_path / "runs"))
    runs.write("probe", b"")
    (tmp_path / "mount").mkdir()
    assert _describe_problem(str(small_demo), runs.uri, "probe", file) == ""
    assert f"lacks {file}" in _describe_problem(str(tmp_path / "mount"), runs.uri, "probe", file)


def test_files_that_a_node_lacks_are_never_quarantined(tmp_path: Path) -> None:
    _refuse_absent(str(tmp_path), ["gone.jpg"])  # a file may be deleted meanwhile
    with pytest.raises(OSError, match="none of 2 files"):
        _refuse_absent(str(tmp_path), ["a.jpg", "b.jpg"])
    (tmp_path / "b.jpg").touch()
    _refuse_absent(str(tmp_path), ["a.jpg", "b.jpg"])
