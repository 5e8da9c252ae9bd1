"""The interface of a training stage to the loop that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from dpmpp_core.config import Config
from dpmpp_core.tasks.schedule import parameter_group

Figures = dict[str, Tensor]


class Task(nn.Module):
    """A module whose forward(batch, phase) returns one pass's losses, with common defaults.

    Args:
        config: the run's configuration.
        epochs: length of the training.
        steps_per_epoch: length of an epoch.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: Config, epochs: int, steps_per_epoch: int) -> None:
        super().__init__()
        self.config, self.epochs, self.steps_per_epoch = config, epochs, steps_per_epoch
        for name, value in (("pixel_mean", config.data.mean), ("pixel_std", config.data.std)):
            self.register_buffer(name, 255 * torch.tensor(value), persistent=False)

    @property
    def phases(self) -> tuple[str, ...]:
        """The passes of one step, in order; each is an update."""
        return ("joint",)

    @property
    def updates_all(self) -> bool:
        """Whether every pass gives every parameter a gradient."""
        return True

    @property
    def accumulate(self) -> int:
        """Number of parts of a batch, computed one after the other."""
        return 1

    def batches(self, start: int) -> Iterator[dict[str, Tensor]]:
        """Yield the batches from step `start` (0-based) on, in a task that plans them itself."""
        raise NotImplementedError

    def compile_parts(self) -> None:
        """Apply torch.compile if configured; names of the state stay."""

    def forward(self, batch: Mapping[str, Tensor], phase: str = "joint") -> tuple[Figures, Figures]:
        """Return weighted losses to be summed, and detached figures to be shown."""
        raise NotImplementedError

    def optimiser(self) -> torch.optim.Optimizer:
        """Create an optimiser whose groups hold their `base_lr`."""
        raise NotImplementedError

    def groups_by_rate(
        self, rate: Callable[[str], float], bias_factor: float, weight_decay: float
    ) -> list[dict]:
        """Group the parameters by `rate` of their names; those of rate 0 do not learn."""
        by_rate: dict[float, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in self.named_parameters():
            by_rate.setdefault(rate(name), []).append((name, parameter))
        return [
            group
            for lr, named in by_rate.items()
            if lr
            for group in parameter_group(named, lr, bias_factor, weight_decay)
        ]

    def lr_factor(self, step: int) -> float:
        """Return the factor on the base rates at a step."""
        raise NotImplementedError

    def filter_gradients(self, phase: str) -> None:
        """Drop or clip gradients between the backward pass and the update."""

    def alarms(self, epoch: int, figures: Mapping[str, float]) -> dict[str, str]:
        """Return warnings about the mean figures of an epoch, by name."""
        return {}

    def trained_state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must hold."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of `trained_state`."""
        self.load_state_dict(dict(state))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 [B, H, W, 3] to float32 [B, 3, H, W]."""
        return ((images - self.pixel_mean) / self.pixel_std).permute(0, 3, 1, 2).contiguous()

    def autocast(self) -> torch.autocast:
        """Return a context of bf16, if configured or, on `auto`, if the device computes it."""
        device, precision = self.pixel_mean.device, self.config.metric.precision
        enabled = precision == "bf16" or (precision == "auto" and computes_bf16(device))
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def computes_bf16(device: torch.device) -> bool:
    """Return whether the device has bf16 arithmetic, so that autocast gains time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, bool)() for test in tests)
