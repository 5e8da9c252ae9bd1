"""Learnable identity prompts: word vectors per identity, the text tower frozen (CLIP-ReID)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpmpp_core.config import ModelConfig
from dpmpp_core.errors import ConfigError
from dpmpp_core.models.clip import find_tokenizer


class PromptLearner(nn.Module):
    """`A photo of a X X X X person.` with other X for each identity.

    Supports every open_clip transformer over words: CLIP's (causal, read at the end-of-text token),
    SigLIP's (not causal, read at the last place), CoCa's (a class token after the words). In a
    causal tower the sequence is cut after the place that is read: the same numbers as with the full
    context, at a sixth of the work (ours).

    Args:
        clip: a model from `build_clip`; its text tower is kept, frozen.
        config: `backbone` (for the tokenizer), `prompt`, `prompt_tokens`.
        classes: number of identities C.

    Raises:
        ConfigError: a prompt without `{}` or without space for the words, or a backbone without
            a text tower of this kind.
        WeightsError: as `find_tokenizer`.
    """

    ids: Tensor
    attention_mask: Tensor | None

    def __init__(self, clip: nn.Module, config: ModelConfig, classes: int) -> None:
        super().__init__()
        text: Any = getattr(clip, "text", clip)
        pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
        if not hasattr(text, "token_embedding") or pool not in ("argmax", "eos", "last", "first"):
            raise ConfigError(
                f"model.backbone {config.backbone}: it has no open_clip transformer over words, "
                "which the prompts need"
            )
        ids, self.first = _tokenise(config)
        class_token = getattr(text, "cls_emb", None)
        self.read = len(ids) if class_token is not None else _reading_place(text, pool, ids)
        # TextTransformer itself knows about a class token after the words and masks of padding.
        mask = text._embeds(ids[None])[1] if hasattr(text, "_embeds") else text.attn_mask
        if mask is not None and mask.ndim == 2:  # causal
            ids, mask = ids[: self.read + 1], mask[: self.read + 1, : self.read + 1]
        self.register_buffer("ids", ids.clone(), persistent=False)
        kept = None if mask is None else mask.detach().clone()
        self.register_buffer("attention_mask", kept, persistent=False)
        self.class_token: nn.Parameter | None = class_token
        self.token_embedding: nn.Embedding = text.token_embedding
        self.positional_embedding: nn.Parameter = text.positional_embedding
        self.transformer: nn.Module = text.transformer
        self.ln_final: nn.Module = text.ln_final
        self.text_projection: nn.Parameter | nn.Linear | None = text.text_projection
        self.requires_grad_(False)
        width = self.token_embedding.weight.shape[1]
        self.tokens = nn.Parameter(torch.randn(classes, config.prompt_tokens, width) * 0.02)

    def forward(self, labels: Tensor) -> Tensor:
        """Return text features [M, P] of identities int64 [M], not normalised."""
        frozen = self.token_embedding(self.ids).expand(len(labels), -1, -1)
        learnt = self.tokens[labels].to(frozen.dtype)
        end = self.first + learnt.shape[1]
        parts = [frozen[:, : self.first], learnt, frozen[:, end:]]
        if self.class_token is not None:
            parts.append(self.class_token.expand(len(labels), 1, -1))
        x = torch.cat(parts, dim=1)
        x = x + self.positional_embedding[: x.shape[1]].to(x.dtype)
        mask = self.attention_mask
        if mask is not None and mask.ndim == 3:  # [heads, L, L] -> [M x heads, L, L]
            mask = mask.repeat(len(labels), 1, 1)
        x = self.transformer(x, attn_mask=mask)
        return self._project(self.ln_final(x[:, self.read]))

    def _project(self, pooled: Tensor) -> Tensor:
        projection = self.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def _tokenise(config: ModelConfig) -> tuple[Tensor, int]:
    """Return token numbers [L] of the prompt with placeholders, and the place of the first one."""
    before, hole, after = config.prompt.partition("{}")
    if not hole:
        raise ConfigError(f"model.prompt {config.prompt!r} lacks the {{}} for learnable words")
    tokenizer, count = find_tokenizer(config.backbone), config.prompt_tokens
    sentences = [before + " ".join([word] * count) + after for word in ("x", "y")]
    ids, others, longer = tokenizer([*sentences, sentences[0] + " x"])
    slots = (ids != others).nonzero()[:, 0]  # tokens of the placeholders
    together = len(slots) == count and int(slots[-1] - slots[0]) == count - 1
    spaced = before[-1:] in ("", " ") and not after[:1].isalnum()
    # A tokenizer truncates a long sentence silently: a further word then makes no difference.
    if not (together and spaced) or torch.equal(ids, longer):
        raise ConfigError(
            f"model.prompt {config.prompt!r} with {count} learnable words: "
            f"leave a space around the {{}} and stay below the text tower's {len(ids)} tokens"
        )
    return ids, int(slots[0])


def _reading_place(text: Any, pool: str, ids: Tensor) -> int:
    """Return the place at which open_clip's `text_global_pool` reads the text."""
    if pool == "eos":
        eos: Any = getattr(text, "eos_id", getattr(text, "text_eos_id", None))
        return int(torch.eq(ids, eos).int().argmax())
    return {"argmax": int(ids.argmax()), "last": len(ids) - 1, "first": 0}[pool]
