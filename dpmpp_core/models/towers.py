"""The parts of an image tower: open_clip's own ViT, or a timm ViT with or without text.

The towers are run by their own code; `encoder.py` records intermediate tokens by hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn


class OpenClipTower:
    """An open_clip VisionTransformer: read by its class token, a mean, or a pooling attention.

    Attributes:
        convolution: computes the patch embeddings, [B, D, rows, columns].
        blocks: the transformer's.
        attentions: attention modules of the blocks, and of the pooling where there is one.
        classed: whether the image is read at the class token.
        reader: the attention module that pools the patches; None where a mean does.
        projection: [P, D], linear map from the visual into the joint space; None where there is
            no linear one.
        token_width: D of the tokens.
        visual_width: D of the features.
        joint_width: P; None without text.
    """

    def __init__(self, tower: VisionTransformer) -> None:
        self._tower = tower
        self.convolution: nn.Conv2d = tower.conv1
        self.blocks: Sequence[nn.Module] = tower.transformer.resblocks
        self.classed = tower.attn_pool is None and tower.pool_type == "tok"
        own = self.blocks[-1].attn if self.classed else None
        self.reader: nn.Module | None = own if tower.attn_pool is None else tower.attn_pool
        pool = [] if tower.attn_pool is None else [tower.attn_pool.attn]
        self.attentions: list[nn.Module] = [*(block.attn for block in self.blocks), *pool]
        self.projection: Tensor | None = tower.proj.T
        self.token_width = int(tower.conv1.out_channels)
        self.visual_width, self.joint_width = (int(width) for width in tower.proj.shape)

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return visual [B, D] and joint [B, P] features."""
        tower = self._tower
        visual, _ = tower._pool(tower.transformer(tower._embeds(images)))
        return visual, visual @ tower.proj

    def run_blocks(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return patch tokens of blocks (from 1), each [B, D, rows, columns]; stop after them."""
        indices = sorted({block - 1 for block in blocks})
        maps = self._tower.forward_intermediates(
            images, indices, stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )["image_intermediates"]
        return [maps[indices.index(block - 1)] for block in blocks]


class TimmTower:
    """A timm ViT (VisionTransformer, Eva, Beit), alone or as the image tower of an open_clip model.

    If the pooled feature is in the joint space (SigLIP), the visual feature is the mean of the last
    patch tokens, as in CLIP-ReID for attention-pooled ResNets. Attributes as `OpenClipTower`.
    """

    def __init__(self, tower: Any) -> None:
        self._head = tower.head if isinstance(tower, TimmModel) else None
        self._trunk: Any
        self._trunk = trunk = tower.trunk if isinstance(tower, TimmModel) else tower
        self.convolution: nn.Conv2d = trunk.patch_embed.proj
        self.blocks: Sequence[nn.Module] = trunk.blocks
        self.classed = trunk.global_pool == "token"
        own = getattr(self.blocks[-1], "attn", None) if self.classed else None
        pool = getattr(trunk, "attn_pool", None)
        self.reader: nn.Module | None = pool or own
        attentions = [getattr(block, "attn", None) for block in self.blocks]
        self.attentions: list[nn.Module] = [x for x in [*attentions, pool] if x is not None]
        heads = [] if self._head is None else [*trunk.head.modules(), *self._head.modules()]
        self._linear = [layer for layer in heads if isinstance(layer, nn.Linear)]
        self.projection: Tensor | None = self._linear[0].weight if len(self._linear) == 1 else None
        self.token_width = int(trunk.embed_dim)
        self.visual_width = int(trunk.num_features)
        self.joint_width: int | None = None
        if self._head is not None:
            self.joint_width = self._linear[-1].out_features if self._linear else self.visual_width

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return visual [B, D] and joint [B, P] features; joint None without a text space."""
        tokens = self._trunk.forward_features(images)
        pooled = self._trunk.forward_head(tokens, pre_logits=True)
        if self._head is None:
            return pooled, None
        joint = self._head(self._trunk.head(pooled))
        if self._linear:
            return pooled, joint
        return tokens[:, self._trunk.num_prefix_tokens :].mean(dim=1), joint

    def run_blocks(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return patch tokens of blocks (from 1), each [B, D, rows, columns]; stop after them."""
        indices = sorted({block - 1 for block in blocks})
        maps = self._trunk.forward_intermediates(
            images, indices, stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )
        return [maps[indices.index(block - 1)] for block in blocks]


def parts_of(tower: nn.Module) -> OpenClipTower | TimmTower:
    """Return the parts of a tower of `build_clip`."""
    return OpenClipTower(tower) if isinstance(tower, VisionTransformer) else TimmTower(tower)
