"""Horizontal bands of the person, and their visibility (ours).

All dimensions of a class token depend on the whole picture, so an occlusion changes each a little,
and no mask can separate the reliable ones. Here a dimension belongs to one band of the picture: an
occlusion of the legs changes the dimensions of the legs and no others.

Three choices ensure this (each measured, tests/bench/results/mask-trials.md). The tokens are those
of an earlier block, in which less information is exchanged between bands. The bands learn from the
masked loss alone: any other trains hidden bands to guess the identity from the visible ones. The
visibility of patches comes from the visibility head, which learns from patch labels alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpmpp_core.models.distributed import mean_over_workers

SPACE = "bands"


@dataclass
class Banded:
    """Result of one pass.

    Attributes:
        feature: [B, bands * width], band by band from the top.
        mask: float32 of the same shape, in (0, 1), the same in all dimensions of a band.
    """

    feature: Tensor
    mask: Tensor


class VisibleBands(nn.Module):
    """Maps patch tokens to a feature and a mask whose dimensions belong to horizontal bands.

    A band's feature is the mean of its tokens at a middle block, weighted by the probability that
    they show the person. Its mask is (s / (s + u))^2: s is the visible share of the band, u its
    running mean. So a usual band has 1/4, a hidden one nearly 0.

    Args:
        token_width: channels of the tokens, and dimensions of a band.
        bands: number of bands R.
        masked: whether the mask depends on what is visible; else it is 0.5 everywhere.
    """

    usual: Tensor

    def __init__(self, token_width: int, bands: int, masked: bool = True) -> None:
        super().__init__()
        self.masked = masked
        self.bands, self.width, self.token_width = bands, bands * token_width, token_width
        self.register_buffer("usual", torch.full((bands,), 0.5))

    def forward(self, tokens: Tensor, visible: Tensor) -> Banded:
        """Pool tokens [B, token_width, rows, columns] by logits `visible` [B, rows, columns]."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self._pool(tokens.float(), visible)

    def _pool(self, tokens: Tensor, visible: Tensor) -> Banded:
        _, _, rows, columns = tokens.shape
        shares = _shares(rows, self.bands, tokens.device) / columns
        weight = visible.detach().sigmoid()
        visible_share = weight.sum(dim=2) @ shares.T  # [B, R], mean over a band's patches
        by_row = torch.einsum("bdhw,bhw->bdh", tokens, weight)
        feature = by_row @ shares.T / visible_share.clamp_min(1e-3)[:, None]  # [B, D, R]
        feature = feature.transpose(1, 2)
        if self.training:
            self.usual.lerp_(mean_over_workers(visible_share.detach().mean(dim=0)), 0.05)
        if not self.masked:
            return Banded(feature.flatten(1), torch.full_like(feature.flatten(1), 0.5))
        # The metric refuses a mask of zeros.
        mask = (visible_share / (visible_share + self.usual)).square().clamp_min(1e-9)
        return Banded(feature.flatten(1), mask.repeat_interleave(self.token_width, dim=1))


def _shares(rows: int, bands: int, device: torch.device) -> Tensor:
    """Return [bands, rows]: share of each row of patches in each band, sums of 1 per band."""
    edges = torch.linspace(0, rows, bands + 1, device=device)
    top = torch.arange(rows, device=device)
    inside = torch.minimum(edges[1:, None], top + 1) - torch.maximum(edges[:-1, None], top)
    return inside.clamp_min(0) * bands / rows
