"""The image encoder: an open_clip ViT that also shows what its blocks see.

Shape letters: B images, N patches, D width of the tower, P width of the joint space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from dpmpp_core.errors import ConfigError


@dataclass
class Encoded:
    """What one forward pass of the encoder gives.

    Attributes:
        block11: [B, D], class token after the last block but one.
        visual: [B, D], class token after the last block and its layer norm.
        joint: [B, P], `visual` projected into the space shared with text.
        taps: [B, len(taps) * D, rows, columns], patch tokens of the tapped blocks.
        heads: [B, heads, N], class-to-patch attention logits (before softmax) of the last block.
    """

    block11: Tensor
    visual: Tensor
    joint: Tensor
    taps: Tensor
    heads: Tensor


class ImageEncoder(nn.Module):
    """Runs an open_clip VisionTransformer block by block (DPM, CLIP-ReID).

    Args:
        tower: the image tower of an open_clip model.
        taps: 1-based block numbers whose patch tokens feed the mask generator; numbers above the
            tower's depth are scaled down from a depth of 12, so that one recipe serves all sizes.

    Raises:
        ConfigError: a block that is not the plain pre-norm residual attention block.
    """

    def __init__(self, tower: VisionTransformer, taps: tuple[int, ...]) -> None:
        super().__init__()
        blocks = tower.transformer.resblocks
        if not all(isinstance(block, ResidualAttentionBlock) for block in blocks):
            raise ConfigError("the image tower's blocks are of a custom type; take a plain ViT")
        self.tower = tower
        depth = len(blocks)
        self.taps = taps if max(taps) <= depth else tuple(max(1, t * depth // 12) for t in taps)

    @property
    def width(self) -> int:
        return int(self.tower.transformer.width)

    @property
    def joint_width(self) -> int:
        return int(self.tower.proj.shape[1])

    def forward(self, images: Tensor, patch_weights: Tensor | None = None) -> Encoded:
        """Encode normalised images, float [B, 3, height, width].

        Args:
            patch_weights: float [B, N], factors on the patch embeddings before positions are added
                (SPT); None = all one.
        """
        tower = self.tower
        patches = tower.conv1(images)
        rows, columns = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2)
        if patch_weights is not None:
            x = x * patch_weights[..., None].to(x.dtype)
        cls = tower.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + tower.positional_embedding.to(x.dtype)
        x = tower.ln_pre(tower.patch_dropout(x))
        blocks = tower.transformer.resblocks
        outputs = []
        for block in blocks:
            before_last = x
            x = block(x)
            outputs.append(x)
        visual = tower.ln_post(x[:, 0])
        return Encoded(
            block11=before_last[:, 0],
            visual=visual,
            joint=visual @ tower.proj,
            taps=torch.cat(
                [
                    outputs[tap - 1][:, 1:].transpose(1, 2).unflatten(2, (rows, columns))
                    for tap in self.taps
                ],
                dim=1,
            ),
            heads=class_attention(blocks[-1], before_last),
        )


def class_attention(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Attention logits of the class token over the patches, per head, before softmax.

    Only the class token's query is computed, so this costs one key projection.

    Args:
        block: an open_clip residual attention block.
        x: [B, 1 + N, D], its input.

    Returns:
        [B, heads, N].
    """
    attention = block.attn
    heads, width = attention.num_heads, attention.embed_dim
    x = block.ln_1(x)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    q = nn.functional.linear(x[:, 0], weight[:width], bias[:width])
    k = nn.functional.linear(x[:, 1:], weight[width : 2 * width], bias[width : 2 * width])
    q = q.unflatten(-1, (heads, -1))
    k = k.unflatten(-1, (heads, -1))
    return torch.einsum("bhd,bnhd->bhn", q, k) * (width // heads) ** -0.5
