"""Files of tensors: who may read them, and what is said to those who may not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dpmpp_core.errors import WeightsError
from dpmpp_core.models import tensors
from dpmpp_core.models.sources import CARD_FILE, WEIGHTS_FILE
from tests.support.indexes import build_small_index
from tests.support.models import saved_model


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_tensors_have_the_modes_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        folder = saved_model(tmp_path / "model")
        build_small_index(tmp_path / "index").compact(approximate=True)
    finally:
        os.umask(before)
    (sketches,) = (tmp_path / "index" / "segments").glob("*.safetensors")
    for file in (folder / WEIGHTS_FILE, folder / CARD_FILE, sketches):
        assert file.stat().st_mode & 0o777 == mode


def test_a_file_that_this_user_may_not_read_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.safetensors"
    tensors.write_tensors({"x": torch.ones(2)}, file)

    def refuse(path: Path) -> None:  # what safetensors raises, also where the file is there
        raise FileNotFoundError(f"No such file or directory: {path}")

    monkeypatch.setattr(tensors, "load_file", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read every file
    with pytest.raises(WeightsError, match="this user may not read it"):
        tensors.read_tensors(file)
