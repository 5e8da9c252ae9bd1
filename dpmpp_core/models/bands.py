"""Horizontal bands of the person, and how much of each is seen (ours).

The dimensions of a class token all see the whole picture, so an occlusion spoils each a little and
no mask can tell the spoilt from the sound. Here a dimension belongs to one band of the picture:
what hides the legs spoils the dimensions of the legs and no others.

Three things keep it so (each measured, tests/bench/results/mask-trials.md). The tokens are those of
an earlier block, in which less has flowed from band to band. The bands learn from the masked loss
alone: any other would have a hidden band guess, from what it hears of the rest, who it belongs to.
And what says which patches show the person learns from the patches alone, behind a wall that no
gradient passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpmpp_core.models.batch_norm import WholeBatchNorm2d
from dpmpp_core.models.distributed import over_workers

SPACE = "bands"
VISIBILITY_HEAD_WIDTH = 64


@dataclass
class Banded:
    """What one pass gives.

    Attributes:
        feature: [B, bands * width], band by band from the top.
        mask: float32 of the same shape, in (0, 1), the same in all dimensions of a band.
        visible: float32 [B, rows, columns], logits: does the patch show the person?
    """

    feature: Tensor
    mask: Tensor
    visible: Tensor


class VisibleBands(nn.Module):
    """Patch tokens -> a feature and a mask whose dimensions belong to horizontal bands.

    A few convolutions on the tapped tokens say which patches show the person. A band's feature is
    the mean of its tokens at the last tap but one, weighed by that. Its mask is (s / (s + u))^2: s
    is the amount of person seen in the band, u what is usual there, a running mean. So a band like
    most has 1/4, a hidden one nearly 0.

    Args:
        channels: channels of the tapped tokens, taps x token_width.
        token_width: those of one tap, and the dimensions of a band.
        bands: number of bands R.
    """

    usual: Tensor

    def __init__(self, channels: int, token_width: int, bands: int) -> None:
        super().__init__()
        self.bands, self.width, self.token_width = bands, bands * token_width, token_width
        self.patches = nn.Sequential(
            WholeBatchNorm2d(channels),
            nn.Conv2d(channels, VISIBILITY_HEAD_WIDTH, 1),
            nn.GELU(),
            nn.Conv2d(VISIBILITY_HEAD_WIDTH, VISIBILITY_HEAD_WIDTH, 5, padding=2),
            nn.GELU(),
            nn.Conv2d(VISIBILITY_HEAD_WIDTH, VISIBILITY_HEAD_WIDTH, 5, padding=2),
            nn.GELU(),
            nn.Conv2d(VISIBILITY_HEAD_WIDTH, 1, 1),
        )
        self.register_buffer("usual", torch.full((bands,), 0.5))

    def forward(self, taps: Tensor) -> Banded:
        """[B, channels, rows, columns] -> `Banded`."""
        visible = self.see(taps)
        tokens = taps.unflatten(1, (-1, self.token_width))[:, -2:][:, 0].float()
        with torch.autocast(taps.device.type, enabled=False):
            return self._pool(tokens, visible)

    def see(self, taps: Tensor) -> Tensor:
        """Logits float32 [B, rows, columns]: does the patch show the person?

        It learns from the patches alone and teaches the encoder nothing.
        """
        return self.patches(taps.detach()).squeeze(1).float()

    def _pool(self, tokens: Tensor, visible: Tensor) -> Banded:
        _, _, rows, columns = tokens.shape
        shares = _shares(rows, self.bands, tokens.device) / columns
        weight = visible.detach().sigmoid()
        seen = weight.sum(dim=2) @ shares.T  # [B, R], mean over a band's patches
        by_row = torch.einsum("bdhw,bhw->bdh", tokens, weight)
        feature = (by_row @ shares.T / seen.clamp_min(1e-3)[:, None]).transpose(1, 2)  # [B, R, D]
        if self.training:
            self.usual.lerp_(over_workers(seen.detach().mean(dim=0)), 0.05)
        # Never zero: a mask of nothing is no mask, and the metric refuses it.
        mask = (seen / (seen + self.usual)).square().clamp_min(1e-9)
        return Banded(feature.flatten(1), mask.repeat_interleave(self.token_width, dim=1), visible)


def _shares(rows: int, bands: int, device: torch.device) -> Tensor:
    """[bands, rows]: share of each row of patches in each band; a band's shares sum to 1."""
    edges = torch.linspace(0, rows, bands + 1, device=device)
    top = torch.arange(rows, device=device)
    inside = torch.minimum(edges[1:, None], top + 1) - torch.maximum(edges[:-1, None], top)
    return inside.clamp_min(0) * bands / rows
