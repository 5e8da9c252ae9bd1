"""Classifier prototypes and the masked metric over them (DPM)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dpmpp_core.retrieval.similarity import masked_cosine


class Prototypes(nn.Module):
    """One prototype per identity in each metric space.

    Args:
        classes: number of identities C.
        spaces: name -> width of each metric space.
    """

    def __init__(self, classes: int, spaces: Mapping[str, int]) -> None:
        super().__init__()
        self.weight = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(classes, d) * d**-0.5) for name, d in spaces.items()}
        )

    @torch.no_grad()
    def init_from_text(self, space: str, text: Tensor) -> None:
        """Set the prototypes of `space` to the directions of text features, in place (ours).

        The mean of the text features is subtracted first, since they share a large common part. All
        prototypes get the same length: the mean norm of the prototypes before the call.

        Args:
            space: a metric space of the constructor, such as `joint`.
            text: float [C, width], row c for identity c. C is 2 or more: a single row, less its
                mean, makes each prototype zero.

        Raises:
            AttributeError: there is no such space.
            RuntimeError: C or width is not that of the prototypes.
        """
        weight = self.weight[space]
        direction = nn.functional.normalize(text - text.mean(dim=0), dim=1)
        weight.copy_(direction.to(weight) * weight.norm(dim=1).mean())

    def plain(self, space: str, features: Tensor) -> Tensor:
        """Return inner products [B, C] of features [B, width] with the prototypes."""
        return features @ self.weight[space].T

    def masked(self, space: str, features: Tensor, masks: Tensor) -> Tensor:
        """Return masked cosines [B, C] in [-1, 1], float32: the masks re-weight the prototypes."""
        return masked_cosine(features.float(), masks.float(), self.weight[space].float())
