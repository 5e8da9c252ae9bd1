"""The embeddings of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.retrieval import masked_similarity


@dataclass(frozen=True, repr=False)
class Embedded:
    """Embeddings of N images.

    Attributes:
        features: metric space -> float32 [N, width].
        masks: likewise.
        occluded: float32 [N, rows, columns], probability that a patch hides a part of the body;
            above 0.5 it was masked from attention. None for a model that masks none.
    """

    features: dict[str, NDArray[np.float32]]
    masks: dict[str, NDArray[np.float32]]
    occluded: NDArray[np.float32] | None = None

    def similarity(self, other: Embedded, masked: bool = True) -> NDArray[np.float32]:
        """Score these images, as queries, against others: float32 [N, M], in [-1, 1].

        Higher is more similar. The masks are those of the queries, so the order matters.

        Examples:
            >>> import dpmpp_core
            >>> model = dpmpp_core.load_model()
            >>> query, others = model.embed("a.jpg"), model.embed(["a.jpg", "b.jpg"])
            >>> query.similarity(others, masked=False).round(2)[0, 0]
            np.float32(1.0)

        Args:
            other: embeddings of the same model.
            masked: with the masks of the queries; else the plain cosine.

        Raises:
            ValueError: embeddings of another model, or without any value.
        """
        masks = self.masks if masked else None
        return masked_similarity(self.features, masks, other.features).numpy()

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))

    def __repr__(self) -> str:
        widths = {space: x.shape[1] for space, x in self.features.items()}
        return f"Embedded({len(self)} images; {describe_spaces(widths)})"


def describe_spaces(spaces: Mapping[str, int]) -> str:
    """Return the metric spaces and their widths in words: `visual 192, joint 192`."""
    return ", ".join(f"{space} {width}" for space, width in spaces.items())
