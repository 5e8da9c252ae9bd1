"""Search in a large gallery along a graph of neighbours, by faiss (HNSW; Malkov, Yashunin, 2018).

The graph knows one inner product, so it is asked for the numerator of the masked metric,
<q_hat * m, g_hat>: whose best fifty hold the ten best of the metric in all that we measured. These
get their exact scores. A search follows links instead of reading all items, so that its time hardly
grows with the gallery. Building takes tens of times as long as the lists of `shortlist.py`, and
memory two bytes a dimension.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dpmpp_core.errors import ConfigError
from dpmpp_core.retrieval.arguments import Spaces, by_space, matrix
from dpmpp_core.retrieval.gallery import Gallery
from dpmpp_core.retrieval.search import keep_best

LINKS = 32  # an item
EFFORT = 200  # items looked at for each that is added
ROWS = 16_384  # added at a time


class Graph:
    """A gallery and its graph. Which links it has depends on the threads that made it.

    Args:
        features: [N, D] or a mapping of metric space to such. May be mapped.
        links, effort: more of either finds more and takes longer to build.

    Raises:
        ConfigError: faiss is not installed.
        ValueError: as `Gallery`.
    """

    def __init__(self, features: Spaces, links: int = LINKS, effort: int = EFFORT) -> None:
        try:
            import faiss
        except ImportError:
            raise ConfigError("the graph needs faiss: pip install 'dpmpp[graph]'") from None
        parts = {space: matrix("features", space, x) for space, x in by_space(features).items()}
        self.gallery = Gallery(parts, bounded=False)
        half = faiss.ScalarQuantizer.QT_fp16
        width = sum(self.gallery.spaces.values())
        self._graph = faiss.IndexHNSWSQ(width, half, links, faiss.METRIC_INNER_PRODUCT)  # type: ignore[arg-type]
        self._graph.hnsw.efConstruction = effort
        self._graph.train(np.zeros((1, width), np.float32))
        for start in range(0, len(self.gallery), ROWS):
            rows = [normalize(x[start : start + ROWS].float()) for x in parts.values()]
            self._graph.add(torch.cat(rows, dim=1).numpy())

    def topk(
        self,
        query: Spaces,
        query_mask: Spaces | None,
        k: int,
        breadth: int = 256,
        candidates: int = 100,
    ) -> tuple[Tensor, Tensor]:
        """The best k items of the `candidates` that a walk along the graph finds for each query.

        Scores are exact, and so is the order of what is found.

        Args:
            query, query_mask, k: as of `masked_topk`.
            breadth: items that a walk keeps in sight: more find more and take longer.

        Returns:
            float32 [Q, k] and int64 [Q, k], as `masked_topk`.

        Raises:
            ValueError: as `masked_topk`.
        """
        if k < 1:
            raise ValueError(f"k is {k}; at least 1 is needed")
        asked = self.gallery.query(query, query_mask)
        # Spaces count alike: each by the usual length of a feature under the query's mask.
        weights = [
            x.weight if x.square is None else x.weight * x.square.mean(1, keepdim=True).rsqrt()
            for x in asked.spaces.values()
        ]
        self._graph.hnsw.efSearch = max(breadth, candidates, k)
        _, found = self._graph.search(torch.cat(weights, dim=1).numpy(), max(candidates, k))
        best = torch.full((len(asked), k), -torch.inf)
        indices = torch.full((len(asked), k), -1)
        for row, items in enumerate(torch.from_numpy(found)):
            keep_best(self.gallery, asked, row, items[items >= 0], best, indices)
        best[indices < 0] = torch.nan
        return best, indices
