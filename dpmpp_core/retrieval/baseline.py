"""Figures that any model must beat: a colour histogram, and chance."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dpmpp_core.errors import DataError
from dpmpp_core.retrieval.ranking import Ints, Pairs

STRIPES = 6
BINS = (8, 4, 4)
HSV_ENDS = (180, 256, 256)


def compute_stripe_histogram(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute the colours of six horizontal stripes of a person: float32 [768] in [0, 1].

    A joint 8 x 4 x 4 histogram of hue, saturation and value per stripe, each summing to 1, then its
    square root: the cosine of two such features is the mean Hellinger affinity of their stripes
    (bins and stripes: ours; idea: SDALF, CVPR 2010). The image is uint8 [H, W, 3], RGB, H >= 6;
    ValueError for anything else.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {image.shape}")
    if image.shape[0] < STRIPES or image.shape[1] == 0:
        raise ValueError(f"image of shape {image.shape} is too small for {STRIPES} stripes")
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    ranges = [edge for end in HSV_ENDS for edge in (0, end)]
    histograms = []
    for stripe in np.array_split(hsv, STRIPES):
        counts = cv2.calcHist([stripe], [0, 1, 2], None, list(BINS), ranges)
        histograms.append(counts.ravel() / counts.sum())
    return np.sqrt(np.concatenate(histograms)).astype(np.float32)


def compute_chance(
    query_pids: Ints, gallery_pids: Ints, query_camids: Ints, gallery_camids: Ints
) -> tuple[float, float]:
    """Compute the (mAP, rank-1) that random scores reach on average, in [0, 1], exactly.

    For a query with P positives among n valid items, all orders equally likely (ours):

        E[rank-1] = P / n        E[AP] = (H_n + (P - 1) / (n - 1) * (n - H_n)) / n

    with H_n = 1 + 1/2 + ... + 1/n. Junk rule and skipped queries as in `evaluate_ranking`; raises
    DataError if no query has a positive.
    """
    total = len(gallery_pids)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, total + 1))])
    precisions, firsts = [], []
    pairs = Pairs.of(query_pids, gallery_pids, query_camids, gallery_camids)
    same = np.bincount(pairs.rows, minlength=len(query_pids))
    positive = np.bincount(pairs.rows[pairs.positive], minlength=len(query_pids))
    for hits, valid in zip(positive.tolist(), (total - same + positive).tolist(), strict=True):
        if hits == 0:
            continue
        others = (hits - 1) / (valid - 1) if valid > 1 else 0.0
        precisions.append((harmonic[valid] + others * (valid - harmonic[valid])) / valid)
        firsts.append(hits / valid)
    if not firsts:
        raise DataError("no query has a picture of the same person in the gallery; check the pids")
    return float(np.mean(precisions)), float(np.mean(firsts))
