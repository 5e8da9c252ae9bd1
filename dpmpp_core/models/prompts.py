"""Learnable identity prompts: a few word vectors an identity, the text tower frozen (CLIP-ReID)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpmpp_core.config import ModelConfig
from dpmpp_core.errors import ConfigError
from dpmpp_core.models.clip import find_tokenizer


class PromptLearner(nn.Module):
    """`A photo of a X X X X person.` with its own X for each identity.

    Serves every open_clip transformer over words: CLIP's (causal, read at the end-of-text token),
    SigLIP's (all words see all, read at the last place), CoCa's (a class token behind the words).
    Nothing behind the place of reading matters in a causal tower, so there the sequence is cut:
    the same numbers as with the full context, at a sixth of the work (ours).

    Args:
        clip: a model from `build_clip`; its text tower is kept, frozen.
        config: `backbone` (for the tokenizer), `prompt`, `prompt_tokens`.
        classes: number of identities C.

    Raises:
        ConfigError: a prompt without `{}` or with no room for the words, or a backbone without
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
        # A class token behind the words and the masks of padding are TextTransformer's own matter.
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
        """Text features of identities int64 [M] -> [M, P], not normalised."""
        frozen = self.token_embedding(self.ids).expand(len(labels), -1, -1)
        behind = self.first + self.tokens.shape[1]
        own = self.tokens[labels].to(frozen.dtype)
        parts = [frozen[:, : self.first], own, frozen[:, behind:]]
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
    """Token numbers [L] of the prompt with any words in it, and the place of the first of them."""
    before, hole, after = config.prompt.partition("{}")
    if not hole:
        raise ConfigError(f"model.prompt {config.prompt!r} lacks the {{}} for learnable words")
    tokenizer, count = find_tokenizer(config.backbone), config.prompt_tokens
    sentences = [before + " ".join([word] * count) + after for word in ("x", "y")]
    ids, others, longer = tokenizer([*sentences, sentences[0] + " x"])
    slots = (ids != others).nonzero()[:, 0]  # where one word in place of another is seen
    together = len(slots) == count and int(slots[-1] - slots[0]) == count - 1
    spaced = before[-1:] in ("", " ") and not after[:1].isalnum()
    # A tokenizer cuts a long sentence in silence: what is then added to it makes no difference.
    if not (together and spaced) or torch.equal(ids, longer):
        raise ConfigError(
            f"model.prompt {config.prompt!r} with {count} learnable words: "
            f"leave a space around the {{}} and stay below the text tower's {len(ids)} tokens"
        )
    return ids, int(slots[0])


def _reading_place(text: Any, pool: str, ids: Tensor) -> int:
    """Where open_clip reads the text: its `text_global_pool` for one sentence."""
    if pool == "eos":
        eos: Any = getattr(text, "eos_id", getattr(text, "text_eos_id", None))
        return int(torch.eq(ids, eos).int().argmax())
    return {"argmax": int(ids.argmax()), "last": len(ids) - 1, "first": 0}[pool]
