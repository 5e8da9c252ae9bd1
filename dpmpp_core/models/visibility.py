"""The visibility head: which patches show the person, and which hide a part of it (ours).

It is amodal: a patch is `occluded` where the body is, but something stands before it. Such patches
are masked from attention in the encoder's later blocks, so that the occluder does not change the
feature. The background stays: it does no harm, and the head errs there most.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dpmpp_core.models.batch_norm import WholeBatchNorm2d

WIDTH = 64


@dataclass
class Visibility:
    """Result of the head, logits float32 [B, rows, columns].

    Attributes:
        visible: that a patch shows the person.
        occluded: that it hides a part of the body; None for a head without this output.
    """

    visible: Tensor
    occluded: Tensor | None


class VisibilityHead(nn.Module):
    """A few convolutions on the tapped tokens; no gradient flows from it into the encoder.

    Args:
        channels: channels of the tapped tokens, taps x token_width.
        amodal: whether it predicts `occluded` too.
    """

    def __init__(self, channels: int, amodal: bool) -> None:
        super().__init__()
        self.amodal = amodal
        self.patches = nn.Sequential(
            WholeBatchNorm2d(channels),
            nn.Conv2d(channels, WIDTH, 1),
            nn.GELU(),
            nn.Conv2d(WIDTH, WIDTH, 5, padding=2),
            nn.GELU(),
            nn.Conv2d(WIDTH, WIDTH, 5, padding=2),
            nn.GELU(),
            nn.Conv2d(WIDTH, 2 if amodal else 1, 1),
        )

    def forward(self, taps: Tensor) -> Visibility:
        """Map tokens [B, channels, rows, columns] to logits."""
        logits = self.patches(taps.detach()).float()
        return Visibility(logits[:, 0], logits[:, 1] if self.amodal else None)
