"""Batches from real data workers: the same for any number of workers, and after a kill."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dpmpp_core.config import ClusterConfig, load_config
from dpmpp_core.errors import ConfigError
from pipelines.runtime.resources import connect
from pipelines.runtime.run import Run
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking
from pipelines.stages.prepare import find_data, prepare
from pipelines.stages.saliency import compute_person_masks
from pipelines.stages.train import train_metric
from pipelines.training import driver as fit
from pipelines.training.batches import BatchesPerRank, BatchPlan
from pipelines.training.training_set import TrainingSet
from pipelines.training.worker import start_batches
from tests.support.configs import SMALL, TEXTLESS, TEXTLESS_CONFIG

STEPS = 36  # two tasks and a part of one

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
    return TrainingSet(config, storage.uri, prepared.key, compute_person_masks(run, prepared).key)


@pytest.fixture(scope="module")
def planned(training_set: TrainingSet) -> list[dict[str, Any]]:
    """What the steps hold, made here."""
    maker = training_set.build_step_maker()
    return [maker.make(step) for step in range(STEPS)]


def same(got: Iterable[Batch], planned: list[dict[str, Any]]) -> bool:
    batches = list(got)
    assert len(batches) == len(planned)
    return all(
        torch.equal(value, torch.from_numpy(made[name]))
        for batch, made in zip(batches, planned, strict=True)
        for name, value in batch.items()
    )


def read(plan: BatchPlan, first: int = 0, rank: int = 0, world: int = 1) -> Iterable[Batch]:
    return start_batches(plan.build_pipeline(first, rank, world).streaming_split(1)[0])


@pytest.mark.parametrize("count", [1, 2, pytest.param(8, marks=pytest.mark.long)])
def test_any_number_of_data_workers_makes_the_same_batches_in_order(
    training_set: TrainingSet, planned: list[dict[str, Any]], count: int
) -> None:
    assert same(read(BatchPlan(training_set, STEPS, count)), planned)


def test_a_pipeline_starts_at_any_step_also_inside_a_task(
    training_set: TrainingSet, planned: list[dict[str, Any]]
) -> None:
    assert same(read(BatchPlan(training_set, 27, 2), first=5), planned[5:27])


def test_two_train_workers_share_each_step(
    training_set: TrainingSet, planned: list[dict[str, Any]]
) -> None:
    config = BatchesPerRank(BatchPlan(training_set, STEPS, 1), lambda: 3)
    shards = [one["steps"] for one in config.configure({}, 2, None, None)]
    for made, *parts in zip(planned[3:], *map(start_batches, shards), strict=True):
        for name in ("images", "labels", "donor_labels", "visible"):
            assert torch.equal(torch.cat([p[name] for p in parts]), torch.tensor(made[name]))


def test_a_finished_training_has_no_batches(training_set: TrainingSet) -> None:
    assert list(read(BatchPlan(training_set, STEPS, 1), first=STEPS)) == []


def test_a_killed_data_worker_is_replaced_and_no_step_is_lost(
    training_set: TrainingSet, planned: list[dict[str, Any]]
) -> None:
    stream = iter(read(BatchPlan(training_set, STEPS, 1)))
    got = [next(stream)]
    for process in psutil.Process().children(recursive=True):  # others may use Ray Data too
        with suppress(psutil.NoSuchProcess):  # as it may have ended by now
            if is_worker(process.cmdline()):
                process.kill()
    got += stream
    assert same(got, planned)


def is_worker(title: list[str]) -> bool:
    return "MakeBatches" in " ".join(title)


def test_an_image_that_cannot_be_read_is_named(training_set: TrainingSet) -> None:
    root, paths, _, _ = training_set.rows()
    rows = training_set.plan().rows(0, 0)
    victim = Path(root) / paths[rows[0]]
    content = victim.read_bytes()
    victim.write_bytes(b"no image")
    try:
        with pytest.raises(Exception, match=paths[rows[0]]):
            list(read(BatchPlan(training_set, STEPS, 1)))
    finally:
        victim.write_bytes(content)


def test_operators_are_named_for_what_they_do(training_set: TrainingSet) -> None:
    shard = BatchPlan(training_set, 2, 1).build_pipeline(0).streaming_split(1)[0]
    list(start_batches(shard))
    assert "MapBatches(MakeBatches)" in shard.stats()


@pytest.mark.slow
def test_a_training_in_several_executions_is_the_training_in_one(
    cluster: None, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(TEXTLESS_CONFIG, TEXTLESS)
    plan, _ = connect(None, config.cluster)
    digests = []
    for steps, folder in ((1000, "one"), (8, "several")):
        monkeypatch.setattr(fit, "BatchPlan", partial(BatchPlan, steps_per_execution=steps))
        run = Run(config, Storage(str(tmp_path / folder)), Tracking(""), plan)
        prepared = prepare(run, find_data(config.data, str(small_demo)))
        masks = compute_person_masks(run, prepared)
        stage = train_metric(run, prepared, masks, None)
        assert stage.summary["steps"] == 12
        digests.append(stage.summary["weights_sha256"])
    assert digests[0] == digests[1]


def test_a_small_set_has_all_its_persons_in_each_batch(training_set: TrainingSet) -> None:
    def with_batch(*overrides: str) -> TrainingSet:
        config = load_config("demo", [*SMALL, "saliency.provider=spectral", *overrides])
        return replace(training_set, config=config)

    small, persons = with_batch("metric.identities=1024"), training_set.classes()
    assert small.plan().identities == persons < 1024
    images = small.build_step_maker().make(0)["images"]
    assert len(images) == persons * small.config.metric.images
    with pytest.raises(ConfigError, match="identities of the training set cannot be taken in"):
        with_batch("metric.identities=1024", "metric.accumulate=512").plan()
