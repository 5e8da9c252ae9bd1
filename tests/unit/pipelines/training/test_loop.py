"""The whole training loop on an emulated GPU, without Ray: what it waits for, how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch

from dpmpp_core.errors import TrainingError
from dpmpp_core.tasks import feed
from pipelines.training import worker
from pipelines.training.batches import BatchPlan
from pipelines.training.worker import LoopConfig, LoopResult, train_loop
from tests.support.emulated_cuda import EmulatedCuda, emulated_cuda
from tests.support.tasks import metric_batch, metric_task, prompt_task, saliency_task

STEPS = 3
CUDA = torch.device("cuda", 0)


class FakeContext:
    def get_world_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return 1


class FakeCheckpoints:
    def __init__(self) -> None:
        self.saved: dict[int, bytes] = {}

    def newest(self) -> int:
        return 0

    def save(self, step: int, data: bytes, loss: float) -> None:
        self.saved[step] = data


class FakeMonitor:
    """Takes any report."""

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *_arguments: Any) -> None: ...


class FakeJob:
    """A `Job` without Ray and storage."""

    threads, gpu, precision = 1, True, "fp32"

    def __init__(self, kind: str, task: torch.nn.Module) -> None:
        self.kind, self.task = kind, task
        self.monitor, self.checkpoints = FakeMonitor(), FakeCheckpoints()
        self.fault = ""

    def build_task(self) -> torch.nn.Module:
        return self.task

    def open_checkpoints(self) -> FakeCheckpoints:
        return self.checkpoints

    def log_warning(self, message: str) -> None:
        raise AssertionError(message)

    def report_fault(self, message: str) -> None:
        self.fault = message

    def reported_fault(self) -> str:
        return self.fault

    def stop_requested(self) -> bool:
        return False


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedCuda]:
    monkeypatch.setattr(ray.train, "get_context", FakeContext)
    monkeypatch.setattr(ray.train, "get_dataset_shard", lambda name: None)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None, raising=False)
    with emulated_cuda() as mode:
        monkeypatch.setattr(worker, "get_device", lambda: CUDA)
        yield mode


def train(job: FakeJob, monkeypatch: pytest.MonkeyPatch, mode: EmulatedCuda) -> LoopResult:
    """Train STEPS steps, the workers deciding together at the last one only."""
    batch = metric_batch()

    def batches(_shard: None, pinned: bool) -> Iterator[feed.Batch]:
        assert pinned
        for step in range(STEPS):
            if step == 1:
                mode.waits.clear()  # what precedes the second step happens once in a training
            yield {n: x.clone() for n, x in batch.items()} | {"step": torch.tensor(step)}

    monkeypatch.setattr(worker, "start_batches", batches)
    monkeypatch.setattr(worker.ControlSync, "due", lambda self, step: False)
    monkeypatch.setattr(BatchPlan, "end", lambda self, first: STEPS)
    plan = BatchPlan(None, STEPS, 1)  # type: ignore[arg-type]
    settings: LoopConfig = {
        "job": job,
        "total": STEPS,
        "plan": plan,
        "checkpoint_seconds": 60.0,
    }  # type: ignore[typeddict-item]
    return train_loop(settings)


TASKS = {
    "metric": lambda: metric_task("metric.loss.triplet=1"),
    "metric, alternating": lambda: metric_task("metric.update=alternating"),
    "saliency": saliency_task,
    "prompts": lambda: prompt_task("prompts.batch=3"),
}
AT_THE_END = {"pipelines/training/control.py", "pipelines/training/checkpoints.py",
              "pipelines/training/worker.py"}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_no_step_and_no_batch_makes_the_host_wait(name, cuda, monkeypatch):
    """Waits are those of the end: the workers' decision, the report, the checkpoint."""
    job = FakeJob(name.partition(",")[0], TASKS[name]())
    result = train(job, monkeypatch, cuda)
    assert result.step == STEPS and list(job.checkpoints.saved) == [STEPS]
    places = {wait.rpartition(" at ")[2].rpartition(":")[0] for wait in cuda.waits}
    assert cuda.waits and places <= AT_THE_END, cuda.waits
    lines = {wait.rpartition(" at ")[2] for wait in cuda.waits}
    assert not any(_is_in_the_step(line) for line in lines)


def _is_in_the_step(line: str) -> bool:
    """Whether a line of worker.py is one of the loop over batches."""
    file, _, number = line.rpartition(":")
    text = Path(file).read_text().splitlines()[int(number) - 1]
    return file.endswith("worker.py") and ("train_step" in text or "first_fault" in text)


def test_a_copy_that_blocks_would_be_seen(cuda, monkeypatch):
    monkeypatch.setattr(feed, "copy_to_device", lambda value, device: value.to(device))
    train(FakeJob("metric", metric_task()), monkeypatch, cuda)
    blocking = [wait for wait in cuda.waits if "copy to the device" in wait and "test_loop" in wait]
    assert len(blocking) == 3 * (STEPS - 1)  # pictures, labels, donors


def test_the_figures_are_those_of_the_cpu(cuda, monkeypatch):
    sums = []

    def state(task: Any, optimiser: Any, position: worker.Position) -> dict[str, Any]:
        sums.append(position.sums.average_over_workers(1))
        return {}

    monkeypatch.setattr(worker, "_training_state", state)
    train(FakeJob("metric", metric_task()), monkeypatch, cuda)
    on_cpu = FakeJob("metric", metric_task())
    on_cpu.gpu = False
    monkeypatch.setattr(worker, "get_device", lambda: torch.device("cpu"))
    plain = [metric_batch() | {"step": torch.tensor(step)} for step in range(STEPS)]
    monkeypatch.setattr(worker, "start_batches", lambda shard, pinned: iter(plain))
    settings: Any = {"job": on_cpu, "total": STEPS, "plan": None, "checkpoint_seconds": 60.0}
    assert train_loop(settings).step == STEPS
    ours, theirs = sums
    assert ours.keys() == theirs.keys() and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_full_memory_ends_the_training_with_what_to_do(cuda, monkeypatch):
    def full(*_arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    properties = type("Properties", (), {"total_memory": 24e9})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(worker, "train_step", full)
    job = FakeJob("metric", metric_task())
    with pytest.raises(TrainingError, match=r"step 1 .* 24 GB .* metric.accumulate=2 or more"):
        train(job, monkeypatch, cuda)
    # Ray Train starts the workers again, which end at once.
    assert train(job, monkeypatch, cuda) == LoopResult(0, error=job.fault)


def test_a_gpu_that_torch_cannot_use_is_refused_at_the_start(cuda, monkeypatch):
    monkeypatch.setattr(worker, "get_device", lambda: torch.device("cpu"))
    job = FakeJob("metric", metric_task())
    with pytest.raises(TrainingError, match=r"driver is too old .* cluster.gpu=false"):
        train(job, monkeypatch, cuda)
    assert job.fault


def test_bf16_on_a_gpu_without_it_is_refused(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    job = FakeJob("metric", metric_task())
    job.precision = "bf16"
    with pytest.raises(TrainingError, match=r"Tesla T4 has no bf16 .* metric.precision=fp32"):
        train(job, monkeypatch, cuda)
