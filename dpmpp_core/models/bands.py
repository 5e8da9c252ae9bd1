"""Horizontal bands of the person, and their visibility (ours).

All dimensions of a class token depend on the whole picture, so an occlusion changes each a little,
and no mask can separate the reliable ones. Here a dimension belongs to one band of the picture: an
occlusion of the legs changes the dimensions of the legs and no others.

Three choices ensure this (each measured, tests/bench/results/mask-trials.md). The tokens are those
of an earlier block, in which less information is exchanged between bands. The bands learn from the
masked loss alone: any other trains hidden bands to guess the identity from the visible ones. The
visibility head learns from patch labels alone, and no gradient flows from it into the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpmpp_core.models.batch_norm import WholeBatchNorm2d
from dpmpp_core.models.distributed import mean_over_workers

SPACE = "bands"
VISIBILITY_HEAD_WIDTH = 64


@dataclass
class Banded:
    """Result of one pass.

    Attributes:
        feature: [B, bands * width], band by band from the top.
        mask: float32 of the same shape, in (0, 1), the same in all dimensions of a band.
        visible: float32 [B, rows, columns], logits that the patch shows the person.
    """

    feature: Tensor
    mask: Tensor
    visible: Tensor


class VisibleBands(nn.Module):
    """Maps patch tokens to a feature and a mask whose dimensions belong to horizontal bands.

    The visibility head, a few convolutions on the tapped tokens, predicts the patches that show the
    person. A band's feature is the mean of its tokens at the last tap but one, weighted by that.
    Its mask is (s / (s + u))^2: s is the visible share of the band, u its running mean. So a usual
    band has 1/4, a hidden one nearly 0.

    Args:
        channels: channels of the tapped tokens, taps x token_width.
        token_width: channels of one tap, and dimensions of a band.
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
        """Map [B, channels, rows, columns] to `Banded`."""
        visible = self.predict_visibility(taps)
        tokens = taps.unflatten(1, (-1, self.token_width))[:, -2:][:, 0].float()
        with torch.autocast(taps.device.type, enabled=False):
            return self._pool(tokens, visible)

    def predict_visibility(self, taps: Tensor) -> Tensor:
        """Return logits float32 [B, rows, columns] that a patch shows the person.

        No gradient flows into the encoder.
        """
        return self.patches(taps.detach()).squeeze(1).float()

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
        # The metric refuses a mask of zeros.
        mask = (visible_share / (visible_share + self.usual)).square().clamp_min(1e-9)
        return Banded(feature.flatten(1), mask.repeat_interleave(self.token_width, dim=1), visible)


def _shares(rows: int, bands: int, device: torch.device) -> Tensor:
    """Return [bands, rows]: share of each row of patches in each band, sums of 1 per band."""
    edges = torch.linspace(0, rows, bands + 1, device=device)
    top = torch.arange(rows, device=device)
    inside = torch.minimum(edges[1:, None], top + 1) - torch.maximum(edges[:-1, None], top)
    return inside.clamp_min(0) * bands / rows
