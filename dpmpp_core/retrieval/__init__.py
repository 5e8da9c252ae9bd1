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
from dpmpp_core.retrieval.feature_ranks import rank_features
from dpmpp_core.retrieval.gallery import Gallery, compact
from dpmpp_core.retrieval.masks import mask_statistics, permuted_masks, static_mask
from dpmpp_core.retrieval.queries import QueryFigures
from dpmpp_core.retrieval.ranking import RankingResult, evaluate_ranking
from dpmpp_core.retrieval.reranking import rerank
from dpmpp_core.retrieval.search import masked_topk
from dpmpp_core.retrieval.similarity import masked_similarity
from dpmpp_core.retrieval.strata import by_cameras, by_hidden, intervals
from dpmpp_core.retrieval.tracklets import draw_tracklets, fuse, multi_shot, rank_tracklets

__all__ = [
    "MODES",
    "Difference",
    "Embeddings",
    "Gallery",
    "Interval",
    "Mode",
    "QueryFigures",
    "RankingResult",
    "by_cameras",
    "by_hidden",
    "chance",
    "compact",
    "draw_tracklets",
    "evaluate",
    "evaluate_ranking",
    "figures",
    "from_columns",
    "fuse",
    "intervals",
    "mask_statistics",
    "masked_similarity",
    "masked_topk",
    "multi_shot",
    "paired_bootstrap",
    "paired_difference",
    "permuted_masks",
    "rank_features",
    "rank_tracklets",
    "rankings",
    "refuse_unusable",
    "rerank",
    "static_mask",
    "stripe_histogram",
    "to_columns",
    "top_matches",
]
