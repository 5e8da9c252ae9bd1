"""Small networks of each family that a backbone can come from, with random weights."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

LOADING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _small(kind: type, kwargs: dict[str, Any], **options: Any) -> nn.Module:
    given = {key: value for key, value in kwargs.items() if key not in LOADING}
    common = {"img_size": 64, "patch_size": 16, "depth": 4, "num_heads": 2}
    return kind(**{**common, **options, **given})


@register_model
def dpmpp_test_eva02(**kwargs: Any) -> nn.Module:
    """As eva02_base_patch16_clip_224: rotary and learnt positions, class token."""
    options = {"embed_dim": 32, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True}
    rotary = {"use_rot_pos_emb": True, "ref_feat_shape": (14, 14)}
    return _small(Eva, kwargs, **options, **rotary, global_pool="token")


@register_model
def dpmpp_test_dinov3(**kwargs: Any) -> nn.Module:
    """As vit_base_patch16_dinov3: rotary positions alone, class token and registers."""
    norm = partial(nn.LayerNorm, eps=1e-5)
    options = {"embed_dim": 32, "qkv_bias": False, "init_values": 1e-5, "norm_layer": norm}
    rotary = {"use_rot_pos_emb": True, "rope_type": "dinov3", "rope_rotate_half": True}
    tokens = {"num_reg_tokens": 4, "no_embed_class": True, "use_abs_pos_emb": False}
    return _small(Eva, kwargs, **options, **rotary, **tokens, dynamic_img_size=True)


@register_model
def dpmpp_test_dinov2(**kwargs: Any) -> nn.Module:
    """As vit_small_patch14_reg4_dinov2."""
    tokens = {"reg_tokens": 4, "no_embed_class": True}
    return _small(VisionTransformer, kwargs, embed_dim=32, patch_size=14, img_size=70, **tokens)


@register_model
def dpmpp_test_siglip(**kwargs: Any) -> nn.Module:
    """As vit_base_patch16_siglip_224: no class token, pooled by attention."""
    options = {"embed_dim": 32, "class_token": False, "global_pool": "map"}
    return _small(VisionTransformer, kwargs, **options)


TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
OWN = {"image_size": 64, "layers": 4, "width": 32, "head_width": 16, "patch_size": 16}
POOLED = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
SIGLIP = {"timm_model_name": "dpmpp_test_siglip", "timm_pool": "map", "timm_proj": "none"}
EVA = {"timm_model_name": "dpmpp_test_eva02", "timm_pool": "token", "timm_proj": None}
MLP = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "mlp"}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "test-clip": {"embed_dim": 24, "vision_cfg": OWN, "text_cfg": TEXT},
    "test-mean": {"embed_dim": 24, "vision_cfg": {**OWN, "pool_type": "avg"}, "text_cfg": TEXT},
    "test-coca": {
        "embed_dim": 24, "custom_text": True, "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
        "vision_cfg": {**OWN, **POOLED, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    },
    "test-eva": {"embed_dim": 24, "custom_text": True, "vision_cfg": EVA, "text_cfg": TEXT},
    "test-sigmoid": {
        "embed_dim": 32, "custom_text": True, "init_logit_bias": -10,
        "vision_cfg": SIGLIP, "text_cfg": SIGLIP_TEXT,
    },
    "test-mlp": {"embed_dim": 24, "vision_cfg": MLP, "text_cfg": TEXT},
}  # fmt: skip

with tempfile.TemporaryDirectory() as _folder:
    for _name, _settings in OPEN_CLIP.items():
        (Path(_folder) / f"{_name}.json").write_text(json.dumps(_settings))
    open_clip.add_model_config(_folder)

TIMM = (
    "timm/dpmpp_test_eva02",
    "timm/dpmpp_test_dinov3",
    "timm/dpmpp_test_dinov2",
    "timm/dpmpp_test_siglip",
    "timm/test_vit",
    "timm/test_vit2",
    "timm/test_vit3",
)
BACKBONES = (*OPEN_CLIP, *TIMM)
