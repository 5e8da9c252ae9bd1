"""Nodes that lack the data or the storage are named before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpmpp_core.errors import DataError
from pipelines.runtime.nodes import check_nodes


def test_a_node_without_the_data_or_the_storage_is_named(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    check_nodes(str(small_demo), str(tmp_path / "runs"), [(), ()])
    with pytest.raises(DataError, match=r"node .*: no data folder /nowhere"):
        check_nodes("/nowhere", str(tmp_path / "runs"), [()])
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"node .*: nothing can be written to"):
        check_nodes(None, str(tmp_path / "file" / "runs"), [()])
    check_nodes("/nowhere", str(tmp_path / "runs"), [("pool=elsewhere",)])  # none to ask
