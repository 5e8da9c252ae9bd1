"""Retrieval: the masked metric, ranking figures, baselines and controls."""

from dpmpp_core.retrieval.baseline import compute_chance, compute_stripe_histogram
from dpmpp_core.retrieval.bootstrap import Interval, paired_bootstrap
from dpmpp_core.retrieval.comparison import Difference, paired_difference
from dpmpp_core.retrieval.evaluation import (
    MODES,
    Controls,
    Embeddings,
    Mode,
    evaluate,
    exchanges,
    from_columns,
    rank_by_mode,
    refuse_unusable,
    summarise_rankings,
    to_columns,
    top_matches,
)
from dpmpp_core.retrieval.failures import Failure, find_worst_queries
from dpmpp_core.retrieval.feature_ranks import rank_features
from dpmpp_core.retrieval.gallery import Gallery, compact
from dpmpp_core.retrieval.masks import derangement, expand_masks, mask_statistics, static_masks
from dpmpp_core.retrieval.queries import QueryFigures
from dpmpp_core.retrieval.ranking import RankingResult, evaluate_ranking
from dpmpp_core.retrieval.reranking import rerank
from dpmpp_core.retrieval.search import masked_topk
from dpmpp_core.retrieval.similarity import masked_similarity
from dpmpp_core.retrieval.strata import (
    compute_intervals,
    evaluate_by_camera_pair,
    evaluate_by_occlusion,
)
from dpmpp_core.retrieval.tracklets import draw_tracklets, evaluate_tracklets, fuse, rank_tracklets

__all__ = [
    "MODES", "Controls", "Difference", "Embeddings", "Failure", "Gallery", "Interval", "Mode",
    "QueryFigures", "RankingResult", "compact", "compute_chance", "compute_intervals",
    "compute_stripe_histogram", "derangement", "draw_tracklets", "evaluate",
    "evaluate_by_camera_pair", "evaluate_by_occlusion", "evaluate_ranking", "evaluate_tracklets",
    "exchanges", "expand_masks", "find_worst_queries", "from_columns", "fuse", "mask_statistics",
    "masked_similarity", "masked_topk", "paired_bootstrap", "paired_difference", "rank_by_mode",
    "rank_features", "rank_tracklets", "refuse_unusable", "rerank", "static_masks",
    "summarise_rankings", "to_columns", "top_matches",
]  # fmt: skip
