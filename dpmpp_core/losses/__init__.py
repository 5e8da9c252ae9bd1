"""Training losses."""

from dpmpp_core.losses.arcface import arcface_logits
from dpmpp_core.losses.contrast import (
    caption_contrast,
    multi_view_contrast,
    prototype_contrast,
    supervised_contrast,
)
from dpmpp_core.losses.cross_entropy import cross_entropy
from dpmpp_core.losses.heads import head_diversity
from dpmpp_core.losses.patches import patch_visibility
from dpmpp_core.losses.saliency import area_loss, background_penalty
from dpmpp_core.losses.triplet import batch_hard_triplet
from dpmpp_core.losses.visibility import visibility_likelihood

__all__ = [
    "arcface_logits", "area_loss", "background_penalty", "batch_hard_triplet", "caption_contrast",
    "cross_entropy", "head_diversity", "multi_view_contrast", "patch_visibility",
    "prototype_contrast", "supervised_contrast", "visibility_likelihood",
]  # fmt: skip
