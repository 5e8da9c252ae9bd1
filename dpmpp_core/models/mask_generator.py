"""The dynamic mask: which dimensions of the identity space are reliable for a picture (DPM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from dpmpp_core.models.batch_norm import WholeBatchNorm2d


class MaskGenerator(nn.Module):
    """Maps patch tokens of several blocks to one mask in (0, 1) for each metric space.

    Three convolutions with batch norm and ReLU, two of them followed by max pooling, then a global
    maximum and one linear layer per space. The linear layers start at zero, so every mask starts at
    exactly 0.5 and retrieval starts out identical to the unmasked model.

    Args:
        channels: channels of the tapped tokens, taps x width.
        spaces: name -> width of each metric space.
        variant: `full` is DPM's trunk (3x3 convolutions to 2w, w, w with w = channels / 4: 59 M
            parameters for ViT-B); `light` (ours) a 1x1 convolution to w / 3, then two 3x3; `none`
            returns masks of 0.5, which is the plain cosine.
    """

    def __init__(
        self, channels: int, spaces: Mapping[str, int], variant: Literal["light", "full", "none"]
    ) -> None:
        super().__init__()
        self.widths = dict(spaces)
        self.trunk, self.spaces = nn.Sequential(), nn.ModuleDict()
        if variant == "none":
            return
        width = channels // 4
        if variant == "full":
            widths, kernels = (2 * width, width, width), (3, 3, 3)
        else:
            light = max(64, width // 3)
            widths, kernels = (light, light, light), (1, 3, 3)
        layers: list[nn.Module] = []
        for i, (out, kernel) in enumerate(zip(widths, kernels, strict=True)):
            layers += [
                nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False),
                WholeBatchNorm2d(out),
                nn.ReLU(inplace=True),
            ]
            if i < 2:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            channels = out
        self.trunk = nn.Sequential(*layers)
        self.spaces = nn.ModuleDict({name: _zeros(channels, d) for name, d in spaces.items()})

    def forward(self, taps: Tensor) -> dict[str, Tensor]:
        """Map [B, channels, rows, columns] to {space: float32 [B, width]}, each in (0, 1)."""
        if not self.spaces:
            count, device = taps.shape[0], taps.device  # len() would fix the batch size at export
            return {n: torch.full((count, d), 0.5, device=device) for n, d in self.widths.items()}
        pooled = self.trunk(taps).amax(dim=(2, 3))
        return {name: torch.sigmoid(linear(pooled).float()) for name, linear in self.spaces.items()}


def _zeros(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
