"""Saliency-guided patch transfer (SPT, AAAI 2024): person masks, pairing and the mixed picture."""

from dpmpp_core.occlusion.pairing import Pairs, draw_pairs, oiou
from dpmpp_core.occlusion.transfer import transfer_patches, visible_patches

__all__ = ["Pairs", "draw_pairs", "oiou", "transfer_patches", "visible_patches"]
