"""Training on two processes computes what one process computes on the whole batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from dpmpp_core.losses.triplet import batch_hard_triplet
from dpmpp_core.models.distributed import gather
from tests.support.tasks import metric_batch, metric_task, saliency_batch, saliency_task, total


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


def awake(*overrides):
    task = metric_task(*overrides).train()
    with torch.no_grad():
        for linear in task.model.mask_generator.spaces.values():
            nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(3))
    return task


def metric_on(batch, average=False):
    task = awake()
    return outcome(task, total(task(batch)[0]), average)


def saliency_on(batch, average=False):
    task = saliency_task("saliency.triplet_weight=1").train()
    return outcome(task, total(task(batch)[0]), average)


def triplet_rows():
    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    return rows, torch.tensor([0, 1, 0, 1, 2, 2, 0, 1])


def pass_on(batch, phase, average=False):
    """One pass of an alternating step, wrapped as train workers wrap it, which averages."""
    changes = ("update=alternating", "loss.visibility=1", "mask_grad_clip=1e9")
    task = model = awake(*(f"metric.{change}" for change in changes))
    if average:
        unused = not task.updates_all
        model = nn.parallel.DistributedDataParallel(task, find_unused_parameters=unused)
    loss = total(model(batch, phase)[0])
    loss.backward()
    task.filter_gradients(phase)
    kept = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    return Outcome(loss.item(), kept)


def twin_batch(rows=slice(None)):
    batch = metric_batch()
    batch |= {"twins": batch["images"].flip(2)}
    return {name: values[rows] for name, values in batch.items()}


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    shard = slice(4 * rank, 4 * rank + 4)
    rows, labels = triplet_rows()
    results = {
        "labels": gather(labels[shard]),
        "linear": vars(linear_on(rows[shard], labels[shard], average=True)),
        "shared": vars(shared_gradient_on(rows[shard], average=True)),
        "saliency": vars(
            saliency_on({k: v[shard] for k, v in saliency_batch().items()}, average=True)
        ),
        "metric": vars(metric_on({k: v[shard] for k, v in metric_batch().items()}, average=True)),
    }
    for phase in ("model", "mask"):
        results[phase] = vars(pass_on(twin_batch(shard), phase, average=True))
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


@pytest.mark.parametrize("name", ["linear", "shared", "saliency", "metric"])
def test_two_workers_compute_what_one_does(two_workers, name):
    rows, labels = triplet_rows()
    alone = {
        "linear": lambda: linear_on(rows, labels),
        "shared": lambda: shared_gradient_on(rows),
        "saliency": lambda: saliency_on(saliency_batch()),
        "metric": lambda: metric_on(metric_batch()),
    }[name]()
    for results in two_workers:
        if name == "metric":  # the heads' loss is each worker's own, averaged with the gradients
            losses = [other["metric"].loss for other in two_workers]
            assert sum(losses) / 2 == pytest.approx(alone.loss, rel=1e-4)
        else:
            assert results[name].loss == pytest.approx(alone.loss, rel=1e-5)
        assert results[name].gradients.keys() == alone.gradients.keys()
        for parameter, gradient in alone.gradients.items():
            torch.testing.assert_close(
                results[name].gradients[parameter], gradient, atol=2e-4, rtol=1e-3,
                msg=lambda text, parameter=parameter: f"{parameter}: {text}",
            )  # fmt: skip


@pytest.mark.parametrize("phase", ["model", "mask"])
def test_two_workers_take_the_passes_of_one(two_workers, phase):
    alone = pass_on(twin_batch(), phase)
    losses = [results[phase].loss for results in two_workers]
    assert sum(losses) / 2 == pytest.approx(alone.loss, rel=1e-4)
    for results in two_workers:
        gradients = results[phase].gradients
        assert gradients.keys() == alone.gradients.keys()
        for name, gradient in alone.gradients.items():
            torch.testing.assert_close(gradients[name], gradient, atol=2e-4, rtol=1e-3)
    of_generator = {name.startswith("model.mask_generator.") for name in alone.gradients}
    assert of_generator == {phase == "mask"}


def test_gather_on_one_worker_is_the_tensor_itself():
    local = torch.ones(2, requires_grad=True)
    assert gather(local) is local
