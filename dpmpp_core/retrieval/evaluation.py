"""Ranking figures of embedded query and gallery sets, with and without masks, and controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.errors import WeightsError
from dpmpp_core.retrieval.feature_ranks import rank_features
from dpmpp_core.retrieval.gallery import Gallery
from dpmpp_core.retrieval.masks import apply_mask, derangement, expand_masks, static_masks
from dpmpp_core.retrieval.ranking import RankingResult, mean_result
from dpmpp_core.retrieval.search import masked_topk

Matrix = NDArray[np.float32]
T = TypeVar("T")
Mode = Literal["masked", "unmasked", "permuted", "static", "both"]
MODES: tuple[Mode, ...] = ("masked", "unmasked", "permuted", "static", "both")
EXCHANGES = 5  # permutations of masks between queries, over which `permuted` is a mean


@dataclass(frozen=True)
class Controls:
    """Features of the same N pictures under other attention masks, metric space -> float32 [N, D].

    Attributes:
        unmasked: no patch is masked.
        permuted: by exchange, with the mask of another picture, see `exchanges`.
    """

    unmasked: Mapping[str, Matrix]
    permuted: Sequence[Mapping[str, Matrix]]


@dataclass(frozen=True, repr=False)
class Embeddings:
    """N embedded pictures.

    Attributes:
        features: metric space -> float32 [N, D].
        masks: the same spaces -> float32 [N, R] in (0, 1), each value for D / R neighbouring
            dimensions, see `expand_masks`; may be empty for a gallery, whose masks the metric does
            not use.
        pids: int64 [N].
        camids: int64 [N].
        paths: N names of the pictures.
        occluded: float32 [N, rows, columns], probability that a patch hides a part of the body;
            above 0.5 it was masked from attention. None for a model that masks none.
        controls: of queries of a model that masks attention; None where they were not computed.

    Raises:
        ValueError: the lengths differ.
    """

    features: Mapping[str, Matrix]
    masks: Mapping[str, Matrix]
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]
    paths: Sequence[str]
    occluded: NDArray[np.float32] | None = None
    controls: Controls | None = None

    def __post_init__(self) -> None:
        sizes = {"pids": len(self.pids), "camids": len(self.camids), "paths": len(self.paths)}
        sizes |= {f"features of '{space}'": len(x) for space, x in self.features.items()}
        sizes |= {f"masks of '{space}'": len(m) for space, m in self.masks.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the columns of the embeddings have different lengths: {sizes}")

    def __len__(self) -> int:
        return len(self.pids)

    def __repr__(self) -> str:
        widths = ", ".join(f"{space} {x.shape[1]}" for space, x in self.features.items())
        persons, cameras = len(np.unique(self.pids)), len(np.unique(self.camids))
        return f"Embeddings({len(self)} images, {persons} persons, {cameras} cameras; {widths})"

    def full_masks(self) -> dict[str, Matrix]:
        """Return the masks at full width, [N, D], as the metric takes them."""
        return expand_masks(self.masks, self.features)


def to_columns(features: Mapping[str, T], masks: Mapping[str, T]) -> dict[str, T]:
    """Flatten features and masks by space to columns: `feature_SPACE`, `mask_SPACE`."""
    columns = {f"feature_{space}": values for space, values in features.items()}
    return columns | {f"mask_{space}": values for space, values in masks.items()}


def from_columns(columns: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """Return features and masks by space from `to_columns`; other columns are ignored."""

    def spaces(kind: str) -> dict[str, T]:
        return {n.removeprefix(kind): v for n, v in columns.items() if n.startswith(kind)}

    return spaces("feature_"), spaces("mask_")


def refuse_unusable(columns: Mapping[str, NDArray[np.floating]], paths: Sequence[str]) -> None:
    """Raise WeightsError if a row of an image is NaN, infinity or nothing but zeros.

    `columns` is name (`feature_SPACE`, `mask_SPACE`) -> [N, D] of the images `paths`. Such rows
    have no direction, so no place in a ranking. The error names the column and the first image.
    """
    for name, values in columns.items():
        bad = ~np.isfinite(values).all(axis=1) | ~values.any(axis=1)
        if bad.any():
            raise WeightsError(
                f"{name} of {paths[int(bad.argmax())]} holds NaN, infinity or nothing but zeros "
                f"({int(bad.sum())} of {len(paths)} images do): the model is damaged, or left by a "
                "training that diverged"
            )


def evaluate(query: Embeddings, gallery: Embeddings, seed: int) -> dict[str, Any]:
    """Rank by all modes and return their figures as plain numbers.

    {"masked": {...}, "unmasked": {...}, "permuted": {...}, "static": {...}, "both": {...},
    "num_queries": all of them, "num_skipped": those without a positive}; each {...} has mAP, rank1,
    rank5, rank10 and mINP, floats in [0, 1], NaN for a mode that `rank_by_mode` leaves out. Raises
    as `rank_by_mode`.
    """
    return summarise_rankings(rank_by_mode(query, gallery, seed))


def summarise_rankings(results: Mapping[Mode, RankingResult]) -> dict[str, Any]:
    """Return the figures of `evaluate` from the results of `rank_by_mode`."""
    masked = results["masked"]
    absent = dict.fromkeys(masked.metrics(), float("nan"))
    numbers: dict[str, Any] = {
        mode: results[mode].metrics() if mode in results else absent for mode in MODES
    }
    total = masked.num_valid_queries + masked.num_skipped_queries
    return {**numbers, "num_queries": total, "num_skipped": masked.num_skipped_queries}


def exchanges(count: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the derangements of `count` queries over which `permuted` is a mean; none of one."""
    if count < 2:
        return []
    return [derangement(count, seed * EXCHANGES + i) for i in range(EXCHANGES)]


def rank_by_mode(
    query: Embeddings, gallery: Embeddings, seed: int, modes: Sequence[Mode] = MODES
) -> dict[Mode, RankingResult]:
    """Rank by several modes; return full results (CMC curve, figures of every query).

    masked: each query's mask, of attention too. unmasked: plain cosine, no patch masked. both: the
    query's mask times that of each gallery picture; left out for a gallery without masks. Controls:
    static (the mean mask for all, no patch masked) and permuted (other queries' masks: the mean of
    `exchanges`; left out for a single query). The gallery stays the same. Where attention was
    masked and there are no `controls`, unmasked and the controls are left out. Scores are computed
    in blocks (`rank_features`), so memory does not grow with their number.

    Raises ValueError (see `masked_similarity`) and DataError (no query has a positive).
    """
    masks, controls = query.full_masks(), query.controls
    plain = controls.unmasked if controls else query.features
    ids = (query.pids, gallery.pids, query.camids, gallery.camids)
    prepared = Gallery(gallery.features)

    def rank(features: Mapping[str, Matrix], masks: Mapping[str, Matrix] | None) -> RankingResult:
        return rank_features(features, masks, prepared, *ids)

    def rank_permuted() -> RankingResult:
        orders = exchanges(len(query), seed)
        features = controls.permuted if controls else [query.features] * len(orders)
        return mean_result(
            [rank(x, _take(masks, order)) for x, order in zip(features, orders, strict=True)]
        )

    def rank_both() -> RankingResult:
        # <q, normalise(m_q m_g g)>: the gallery's mask scales its features, once for all queries.
        masked = {s: apply_mask(x, gallery.masks[s]) for s, x in gallery.features.items()}
        return rank_features(query.features, masks, masked, *ids)

    ranking: dict[Mode, Callable[[], RankingResult]] = {
        "masked": lambda: rank(query.features, masks),
        "unmasked": lambda: rank(plain, None),
        "permuted": rank_permuted,
        "static": lambda: rank(plain, static_masks(masks)),
        "both": rank_both,
    }
    left_out = {"permuted"} if len(query) < 2 else set()
    if query.occluded is not None and controls is None:
        left_out |= {"unmasked", "permuted", "static"}
    left_out |= set() if gallery.masks else {"both"}
    return {mode: ranking[mode]() for mode in modes if mode not in left_out}


def top_matches(
    query: Embeddings,
    gallery: Embeddings,
    k: int,
    mode: Literal["masked", "unmasked"],
    rows: Sequence[int],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the k best gallery items of the queries `rows` without junk, best first, for display.

    Returns (indices int64 [len(rows), k] into the gallery, scores float32 of the same shape). Equal
    scores are listed in the gallery's order. Beyond the last valid item: index -1, score NaN.
    """
    chosen = np.asarray(rows, np.int64)
    masks = None
    if mode == "masked":
        masks = expand_masks(_take(query.masks, chosen), query.features)
    plain = query.controls.unmasked if query.controls else query.features
    features = query.features if mode == "masked" else plain
    pids, camids = query.pids[chosen][:, None], query.camids[chosen][:, None]

    def valid(rows: slice, items: slice) -> NDArray[np.bool_]:
        same_camera = gallery.camids[items] == camids[rows]
        return ~(same_camera & (gallery.pids[items] == pids[rows]))

    best, indices = masked_topk(_take(features, chosen), masks, gallery.features, k, allowed=valid)
    return indices.numpy(), best.numpy()


def _take(spaces: Mapping[str, Matrix], rows: NDArray[np.int64]) -> dict[str, Matrix]:
    return {space: values[rows] for space, values in spaces.items()}
