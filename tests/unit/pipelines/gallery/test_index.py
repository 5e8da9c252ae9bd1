"""Index commands without Ray: what a local model needs, and what is looked at before the work."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmpp_core.data.files
import pipelines.gallery.calibration
import pipelines.gallery.index
from dpmpp_core.errors import ConfigError, DataError
from pipelines.gallery.calibration import calibrate_index
from pipelines.gallery.index import ImageSource, add_images, build_index
from pipelines.registry.references import TRACKING_URI_VARIABLES, find_registry
from tests.support.models import saved_model

Columns = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def odd_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose path no URI of SQLite can hold; embeddings are computed here."""

    def stream(paths: list[str], worker: Any, arguments: Any, *_: Any) -> Iterator[Columns]:
        yield worker(*arguments)({"row": np.arange(len(paths)), "path": np.array(paths, object)})

    for variable in TRACKING_URI_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for module in (pipelines.gallery.index, pipelines.gallery.calibration):
        monkeypatch.setattr(module, "connect", lambda *_: (None, None))
        monkeypatch.setattr(module, "stream_embeddings", stream)
    folder = tmp_path / "a%20b#"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_local_model_needs_no_address_of_a_registry(
    odd_folder: Path, model: Path, small_demo: Path
) -> None:
    folder = str(odd_folder / "index")
    source = ImageSource(str(small_demo), "query")
    assert build_index(folder, str(model), "float32", source)["added"] > 0
    assert add_images(folder, ImageSource(str(small_demo), "gallery"))["added"] > 0
    assert calibrate_index(folder, ImageSource(str(small_demo)), 0.05)["persons"] == 4


def test_a_model_of_the_registry_is_refused_with_what_helps(
    odd_folder: Path, small_demo: Path
) -> None:
    assert find_registry("shipped") is None
    with pytest.raises(ConfigError, match="environment variable DPMPP_TRACKING_URI") as error:
        build_index("index", "models:/people@champion", "float32", ImageSource(str(small_demo)))
    assert "--" not in str(error.value)  # the command has neither --storage nor --tracking-uri


def test_an_index_that_cannot_be_written_is_not_calibrated(
    odd_folder: Path, model: Path, small_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(odd_folder / "index")
    build_index(folder, str(model), "float32", ImageSource(str(small_demo), "query"))

    def refuse(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(dpmpp_core.data.files.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(pipelines.gallery.calibration, "stream_embeddings", None)
    with pytest.raises(DataError, match=r"nothing can be written to .*: Read-only file system"):
        calibrate_index(folder, ImageSource(str(small_demo)), 0.05)
