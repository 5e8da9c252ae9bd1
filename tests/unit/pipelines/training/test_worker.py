"""The step of the training loop, and what its workers agree on."""

from __future__ import annotations

import torch

from dpmpp_core.tasks.step import split_batch, train_step
from pipelines.training.control import reduce_max
from pipelines.training.worker import _step_seed
from tests.support.tasks import metric_batch, metric_task


def weights(task: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in task.named_parameters()}


def test_parts_are_equal_and_in_order_and_each_knows_the_step() -> None:
    batch = {"labels": torch.arange(8), "covered": torch.arange(4), "step": torch.tensor(7)}
    first, second = split_batch(batch, 2)
    assert first["labels"].tolist() + second["labels"].tolist() == list(range(8))
    assert [len(part["covered"]) for part in (first, second)] == [2, 2]
    assert first["step"] == second["step"] == 7
    assert split_batch(batch, 1) == [batch]


def test_a_batch_in_two_equal_parts_moves_the_weights_as_one_of_them_does() -> None:
    half = metric_batch()
    twice = {
        name: torch.cat([value, value]) if value.ndim else value for name, value in half.items()
    }
    moved = []
    for batch, parts in ((half, 1), (twice, 2)):
        task = metric_task(f"metric.accumulate={parts}").train()
        before = weights(task)
        figures = train_step(task, task, task.optimiser(), batch, 3)
        moved.append((weights(task), figures["loss"]))
        assert any(not torch.equal(before[name], p) for name, p in moved[-1][0].items())
    (one, loss), (two, same) = moved
    torch.testing.assert_close(loss, same)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, msg=name)


def test_random_numbers_come_from_seed_step_and_rank_alone() -> None:
    places = [(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(2)]
    drawn = {place: _step_seed(*place) for place in places}
    assert len(set(drawn.values())) == len(places)
    assert all(_step_seed(*place) == value for place, value in drawn.items())


def test_alone_a_worker_agrees_with_itself() -> None:
    assert reduce_max(torch.tensor([0.0, 3.0])) == [0.0, 3.0]
