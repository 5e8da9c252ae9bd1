"""Figures for Prometheus beside Ray's own, from inside a cluster; Ray exports them as `ray_NAME`.

Each is a gauge of a training, tagged with its `stage` (`saliency`, `metric`, ...). Outside of Ray,
as in tests of a single process, they go nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache

import ray
from ray.util.metrics import Gauge

NAMES = {
    "dpmpp_train_step": "steps done",
    "dpmpp_train_steps_total": "steps that the training has",
    "dpmpp_train_steps_per_second": "since the last look, about a second before",
    "dpmpp_data_wait_share": "share of that time in which training waited for batches",
    "dpmpp_loss": "of the last step",
    "dpmpp_mask_std": "std of the mask over pictures, mean over dimensions; 0 = one mask for all",
    "dpmpp_mask_mean": "mean of the mask",
}


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(name, NAMES[name], tag_keys=("stage", "space"))


def show(stage: str, values: Mapping[str, float], space: str = "") -> None:
    """Set gauges; names are those of NAMES."""
    if ray.is_initialized():
        for name, value in values.items():
            _gauge(name).set(value, {"stage": stage, "space": space})


def show_masks(stage: str, figures: Mapping[str, float]) -> None:
    """Set the gauges of masks from a task's figures, `mask_SPACE_std_samples` and so on."""
    for name, value in figures.items():
        for ending, gauge in (("_std_samples", "dpmpp_mask_std"), ("_mean", "dpmpp_mask_mean")):
            if name.startswith("mask_") and name.endswith(ending):
                show(stage, {gauge: value}, name.removeprefix("mask_").removesuffix(ending))


class Rate:
    """Steps a second and the share of time that was waited for data, between two looks."""

    def __init__(self, step: int) -> None:
        self._step, self._mark, self._waited = step, time.monotonic(), 0.0

    def wait(self, seconds: float) -> None:
        self._waited += seconds

    def read(self, step: int) -> dict[str, float]:
        now = time.monotonic()
        seconds = max(1e-6, now - self._mark)
        values = {
            "dpmpp_train_step": float(step),
            "dpmpp_train_steps_per_second": (step - self._step) / seconds,
            "dpmpp_data_wait_share": min(1.0, self._waited / seconds),
        }
        self._step, self._mark, self._waited = step, now, 0.0
        return values
