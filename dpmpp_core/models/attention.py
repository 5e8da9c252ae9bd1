"""Attention of the query that pools an image to each of its patches."""

from __future__ import annotations

import torch
from open_clip.transformer import AttentionalPooler
from timm.layers import Attention, AttentionPoolLatent, AttentionRope, apply_rot_embed_cat
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn.functional import linear


def reading_logits(
    attention: nn.Module, x: Tensor, patches: int, rope: Tensor | None = None
) -> Tensor | None:
    """Compute attention logits over the patches, per head, before softmax.

    Only one query is computed, so this costs one key projection.

    Args:
        attention: self-attention of a block, whose query is the class token, or a pooling
            attention, whose (first) query is learnt.
        x: [B, prefix + N, D], the module's input: class and register tokens, then the patches.
        patches: N.
        rope: rotary positions of the patches, where the module takes them.

    Returns:
        [B, heads, N]; None for kinds of attention without such logits.
    """
    keys = x[:, -patches:]
    if isinstance(attention, nn.MultiheadAttention):
        return _multihead(attention, x[:, :1], keys)
    if isinstance(attention, AttentionalPooler):
        query = attention.ln_q(attention.query[:1]).expand(x.shape[0], 1, -1)
        return _multihead(attention.attn, query, attention.ln_k(keys))
    if isinstance(attention, AttentionPoolLatent):
        return _latent(attention, keys)
    if isinstance(attention, (Attention, AttentionRope, EvaAttention)):
        return _timm(attention, x[:, :1], keys, rope)
    return None


def mask_keys(
    attention: nn.Module, inputs: tuple[Tensor, ...], masked: Tensor
) -> dict[str, Tensor]:
    """Return the keyword arguments that keep an attention module from attending to patches (ours).

    Args:
        attention: of a block or a pooling attention, called with `inputs`.
        inputs: its positional arguments, tokens [B, prefix + N, D]; of three, the second are keys.
        masked: bool [B, N]. Where all patches are masked, none is: something has to be read.
    """
    masked = masked & ~masked.all(dim=1, keepdim=True)
    prefix = inputs[1 if len(inputs) > 1 else 0].shape[1] - masked.shape[1]
    padded = nn.functional.pad(masked, (prefix, 0))
    if isinstance(attention, nn.MultiheadAttention):
        return {"key_padding_mask": padded}
    bias = torch.zeros(padded.shape, dtype=inputs[0].dtype, device=masked.device)
    bias = bias.masked_fill(padded, float("-inf"))[:, None, None]
    return {"shared_rel_pos_bias" if isinstance(attention, BeitAttention) else "attn_mask": bias}


def _multihead(attention: nn.MultiheadAttention, query: Tensor, keys: Tensor) -> Tensor:
    width, heads = attention.embed_dim, attention.num_heads
    if attention.in_proj_weight is None:  # keys of another width than the query
        weight_q, weight_k = attention.q_proj_weight, attention.k_proj_weight
    else:
        weight_q, weight_k = attention.in_proj_weight[: 2 * width].chunk(2)
    bias_q, bias_k = attention.in_proj_bias[: 2 * width].chunk(2)
    q, k = linear(query, weight_q, bias_q), linear(keys, weight_k, bias_k)
    return _logits(_by_head(q, heads), _by_head(k, heads))


def _latent(pool: AttentionPoolLatent, keys: Tensor) -> Tensor:
    width = pool.num_heads * pool.head_dim
    bias = None if pool.kv.bias is None else pool.kv.bias[:width]
    q = pool.q(pool.latent[:, :1]).expand(keys.shape[0], 1, -1)
    k = linear(keys, pool.kv.weight[:width], bias)
    q, k = _by_head(q, pool.num_heads), _by_head(k, pool.num_heads)
    return _logits(pool.q_norm(q), pool.k_norm(k))


def _timm(
    attention: Attention | AttentionRope | EvaAttention,
    query: Tensor,
    keys: Tensor,
    rope: Tensor | None,
) -> Tensor:
    if attention.qkv is None:
        q, k = attention.q_proj(query), attention.k_proj(keys)
    else:
        weight_q, weight_k, _ = attention.qkv.weight.chunk(3)
        bias_q = bias_k = None
        if attention.qkv.bias is not None:
            bias_q, bias_k, _ = attention.qkv.bias.chunk(3)
        elif getattr(attention, "q_bias", None) is not None:
            bias_q, bias_k = attention.q_bias, attention.k_bias
        q, k = linear(query, weight_q, bias_q), linear(keys, weight_k, bias_k)
    groups = getattr(attention, "num_kv_groups", 1)
    q = attention.q_norm(_by_head(q, attention.num_heads))
    k = attention.k_norm(_by_head(k, attention.num_heads // groups))
    if rope is not None:  # of patches alone: the class token has no place
        k = apply_rot_embed_cat(k, rope, half=getattr(attention, "rotate_half", False))
    return _logits(q, k.repeat_interleave(groups, dim=1))


def _by_head(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _logits(q: Tensor, k: Tensor) -> Tensor:
    """Multiply [B, heads, 1, d] and [B, heads, N, d] to [B, heads, N]."""
    return torch.einsum("bhqd,bhnd->bhn", q, k) * q.shape[-1] ** -0.5
