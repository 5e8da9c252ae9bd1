"""Steps through real data workers: the same however many there are, and whatever dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from dpmpp_core.config import ClusterConfig, load_config
from pipelines.cluster import connect
from pipelines.prepare import find_data, prepare
from pipelines.saliency import saliency
from pipelines.stage import Run
from pipelines.storage import Storage
from pipelines.stream import QUEUED, TrainingSet, data_workers, stream_steps
from pipelines.tracking import Tracking
from tests.integration.conftest import SMALL

STEPS = 12

Batch = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def training_set(
    cluster: None, small_demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainingSet:
    config = load_config("demo", [*SMALL, "saliency.provider=spectral", "metric.identities=8"])
    plan, _ = connect(None, ClusterConfig(train_workers=2, data_workers=2))
    storage = Storage(str(tmp_path_factory.mktemp("runs")))
    run = Run(config, storage, Tracking(""), plan)
    prepared = prepare(run, find_data(config.data, str(small_demo)))
    return TrainingSet(config, storage.uri, prepared.key, saliency(run, prepared).key)


@pytest.fixture(scope="module")
def planned(training_set: TrainingSet) -> list[dict[str, Any]]:
    """What the steps hold, made here."""
    maker = training_set.step_maker()
    return [maker.make(step) for step in range(STEPS)]


def same(got: Iterable[Batch], planned: list[dict[str, Any]]) -> bool:
    batches = list(got)
    assert len(batches) == len(planned)
    return all(
        torch.equal(value, torch.from_numpy(made[name]))
        for batch, made in zip(batches, planned, strict=True)
        for name, value in batch.items()
    )


@pytest.mark.parametrize("count", [1, 2, 8])
def test_any_number_of_data_workers_makes_the_same_steps_in_order(
    training_set: TrainingSet, planned: list[dict[str, Any]], count: int
) -> None:
    with data_workers(training_set, count) as workers:
        assert same(stream_steps(workers, 0, STEPS), planned)
        assert same(stream_steps(workers, 5, 9), planned[5:9])  # as after a checkpoint


def test_two_train_workers_share_each_step(
    training_set: TrainingSet, planned: list[dict[str, Any]]
) -> None:
    with data_workers(training_set, 1) as workers:
        shares = [stream_steps(workers, 0, STEPS, rank, 2) for rank in (0, 1)]
        for made, *parts in zip(planned, *shares, strict=True):
            for name in ("images", "labels", "donor_labels", "visible"):
                assert torch.equal(torch.cat([p[name] for p in parts]), torch.tensor(made[name]))


def test_a_killed_data_worker_is_replaced_and_no_step_is_lost(
    training_set: TrainingSet, planned: list[dict[str, Any]]
) -> None:
    with data_workers(training_set, 1) as workers:
        stream = stream_steps(workers, 0, STEPS)
        got = [next(stream)]
        mine = psutil.Process().children(recursive=True)  # others train on this machine too
        (process,) = [p for p in mine if p.is_running() and is_worker(p.cmdline())]
        os.kill(process.pid, signal.SIGKILL)
        got += stream
        assert same(got, planned)


def is_worker(title: list[str]) -> bool:
    return "ray::DataWorker" in " ".join(title)


def test_no_more_is_made_ahead_than_may_wait(training_set: TrainingSet) -> None:
    counting = ray.remote(Counting).options(max_concurrency=2).remote()
    stream = stream_steps([counting], 0, 1000)
    next(stream)
    time.sleep(1)
    assert ray.get(counting.count.remote()) <= QUEUED + 2  # one is taken, one is being fetched
    stream.close()


class Counting:
    """A data worker of empty batches."""

    def __init__(self) -> None:
        self._made = 0

    def make(self, step: int, rank: int, world: int) -> dict[str, Any]:
        self._made += 1
        return {"step": np.array(step)}

    def count(self) -> int:
        return self._made
