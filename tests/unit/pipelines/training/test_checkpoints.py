"""Checkpoints: whole or not there, checked, the right ones kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from pipelines.runtime.storage import Storage
from pipelines.training.checkpoints import KEPT, Checkpoints, Writer, serialize_state


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def checkpoints(tmp_path: Path, said: list[str]) -> Checkpoints:
    return Checkpoints(Storage(str(tmp_path)), "run", said.append)


def save(checkpoints: Checkpoints, step: int, loss: float = float("nan")) -> None:
    checkpoints.save(
        step, serialize_state({"step": step, "weight": torch.full((3,), float(step))}), loss
    )


def steps(folder: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in folder.glob("run/step-*.json"))


def test_without_any_the_newest_is_step_0(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() == 0


def test_what_was_saved_is_loaded(checkpoints: Checkpoints) -> None:
    save(checkpoints, 7)
    assert checkpoints.newest() == 7
    state = checkpoints.load(7)
    assert state["step"] == 7
    assert torch.equal(state["weight"], torch.full((3,), 7.0))


def test_the_newest_and_the_best_are_kept(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for step, loss in ((1, float("nan")), (2, 0.5), (3, 0.1), (4, 0.9), (5, 0.8), (6, 0.7)):
        save(checkpoints, step, loss)
    assert steps(tmp_path) == [3, 5, 6]
    assert len(list(tmp_path.glob("run/*.pt"))) == KEPT + 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "another"])
def test_a_damaged_one_falls_back_to_the_one_before_aloud(
    checkpoints: Checkpoints, tmp_path: Path, said: list[str], damage: str
) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    newest = tmp_path / "run" / "step-000000002.pt"
    data = newest.read_bytes()
    if damage == "missing":
        newest.unlink()
    elif damage == "another":
        newest.write_bytes((tmp_path / "run" / "step-000000001.pt").read_bytes())
    else:
        newest.write_bytes(data[:-9] if damage == "cut" else data[:-9] + b"?" + data[-8:])
    assert checkpoints.newest() == 1
    assert len(said) == 1
    assert str(newest) in said[0]
    assert checkpoints.newest() == 1, "what was set aside stays aside"
    assert len(said) == 1
    with pytest.raises(ValueError, match="step-000000002"):
        checkpoints.load(2)


def test_without_its_marker_a_state_is_no_checkpoint(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """The writer was killed between the two files."""
    save(checkpoints, 1)
    save(checkpoints, 2)
    (tmp_path / "run" / "step-000000002.json").unlink()
    assert checkpoints.newest() == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}"])
def test_a_damaged_marker_counts_as_none(
    checkpoints: Checkpoints, tmp_path: Path, said: list[str], content: bytes
) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    (tmp_path / "run" / "step-000000002.json").write_bytes(content)
    assert checkpoints.newest() == 1
    assert "step-000000002.json" in said[0]


def test_a_state_that_runs_code_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path}/ran",)

    checkpoints.save(1, serialize_state({"step": 1, "task": Harmful()}), float("nan"))
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        checkpoints.load(1)
    assert not (tmp_path / "ran").exists()


def test_written_beside_the_training_it_holds_the_moment_it_was_asked_for(
    checkpoints: Checkpoints, said: list[str]
) -> None:
    writer = Writer(checkpoints, said.append)
    weight = torch.zeros(1_000_000)
    writer.start(1, {"step": 1, "weight": weight}, float("nan"))
    weight += 1
    writer.wait()
    assert not writer.busy
    assert checkpoints.load(1)["weight"].abs().sum() == 0


def test_one_that_cannot_be_written_is_said_and_training_goes_on(
    checkpoints: Checkpoints, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save(checkpoints, 1)
    writer = Writer(checkpoints, said.append)

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        writer.start(2, {"step": 2}, float("nan"))
        writer.wait()
        with pytest.raises(OSError, match="No space left"):
            writer.finish(3, {"step": 3}, float("nan"))
    assert "step 2" in said[0]
    assert "No space left" in said[0]
    assert checkpoints.newest() == 1
    writer.finish(3, {"step": 3}, float("nan"))
    assert checkpoints.newest() == 3
    assert not list(tmp_path.glob("run/.*"))
