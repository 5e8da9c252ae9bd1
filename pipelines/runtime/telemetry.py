"""Training gauges for Prometheus, from inside a cluster; Ray exports them as `ray_NAME`.

Each is tagged with its `stage` (`saliency`, `metric`, ...). Where Ray is not started, as in tests
of a single process, nothing is exported.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import ray
from ray.util.metrics import Gauge

NAMES = {
    "dpmpp_train_step": "steps done",
    "dpmpp_train_steps_total": "steps that the training has",
    "dpmpp_train_steps_per_second": "since the last reading, about a second before",
    "dpmpp_data_wait_share": "share of that time in which training waited for batches",
    "dpmpp_loss": "of the last step",
    "dpmpp_mask_std": "std of the mask over pictures, mean over dimensions; 0 = one mask for all",
    "dpmpp_mask_mean": "mean of the mask",
}


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(name, NAMES[name], tag_keys=("stage", "space"))


def publish_metrics(stage: str, values: Mapping[str, float], space: str = "") -> None:
    """Set the gauges of `values`; names are those of NAMES."""
    if ray.is_initialized():
        for name, value in values.items():
            _gauge(name).set(value, {"stage": stage, "space": space})


def publish_mask_metrics(stage: str, figures: Mapping[str, float]) -> None:
    """Set the gauges of masks from a task's figures, `mask_SPACE_std_samples` and so on."""
    for name, value in figures.items():
        for ending, gauge in (("_std_samples", "dpmpp_mask_std"), ("_mean", "dpmpp_mask_mean")):
            if name.startswith("mask_") and name.endswith(ending):
                space = name.removeprefix("mask_").removesuffix(ending)
                publish_metrics(stage, {gauge: value}, space)


class StepTimes(NamedTuple):
    """Wall-clock seconds of some steps, their rate, and the share spent waiting for batches."""

    seconds: float
    steps_per_second: float
    data_wait_share: float


class StepTimer:
    """Measure the steps between two readings."""

    def __init__(self, step: int) -> None:
        self._step, self._start, self._waited = step, time.monotonic(), 0.0

    def add_wait(self, seconds: float) -> None:
        """Count a wait for a batch."""
        self._waited += seconds

    def read(self, step: int) -> StepTimes:
        """Return the times since the last reading; `step` steps are done by now."""
        now = time.monotonic()
        seconds = max(1e-6, now - self._start)
        rate, share = (step - self._step) / seconds, min(1.0, self._waited / seconds)
        self._step, self._start, self._waited = step, now, 0.0
        return StepTimes(seconds, rate, share)
