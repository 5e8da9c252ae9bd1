"""Devices follow the plan; what cannot be used is said at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch

from dpmpp_core.config import ClusterConfig, load_config
from dpmpp_core.errors import ConfigError
from pipelines.runtime.device import assigned_device, count_usable_gpus, resolve_precision
from pipelines.runtime.resources import plan_resources
from pipelines.runtime.run import Run
from pipelines.runtime.stage import stage_key
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A function that gives the machine GPUs, which NVML counts and torch can use or not."""

    def equip(count: int, usable: bool, of_ray: list[int] | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
        monkeypatch.setattr(ray, "is_initialized", lambda: of_ray is not None)
        monkeypatch.setattr(ray, "get_gpu_ids", lambda: of_ray)

    return equip


def test_a_driver_too_old_is_an_error_at_the_start(machine) -> None:
    machine(1, usable=False)
    with pytest.raises(ConfigError, match=r"has 1 GPU.* driver is too old .*cluster.gpu=false"):
        count_usable_gpus(None)
    with pytest.raises(ConfigError, match="driver"):
        count_usable_gpus(True)
    assert count_usable_gpus(False) == 0


def test_gpus_are_counted_where_they_can_be_used(machine) -> None:
    machine(2, usable=True)
    assert count_usable_gpus(None) == 2 and count_usable_gpus(False) == 0
    machine(0, usable=False)
    assert count_usable_gpus(None) == 0


def test_a_worker_without_a_gpu_of_ray_computes_on_the_cpu(machine) -> None:
    machine(1, usable=True, of_ray=[])  # as with cluster.gpu=false
    assert assigned_device() == "cpu"
    machine(1, usable=True)  # a program without Ray
    assert assigned_device() == "cpu"
    machine(1, usable=True, of_ray=[0])
    assert assigned_device() == "cuda"
    machine(1, usable=False, of_ray=[0])
    with pytest.raises(ConfigError, match="Ray gave a worker a GPU, but torch"):
        assigned_device()


def test_a_stage_key_holds_the_precision_that_auto_became(monkeypatch, tmp_path: Path) -> None:
    keys = {}
    for gpu, bf16 in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr("pipelines.runtime.device.computes_bf16", lambda device, y=bf16: y)
        plan = plan_resources(8, int(gpu), ClusterConfig(), shared=True)
        run = Run(load_config("demo"), Storage(str(tmp_path)), Tracking(""), plan)
        keys[gpu, bf16] = (
            run.config.metric.precision, stage_key("metric", {"metric": run.config.metric}),
        )  # fmt: skip
    assert keys[True, False] == keys[False, True]  # bf16 by GPU, and by CPU
    assert [precision for precision, _ in keys.values()] == ["bf16", "bf16", "fp32"]
    assert keys[False, False] != keys[False, True]
    given = load_config("demo", ["metric.precision=fp32"])
    assert resolve_precision(given, gpu=True) == given


def test_the_plan_says_what_embeds() -> None:
    assert "1 embedding worker(s) x 1 GPU" in str(plan_resources(8, 1, ClusterConfig(), True))
    assert "8 embedding worker(s)" in str(plan_resources(8, 0, ClusterConfig(), True))
