"""Learning rates and parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import nn


def warmup_cosine(epoch: float, warmup: int, epochs: int, floor: float) -> float:
    """Return the factor on the base rate: linear from 0.01 over `warmup` epochs, then cosine.

    The position `epoch` is fractional; `floor` in [0, 1] is the last factor.
    """
    if epoch < warmup:
        return 0.01 + 0.99 * epoch / warmup
    done = min(1.0, (epoch - warmup) / max(1e-9, epochs - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def warmup_steps(epoch: float, warmup: int, milestones: Sequence[float], gamma: float) -> float:
    """Return the factor on the base rate: linear from 0.1 in warm-up, x gamma at each milestone."""
    start = 0.1 + 0.9 * epoch / warmup if epoch < warmup else 1.0
    return start * gamma ** sum(epoch >= milestone for milestone in milestones)


def parameter_group(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, bias_factor: float, weight_decay: float
) -> list[dict]:
    """Group the trainable parameters for an optimiser: biases at `bias_factor` x `lr`."""
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            (biases if name.endswith("bias") else weights).append(parameter)
    groups = [(weights, lr), (biases, lr * bias_factor)]
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": weight_decay}
        for parameters, rate in groups
        if parameters
    ]
