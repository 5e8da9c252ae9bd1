"""Places that nothing can be written to: named before the work, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import assert_mistake, invoke_dpmpp
from tests.support.models import saved_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--data", "DATA", "--storage", "FILE/runs"],
        ["demo", "--storage", "FILE/runs"],
        ["evaluate", "--data", "DATA", "--model", "MODEL", "--storage", "FILE/runs"],
        ["data", "demo", "FILE/demo"],
        ["synthesize", "--data", "DATA", "--out", "FILE/occluded", "--storage", "RUNS"],
        ["export", "--model", "MODEL", "--out", "FILE/model.onnx"],
        ["index", "build", "--data", "DATA", "--index", "FILE/index", "--model", "MODEL"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_place_that_cannot_be_written_is_named_before_the_work(
    command: list[str], model: Path, small_demo: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    places = {"DATA": small_demo, "MODEL": model, "FILE": file, "RUNS": tmp_path / "runs"}
    words = []
    for word in command:
        first, slash, rest = word.partition("/")
        words.append(f"{places[first]}{slash}{rest}" if first in places else word)
    assert_mistake(invoke_dpmpp(*words), str(file), lines=None)
    assert file.is_file() and not file.stat().st_size
