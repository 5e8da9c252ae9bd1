"""Things that go wrong while stage 2 trains; each ends with the weights of an unbroken training."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import OVERRIDES, Table, Unbroken
from tests.faults.lab import LONGEST, Lab, Training, copy_before_stage_2

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def training(lab: Lab, small_demo: Path, unbroken: Unbroken, tmp_path: Path) -> Iterator[Training]:
    """Stage 2 with checkpoints twice a second, started."""
    copy_before_stage_2(unbroken.storage, tmp_path / "runs")
    made = Training(lab, str(small_demo), str(tmp_path / "runs"), tmp_path / "log", OVERRIDES)
    yield made.start()
    made.end()


def lose_train_worker(lab: Lab, training: Training) -> str:
    lab.kill("train", "RayTrainWorker")
    return "worker group started again from the last checkpoint"


def lose_data_worker(lab: Lab, training: Training) -> str:
    lab.kill("data", "MakeBatches")
    return "Ray Data started another, which made its batches again"


def lose_train_node(lab: Lab, training: Training) -> str:
    lab.lose("train")
    lab.join("train")
    return "worker group started on the node that joined"


def lose_data_node(lab: Lab, training: Training) -> str:
    lab.lose("data")
    lab.join("data")
    return "batches made on the node that joined"


def preempt_train_node(lab: Lab, training: Training) -> str:
    before = training.step()
    subprocess.run(
        [
            RAY, "drain-node", "--address", lab.address, "--node-id", lab.node_id("train"),
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
            "--deadline-remaining-seconds", "10",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    lab.replace("train", after=8)
    assert training.step() > before
    return "checkpoint at the notice; worker group moved to the other node"


def lose_driver(lab: Lab, training: Training) -> str:
    training.kill_driver()
    training.start()
    return "the same command went on"


def terminate(lab: Lab, training: Training) -> str:
    before, asked = training.step(), time.monotonic()
    training.process.terminate()
    assert training.process.wait(timeout=LONGEST) == 1
    assert "Traceback" not in training.log()
    assert training.step() > before
    training.start()
    return f"checkpoint and clean end {time.monotonic() - asked:.1f} s after SIGTERM; went on"


def damage_newest_checkpoint(lab: Lab, training: Training) -> str:
    training.kill_driver()
    newest = training.checkpoints()[-1].with_suffix(".pt")
    with newest.open("r+b") as file:
        file.seek(os.path.getsize(newest) // 2)
        file.write(b"damaged")
    training.start()
    training.wait_for(lambda: "is damaged" in training.log(), "word of the damage")
    return "named aloud; went on from the checkpoint before"


FAULTS: list[Callable[[Lab, Training], str]] = [
    lose_train_worker, lose_data_worker, terminate, damage_newest_checkpoint, lose_driver,
    lose_train_node, lose_data_node, preempt_train_node,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_weights_are_those_of_an_unbroken_training(
    fault: Callable[[Lab, Training], str],
    lab: Lab,
    training: Training,
    unbroken: Unbroken,
    table: Table,
) -> None:
    training.wait_for_step(30)
    step = training.step()
    happened = fault(lab, training)
    result = training.result()
    lost = time.monotonic() - training.began - unbroken.seconds
    equal = result["weights_sha256"] == unbroken.sha256
    table.add(fault.__name__.replace("_", " "), happened, step, lost, equal)
    assert equal


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_twenty_random_steps_it_ends_with_the_same_weights(
    lab: Lab, training: Training, unbroken: Unbroken, table: Table
) -> None:
    """Workers and drivers, wherever they are; what a kill left is what the next start finds."""
    seed = int(os.environ.get("DPMPP_FAULT_SEED", random.randrange(10**6)))
    print("seed", seed)
    rng = random.Random(seed)
    steps = sorted(rng.sample(range(2, 146), 20))
    began = time.monotonic()
    for step in steps:
        training.wait_for_step(step)
        if rng.random() < 0.5:
            lab.kill("train", "RayTrainWorker")
        else:
            training.kill_driver()
            training.start()
    result = training.result()
    equal = result["weights_sha256"] == unbroken.sha256
    lost = time.monotonic() - began - unbroken.seconds
    table.add(f"20 kills at random steps, seed {seed}", f"at {steps}", steps[0], lost, equal)
    assert equal


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_and_names_step_and_images(
    lab: Lab, small_demo: Path, unbroken: Unbroken, tmp_path: Path
) -> None:
    copy_before_stage_2(unbroken.storage, tmp_path / "runs")
    training = Training(
        lab, str(small_demo), str(tmp_path / "runs"), tmp_path / "log",
        [*OVERRIDES, "metric.lr=1e30", "metric.warmup_epochs=2"],
    )  # fmt: skip
    training.start()
    assert training.process.wait(timeout=LONGEST) == 2
    said = training.log().splitlines()[-1]
    assert "is not finite" in said
    assert "step" in said
    assert said.count(".jpg") == 8, "the images of the step"
    assert "Traceback" not in training.log()
