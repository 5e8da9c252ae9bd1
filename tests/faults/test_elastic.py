"""A training that takes the workers there are."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.faults.conftest import OVERRIDES, Table, Unbroken
from tests.faults.lab import Lab, Training, copy_before_stage_2

WORKER = "ray::RayTrainWorker"


@pytest.mark.slow
def test_it_goes_on_with_one_worker_of_two_and_takes_a_second_again(
    small_demo: Path, unbroken: Unbroken, table: Table, tmp_path: Path
) -> None:
    """The batches are the same all along, so the losses are those of one worker."""
    lab = Lab({"data": 3, "train": 4})  # a train worker takes a node
    storage = tmp_path / "runs"
    copy_before_stage_2(unbroken.storage, storage)
    counts = ["cluster.train_workers=2", "cluster.min_train_workers=1"]
    training = Training(lab, str(small_demo), str(storage), tmp_path / "log", [*OVERRIDES, *counts])
    try:
        lab.grow("train")
        training.start().wait_for_step(20)
        assert lab.count(WORKER) == 2
        before = training.step()
        lab.shrink()
        training.wait_for_step(before + 20)
        assert lab.count(WORKER) == 1
        data = lab.worker("data", "MakeBatches")
        data.suspend()  # or the training would have ended before Ray sees the node
        lab.grow("train")
        time.sleep(25)  # Ray counts its nodes every 20 s
        between = training.step()
        lab.kill("train", "RayTrainWorker")
        data.resume()
        training.wait_for_step(between + 10)
        assert lab.count(WORKER) == 2
        training.result()
        lost = time.monotonic() - training.began - unbroken.seconds
    finally:
        training.end()
        lab.close()
    happened = f"2 workers, from step {before} 1, from step {between} 2 again"
    table.add("train node lost, elastic", happened, before, lost, False)
    for one, other in zip(losses(unbroken.storage), losses(storage), strict=True):
        assert one == pytest.approx(other, rel=0.02)


def losses(storage: Path) -> list[float]:
    """Of stage 2, by epoch."""
    (stage,) = (storage / "stages").glob("metric-*/stage.json")
    return [row["loss"] for row in json.loads(stage.read_text())["summary"]["history"]]
