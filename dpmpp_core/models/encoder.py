"""The image encoder: a ViT whose intermediate tokens are returned too.

Shape letters: B images, N patches, D width of the tower, P width of the joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dpmpp_core.models.attention import mask_keys, reading_logits
from dpmpp_core.models.towers import OpenClipTower, TimmTower, parts_of

ChooseMasked = Callable[[Tensor], Tensor]
"""Maps the tapped tokens so far, [B, taps * D, rows, columns], to bool [B, rows, columns]."""


@dataclass
class Encoded:
    """Result of one forward pass of the encoder.

    Attributes:
        block11: [B, D], class token after the last block but one; the mean of the patch tokens
            where the tower is not read at a class token.
        visual: [B, D], the tower's feature before its projection to the joint space.
        joint: [B, P], the feature in the space shared with text; None without such a space.
        taps: [B, len(taps) * D, rows, columns], patch tokens of the tapped blocks.
        middle: [B, D, rows, columns], patch tokens of the block `middle_block`.
        heads: [B, heads, N], attention logits (before softmax) of the query that pools the
            patches: the class token's in the last block, or the pooling query's; None where a
            mean pools them.
    """

    block11: Tensor
    visual: Tensor
    joint: Tensor | None
    taps: Tensor
    middle: Tensor
    heads: Tensor | None


@dataclass
class _Recorded:
    widened: bool = False
    grid: tuple[int, int] = (0, 0)
    outputs: list[Tensor] = field(default_factory=list)
    last_input: Tensor = field(default_factory=lambda: torch.empty(0))
    reading: Tensor = field(default_factory=lambda: torch.empty(0))
    rope: Tensor | None = None
    masked: Tensor | None = None
    keys: dict[type, dict[str, Tensor]] = field(default_factory=dict)

    def maps(self, blocks: tuple[int, ...]) -> Tensor:
        """Return the patch tokens of blocks (from 1), [B, blocks * D, rows, columns]."""
        patches = self.grid[0] * self.grid[1]
        tokens = [self.outputs[block - 1][:, -patches:] for block in blocks]
        maps = torch.cat([x.transpose(1, 2).unflatten(2, self.grid) for x in tokens], dim=1)
        return maps.float() if self.widened else maps


class ImageEncoder(nn.Module):
    """Runs an image tower and records outputs of its blocks (DPM, CLIP-ReID).

    Args:
        tower: the image tower of a model from `build_clip`.
        taps: 1-based block numbers whose patch tokens feed the mask generator; numbers above the
            tower's depth are scaled down from a depth of 12, so that one recipe serves all sizes.
        mask_depth: share of the blocks after which patches can be masked from attention.
        middle_depth: share of the blocks whose tokens are `Encoded.middle`.

    Attributes:
        early_taps: those of `taps` that are known when patches are masked; without any, the last
            block before.
        masks_attention: whether patches can be masked from attention in every block.
    """

    def __init__(
        self,
        tower: nn.Module,
        taps: tuple[int, ...],
        mask_depth: float = 1.0,
        middle_depth: float = 1.0,
    ) -> None:
        super().__init__()
        self.tower = tower
        parts = parts_of(tower)
        depth = len(parts.blocks)
        self.taps = taps if max(taps) <= depth else tuple(max(1, t * depth // 12) for t in taps)
        self._mask_after = max(1, round(mask_depth * depth))
        self._middle_block = max(1, round(middle_depth * depth))
        early = tuple(tap for tap in self.taps if tap <= self._mask_after)
        self.early_taps = early or (self._mask_after,)
        self.masks_attention = len(parts.attentions) >= depth
        self.token_width = parts.token_width
        self.spaces = {"visual": parts.visual_width}
        if parts.joint_width is not None:
            self.spaces["joint"] = parts.joint_width

    def forward(
        self,
        images: Tensor,
        patch_weights: Tensor | None = None,
        choose_masked: ChooseMasked | None = None,
    ) -> Encoded:
        """Encode images, in the precision of the weights.

        With weights in bfloat16 (`encoder.bfloat16()`, for embedding) maps of tokens are float32,
        as the heads that read them are.

        Args:
            images: normalised, float [B, 3, height, width].
            patch_weights: float [B, N], factors on the patch embeddings, before positions are
                added; None = all 1.
            choose_masked: chooses from the early taps the patches that no query attends to in all
                later blocks (ours); None = no patch is masked.
        """
        parts = parts_of(self.tower)
        with self._record(parts, patch_weights, choose_masked) as recorded:
            visual, joint = parts.run(images.to(parts.convolution.weight.dtype))
        patches = recorded.grid[0] * recorded.grid[1]
        before, heads = recorded.last_input, None
        if parts.reader is not None:
            heads = reading_logits(parts.reader, recorded.reading, patches, recorded.rope)
        return Encoded(
            block11=before[:, 0] if parts.classed else before[:, -patches:].mean(dim=1),
            visual=visual,
            joint=joint,
            taps=recorded.maps(self.taps),
            middle=recorded.maps((self._middle_block,)),
            heads=heads,
        )

    def encode_early(self, images: Tensor) -> Tensor:
        """Return the early taps, [B, early taps * D, rows, columns]; later blocks are not run."""
        return torch.cat(parts_of(self.tower).run_blocks(images, self.early_taps), dim=1)

    def project(self, directions: Tensor) -> Tensor | None:
        """Map directions [C, D] of the visual space to the joint one, [C, P]; no bias is added.

        None if there is no linear map from one to the other.
        """
        projection = parts_of(self.tower).projection
        return None if projection is None else directions @ projection.to(directions.dtype).T

    @contextmanager
    def _record(
        self,
        parts: OpenClipTower | TimmTower,
        patch_weights: Tensor | None,
        choose_masked: ChooseMasked | None,
    ) -> Iterator[_Recorded]:
        """Weigh the patch embeddings, record tokens and mask keys during one forward pass."""
        recorded = _Recorded(parts.convolution.weight.dtype == torch.bfloat16)

        def embedded(_module: nn.Module, _inputs: Any, patches: Tensor) -> Tensor:
            recorded.grid = patches.shape[2], patches.shape[3]
            if patch_weights is None:
                return patches
            return patches * patch_weights.to(patches.dtype).unflatten(1, recorded.grid)[:, None]

        def block_ended(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            recorded.outputs.append(output)
            if choose_masked is not None and len(recorded.outputs) == self._mask_after:
                recorded.masked = choose_masked(recorded.maps(self.early_taps)).flatten(1)

        def attention_starts(module: nn.Module, inputs: tuple, options: dict) -> Any:
            if recorded.masked is None:
                return None
            kind = type(module)  # all modules of a kind take the same
            if kind not in recorded.keys:
                recorded.keys[kind] = mask_keys(module, inputs, recorded.masked)
            return inputs, options | recorded.keys[kind]

        def last_block_starts(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            recorded.last_input = inputs[0]

        def reader_starts(_module: nn.Module, inputs: tuple[Tensor, ...], options: dict) -> None:
            recorded.reading, recorded.rope = inputs[0], options.get("rope")

        hooks = [parts.convolution.register_forward_hook(embedded)]
        hooks += [block.register_forward_hook(block_ended) for block in parts.blocks]
        hooks.append(parts.blocks[-1].register_forward_pre_hook(last_block_starts))
        if parts.reader is not None:
            hooks.append(parts.reader.register_forward_pre_hook(reader_starts, with_kwargs=True))
        if choose_masked is not None:
            hooks += [
                attention.register_forward_pre_hook(attention_starts, with_kwargs=True)
                for attention in parts.attentions
            ]
        try:
            yield recorded
        finally:
            for hook in hooks:
                hook.remove()
