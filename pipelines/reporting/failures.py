"""The worst failures of an evaluation, and what the data proves about each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.percent import format_percent
from dpmpp_core.retrieval import Embeddings, Failure, compute_stripe_histogram

Image = NDArray[np.uint8]

# Less is not worth a sentence: share of the person, difference of two agreements of histograms.
MIN_HIDDEN_SHARE, MIN_COLOUR_GAP = 0.1, 0.05


class FailureCard(NamedTuple):
    """A failure as the report shows it; pictures are RGB uint8 [H, W, 3].

    Attributes:
        path: of the query.
        rank: of the first right picture.
        query, wrong, right: pictures of the query, of the best item of another person, and of the
            best right one.
        reasons: sentences without their full stops, each of which the data proves.
    """

    path: str
    rank: int
    query: Image
    wrong: Image
    right: Image
    reasons: Sequence[str]


def build_failure_card(
    failure: Failure,
    query: Embeddings,
    gallery: Embeddings,
    hidden_share: float,
    load: Callable[[str], Image],
) -> FailureCard:
    """Load a failure's pictures and collect its reasons.

    Args:
        failure: of `find_worst_queries`.
        query: the queries that it is of.
        gallery: the gallery that it is of.
        hidden_share: of the query's person, in [0, 1]; NaN where it is not known.
        load: turns a path of the embeddings into a picture; its exceptions propagate.
    """
    path = query.paths[failure.query]
    pictures = load(path), load(gallery.paths[failure.wrong]), load(gallery.paths[failure.right])
    own_camera = gallery.camids[failure.wrong] == query.camids[failure.query]
    reasons = [
        *_describe_ranks(failure),
        *_describe_query(hidden_share, own_camera),
        *_compare_colours(*pictures),
    ]
    return FailureCard(path, failure.rank, *pictures, reasons)


def _describe_ranks(failure: Failure) -> list[str]:
    sentences = []
    without = failure.rank_unmasked
    if without is not None and without < failure.rank:
        sentences.append(f"The mask makes it worse: without it the right person is at {without:,}")
    elif without is not None and without > failure.rank:
        sentences.append(f"The mask helps: without it the right person is at {without:,}")
    if failure.positives == 1:
        sentences.append("The gallery has a single picture of this person to find")
    return sentences


def _describe_query(hidden_share: float, own_camera: bool) -> list[str]:
    sentences = []
    if hidden_share >= MIN_HIDDEN_SHARE:  # not where it is NaN
        sentences.append(f"{100 * hidden_share:.0f} % of the person is hidden")
    if own_camera:
        sentences.append("The wrong picture is from the query's own camera, the right one is not")
    return sentences


def _compare_colours(query: Image, wrong: Image, right: Image) -> list[str]:
    """Compare the colours of the six stripes of the histogram baseline, where they decide it."""
    try:
        own, *others = (compute_stripe_histogram(image) for image in (query, wrong, right))
    except ValueError:  # too small for six stripes
        return []
    lengths = [np.linalg.norm(own) * np.linalg.norm(other) for other in others]
    to_wrong, to_right = (float(own @ x / n) for x, n in zip(others, lengths, strict=True))
    if to_wrong - to_right < MIN_COLOUR_GAP:
        return []
    return [
        "In colour the wrong picture is nearer: histograms agree by "
        f"{format_percent(to_wrong)} %, with the right one by {format_percent(to_right)} %"
    ]
