"""Two workers with half a batch each against one with the whole of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dpmpp_core.tasks.step import train_step, wrap_for_workers
from tests.gpu.setting import Row, Setting, to_batch


def check_shares(setting: Setting) -> Row:
    """Compare the weights after some steps of one worker and of two, which talk by gloo.

    NCCL refuses two workers on one card.
    """
    row, steps = Row(), setting.size(10, 1)
    _ = setting.people  # drawn once, before the processes start
    whole = _train(setting, steps, 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (setting.device.type, setting.small, str(setting.folder), steps, folder)
        mp.spawn(_work, arguments, nprocs=2)
        states = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, other in (("one_and_two", whole), ("the_two", states[1])):
        differences = [
            float((x.double() - other[n].double()).abs().max()) for n, x in states[0].items()
        ]
        row.figures[name] = max(differences)
    row.require(row.figures["the_two"] == 0, "the two workers have other weights")
    bound = 1e-5
    row.require(row.figures["one_and_two"] <= bound, f"weights differ by more than {bound}")
    return row


def _work(rank: int, device: str, small: bool, people: str, steps: int, folder: str) -> None:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    setting = Setting(torch.device(device), small, Path(people))
    torch.save(_train(setting, steps, rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _train(setting: Setting, steps: int, rank: int, world: int) -> dict[str, torch.Tensor]:
    # SGD: Adam would turn the rounding of a gradient near zero into a whole step.
    config = setting.demo_config(
        "metric.precision=fp32", "metric.optimiser=sgd", "metric.lr=1e-4", "metric.encoder_lr=1e-4"
    )
    maker = setting.step_maker(config)
    task = setting.metric_task(config, setting.size(16, 8))
    model, optimiser = wrap_for_workers(task, world), task.optimiser()
    for step in range(steps):
        batch = setting.on_device(to_batch(maker.make(step % 2, rank, world)))
        train_step(task, model, optimiser, batch, step)
    return {n: p.detach().cpu().clone() for n, p in task.named_parameters()}
