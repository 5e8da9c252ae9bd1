"""Training on two processes computes what one process computes on the whole batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from dpmpp_core.losses.triplet import batch_hard_triplet
from dpmpp_core.tasks.distributed import gather
from tests.unit.test_tasks import awake, metric_batch, metric_task, total


@dataclasses.dataclass
class Outcome:
    loss: float
    gradients: dict[str, torch.Tensor]


def outcome(module, loss, average):
    loss.backward()
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    if average:
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
    return Outcome(loss.item(), gradients)


def linear_on(rows, labels, average=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Linear(3, 5)
    return outcome(module, batch_hard_triplet(gather(module(rows)), gather(labels), 0.3), average)


def shared_gradient_on(rows, average=False):
    """An addition hands one gradient tensor to both of its terms; the gathered one comes first."""
    module = nn.ParameterDict({"scale": torch.ones(3), "offset": torch.zeros(8, 3)})
    offset = module.offset.tanh()
    return outcome(module, (gather(rows * module.scale) + offset).exp().sum(), average)


def metric_on(batch, average=False):
    task = awake(metric_task())
    task.model.mask_generator.eval()  # its batch norm sees a worker's own shard
    return outcome(task, total(task(batch)[0]), average)


def pass_on(batch, phase, average=False):
    """One pass of an alternating step, wrapped as train workers wrap it: it averages by itself."""
    overrides = ("update=alternating", "loss.visibility=1", "mask_grad_clip=1e9")
    task = awake(metric_task(*(f"metric.{override}" for override in overrides)))
    task.model.mask_generator.eval()
    model = task
    if average:
        model = nn.parallel.DistributedDataParallel(
            task, find_unused_parameters=not task.updates_all
        )
    result = outcome(task, total(model(batch, phase)[0]), average=False)
    task.keep_gradients(phase)
    kept = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    return Outcome(result.loss, kept)


def with_twins(batch):
    return batch | {"twins": batch["images"].flip(2)}


def triplet_rows():
    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    return rows, torch.tensor([0, 1, 0, 1, 2, 2, 0, 1])


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    shard = slice(4 * rank, 4 * rank + 4)
    rows, labels = triplet_rows()
    batch = {k: v[shard] for k, v in with_twins(metric_batch()).items()}
    results = {
        "labels": gather(labels[shard]),
        "linear": vars(linear_on(rows[shard], labels[shard], average=True)),
        "shared": vars(shared_gradient_on(rows[shard], average=True)),
        "metric": vars(metric_on(batch, average=True)),
        "model": vars(pass_on(batch, "model", average=True)),
        "mask": vars(pass_on(batch, "mask", average=True)),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.spawn(worker, args=(str(folder),), nprocs=2)
    return [load_results(folder / f"{rank}.pt") for rank in range(2)]


def load_results(path):
    saved = torch.load(path, weights_only=True)
    return {"labels": saved.pop("labels")} | {name: Outcome(**v) for name, v in saved.items()}


def test_labels_are_gathered_in_rank_order(two_workers):
    for results in two_workers:
        assert torch.equal(results["labels"], triplet_rows()[1])


@pytest.mark.parametrize("name", ["linear", "shared", "metric", "model", "mask"])
def test_two_workers_compute_what_one_does(two_workers, name):
    rows, labels = triplet_rows()
    alone = {
        "linear": lambda: linear_on(rows, labels),
        "shared": lambda: shared_gradient_on(rows),
        "metric": lambda: metric_on(metric_batch()),
        "model": lambda: pass_on(with_twins(metric_batch()), "model"),
        "mask": lambda: pass_on(with_twins(metric_batch()), "mask"),
    }[name]()
    for results in two_workers:
        if name in ("metric", "model"):  # the heads' loss is each worker's own, averaged later
            losses = [other[name].loss for other in two_workers]
            assert sum(losses) / 2 == pytest.approx(alone.loss, rel=1e-4)
        else:
            assert results[name].loss == pytest.approx(alone.loss, rel=1e-5)
        assert results[name].gradients.keys() == alone.gradients.keys()
        for parameter, gradient in alone.gradients.items():
            torch.testing.assert_close(
                results[name].gradients[parameter], gradient, atol=2e-4, rtol=1e-3,
                msg=lambda text, parameter=parameter: f"{parameter}: {text}",
            )  # fmt: skip


def test_gather_on_one_worker_is_the_tensor_itself():
    local = torch.ones(2, requires_grad=True)
    assert gather(local) is local
