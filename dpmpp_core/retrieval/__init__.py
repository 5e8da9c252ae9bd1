"""Retrieval: the masked metric, ranking figures, their baselines and controls."""

from dpmpp_core.retrieval.baseline import chance, stripe_histogram
from dpmpp_core.retrieval.bootstrap import Interval, paired_bootstrap
from dpmpp_core.retrieval.comparison import Difference, paired_difference
from dpmpp_core.retrieval.evaluation import (
    MODES,
    Embeddings,
    Mode,
    evaluate,
    figures,
    from_columns,
    rankings,
    refuse_unusable,
    to_columns,
    top_matches,
)
from dpmpp_core.retrieval.masks import mask_statistics, permuted_masks, static_mask
from dpmpp_core.retrieval.ranking import RankingResult, evaluate_ranking
from dpmpp_core.retrieval.similarity import masked_similarity

__all__ = [
    "MODES",
    "Difference",
    "Embeddings",
    "Interval",
    "Mode",
    "RankingResult",
    "chance",
    "evaluate",
    "evaluate_ranking",
    "figures",
    "from_columns",
    "mask_statistics",
    "masked_similarity",
    "paired_bootstrap",
    "paired_difference",
    "permuted_masks",
    "rankings",
    "refuse_unusable",
    "static_mask",
    "stripe_histogram",
    "to_columns",
    "top_matches",
]
