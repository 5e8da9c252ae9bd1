"""Learnable identity prompts: a few word vectors an identity, the text tower frozen (CLIP-ReID)."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from dpmpp_core.config import ModelConfig
from dpmpp_core.errors import ConfigError


class PromptLearner(nn.Module):
    """`A photo of a X X X X person.` with its own X for each identity.

    The text tower is causal and is read at the end-of-text token, so the sequence is cut right
    behind that token: the same numbers as with the full context, at a sixth of the work (ours).

    Args:
        clip: an open_clip model; its text tower is kept, frozen.
        config: `backbone` (for the tokenizer), `prompt`, `prompt_tokens`.
        classes: number of identities C.

    Raises:
        ConfigError: a prompt without `{}` or with no room for the words, or a text tower that is
            not a causal transformer read at its end-of-text token.
    """

    ids: Tensor
    causal_mask: Tensor

    def __init__(self, clip: nn.Module, config: ModelConfig, classes: int) -> None:
        super().__init__()
        text: Any = getattr(clip, "text", clip)
        mask = getattr(text, "attn_mask", None)
        pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
        if mask is None or not hasattr(text, "token_embedding") or pool != "argmax":
            raise ConfigError(
                f"model.backbone {config.backbone}: its text tower is not a causal open_clip "
                "transformer read at the end-of-text token, which the prompts need"
            )
        prefix, hole, suffix = config.prompt.partition("{}")
        if not hole:
            raise ConfigError(f"model.prompt {config.prompt!r} lacks the {{}} for learnable words")
        tokenizer = open_clip.get_tokenizer(config.backbone)
        words = " ".join(["x"] * config.prompt_tokens)
        ids = tokenizer([prefix + words + suffix])[0]
        self.eot = int(ids.argmax())
        self.first = int(tokenizer([prefix.strip()])[0].argmax())  # SOT and prefix come before
        slot = ids[self.first : self.first + config.prompt_tokens]
        # The tokenizer cuts a long sentence in silence and then ends it at its last place.
        if (slot != tokenizer(["x"])[0, 1]).any() or self.eot == len(ids) - 1:
            raise ConfigError(
                f"model.prompt {config.prompt!r} with {config.prompt_tokens} learnable words: "
                f"leave a space around the {{}} and stay below the text tower's {len(ids)} tokens"
            )
        self.register_buffer("ids", ids[: self.eot + 1].clone(), persistent=False)
        cut = mask[: self.eot + 1, : self.eot + 1].clone()
        self.register_buffer("causal_mask", cut, persistent=False)
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
        count = self.tokens.shape[1]
        x = torch.cat(
            [
                frozen[:, : self.first],
                self.tokens[labels].to(frozen.dtype),
                frozen[:, self.first + count :],
            ],
            dim=1,
        )
        x = x + self.positional_embedding[: x.shape[1]].to(x.dtype)
        x = self.transformer(x, attn_mask=self.causal_mask)
        return self._project(self.ln_final(x)[:, self.eot])

    def _project(self, pooled: Tensor) -> Tensor:
        projection = self.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
