"""The schedule of stage 2 in fewer epochs or in segments, and what is wrong with one (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpmpp_core.config.sections import Config
from dpmpp_core.config.training import MetricConfig


def find_long_warmups(config: Config, stages: Sequence[str]) -> list[str]:
    """Say of each of these stages whose warm-up is as long as its training that its rate is low."""
    found = []
    for name in stages:
        stage = getattr(config, name)
        if stage.warmup_epochs >= stage.epochs:
            found.append(
                f"{name}.warmup_epochs is {stage.warmup_epochs} of {name}.epochs {stage.epochs}: "
                "the learning rate never reaches its full value"
            )
    return found


def shorten_schedule(config: Config, epochs: int) -> Config:
    """Return the same training in fewer epochs: its schedule is scaled, not cut."""
    metric, share = config.metric, epochs / config.metric.epochs
    changes: dict[str, Any] = {
        "epochs": epochs,
        "warmup_epochs": round(metric.warmup_epochs * share),
    }
    if metric.milestones is not None:
        changes["milestones"] = sorted({max(1, round(m * share)) for m in metric.milestones})
    short = MetricConfig.model_validate({**metric.model_dump(), **changes})
    return config if epochs == metric.epochs else config.model_copy(update={"metric": short})


def split_into_segments(config: Config, rates: Sequence[float], segments: int) -> Config:
    """Return the same training in equal segments at these rates, the last one for the rest."""
    given = tuple(rates) + tuple(rates[-1:]) * (segments - len(rates))
    metric = config.metric.model_copy(update={"rates": given})
    return config.model_copy(update={"metric": metric})
