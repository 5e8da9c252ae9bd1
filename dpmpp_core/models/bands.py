"""Horizontal bands of the person, and how much of each is seen (ours).

The dimensions of a class token all see the whole picture, so an occlusion spoils each a little and
no mask can tell the spoilt from the sound. Here a dimension belongs to one band of the picture:
what hides the legs spoils the dimensions of the legs and no others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

SPACE = "bands"


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

    A 1x1 convolution on the tapped tokens says which patches show the person. A band's feature is
    the mean of its last tokens, weighed by that, behind a linear map of its own. Its mask is
    s / (s + u): s is the amount of person seen in the band, u what is usual there, a running mean.
    So a band like most has 0.5, a hidden one nearly 0.

    Args:
        channels: channels of the tapped tokens, taps x token_width.
        token_width: those of the last tap.
        bands: number of bands R.
        width: dimensions of a band.
    """

    usual: Tensor

    def __init__(self, channels: int, token_width: int, bands: int, width: int) -> None:
        super().__init__()
        self.bands, self.width, self.token_width = bands, bands * width, token_width
        self.patches = nn.Conv2d(channels, 1, 1)
        self.project = nn.Conv1d(bands * token_width, self.width, 1, groups=bands, bias=False)
        self.register_buffer("usual", torch.full((bands,), 0.5))

    def forward(self, taps: Tensor) -> Banded:
        """[B, channels, rows, columns] -> `Banded`."""
        visible = self.patches(taps).squeeze(1).float()
        tokens = taps[:, -self.token_width :].float()
        with torch.autocast(taps.device.type, enabled=False):
            return self._pool(tokens, visible)

    def _pool(self, tokens: Tensor, visible: Tensor) -> Banded:
        _, _, rows, columns = tokens.shape
        shares = _shares(rows, self.bands, tokens.device) / columns
        weight = visible.sigmoid()
        seen = weight.sum(dim=2) @ shares.T  # [B, R], mean over a band's patches
        by_row = torch.einsum("bdhw,bhw->bdh", tokens, weight)
        pooled = (by_row @ shares.T / seen.clamp_min(1e-3)[:, None]).transpose(1, 2)  # [B, R, D]
        if self.training:
            self.usual.lerp_(seen.detach().mean(dim=0), 0.05)
        mask = seen / (seen + self.usual)
        feature = self.project(pooled.flatten(1)[:, :, None]).squeeze(2)
        repeats = self.width // self.bands
        return Banded(feature, mask.repeat_interleave(repeats, dim=1), visible)


def _shares(rows: int, bands: int, device: torch.device) -> Tensor:
    """[bands, rows]: share of each row of patches in each band; a band's shares sum to 1."""
    edges = torch.linspace(0, rows, bands + 1, device=device)
    top = torch.arange(rows, device=device)
    inside = torch.minimum(edges[1:, None], top + 1) - torch.maximum(edges[:-1, None], top)
    return inside.clamp_min(0) * bands / rows
