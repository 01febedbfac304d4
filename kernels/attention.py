"""Exact attention that also returns its log-sum-exp, so that partial results can be merged.

Shapes have no batch dimension. `partial_attention` chooses; `partial_attention_reference` is the
formula; on a CPU and, in 16 bits, on a GPU a fused kernel of PyTorch does the work. One query per
head in 16 bits on a CPU, which is a decode step, has compiled code: `full_attention` chooses.
`causal_attention` and `full_attention` take grouped queries, so that each KV head is read once for
all queries that share it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import widened
from .compiled import one_token
from .merge import merge
from .widened import widens_attention

KEY_BLOCK = 4096
"""Keys that the reference looks at at once; bounds its scores to [H, M, KEY_BLOCK]."""

FLASH_DTYPES = (torch.bfloat16, torch.float16)
"""Of which PyTorch has flash attention on a GPU."""


def partial_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the given keys only.

    q [H, M, D], k and v [H, N, D] of one dtype; with `causal` M == N and query i sees keys 0..i.
    Returns out [H, M, D] in q's dtype and lse [H, M] float32 with
    lse = log sum_j exp(scale * q.k_j); no keys give out = 0, lse = -inf.
    """
    if 0 in (q.shape[1], k.shape[1]):
        return partial_attention_reference(q, k, v, scale=scale, causal=causal)
    if widens_attention(q):
        return widened.partial_attention(q, k, v, scale=scale, causal=causal)
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[None], k[None], v[None], 0.0, causal, scale=scale
        )
        return out[0], lse[0]
    if q.device.type == "cuda" and q.dtype in FLASH_DTYPES and q.shape[2] % 8 == 0:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            q[None], k[None], v[None], 0.0, causal, False, scale=scale
        )
        return out[0], lse[0]
    return partial_attention_reference(q, k, v, scale=scale, causal=causal)


def partial_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, float32, `KEY_BLOCK` keys at a time."""
    out = torch.zeros_like(q, dtype=torch.float32)
    lse = torch.full(q.shape[:2], -math.inf, device=q.device)
    queries = torch.arange(q.shape[1], device=q.device)
    for start in range(0, k.shape[1], KEY_BLOCK):
        block = slice(start, start + KEY_BLOCK)
        scores = torch.einsum("hmd,hnd->hmn", q.float(), k[:, block].float()) * scale
        if causal:
            keys = torch.arange(start, start + scores.shape[2], device=q.device)
            scores = scores.masked_fill(keys > queries[:, None], -math.inf)
        part_lse = torch.logsumexp(scores, dim=-1)
        weights = torch.exp(scores - part_lse.clamp(min=torch.finfo().min)[..., None])
        part = torch.einsum("hmn,hnd->hmd", weights, v[:, block].float())
        out, lse = merge((out, lse), (part, part_lse))
    return out.to(q.dtype), lse


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of the last Tq of N tokens to all N, causally.

    q [Hq, Tq, D], k and v [Hkv, N, D], Tq <= N. Returns out [Hq, Tq, D] in float32 when parts were
    merged, else in q's dtype, and lse [Hq, Tq].
    """
    kv_heads, earlier = k.shape[0], k.shape[1] - q.shape[1]
    if q.shape[1] == 1:
        return full_attention(q, k, v, scale=scale)
    own_k, own_v = (t[:, earlier:].repeat_interleave(q.shape[0] // kv_heads, dim=0) for t in (k, v))
    own = partial_attention(q, own_k, own_v, scale=scale, causal=True)
    if earlier == 0:
        return own
    return merge(full_attention(q, k[:, :earlier], v[:, :earlier], scale=scale), own)


def full_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of queries q [Hq, Tq, D] to all keys k, v [Hkv, N, D], whatever their order."""
    if k.shape[1] > 0 and k.dtype == q.dtype and one_token(q) and _in_rows(k, v):
        from .attention_numba import one_query_attention

        return one_query_attention(q, k, v, scale=scale)
    return full_attention_reference(q, k, v, scale=scale)


def full_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """The same by `partial_attention`, on any device."""
    out, lse = partial_attention(grouped(q, k.shape[0]), k, v, scale=scale)
    return out.reshape(q.shape), lse.reshape(q.shape[:2])


def _in_rows(k: Tensor, v: Tensor) -> bool:
    """Whether the tokens of each head lie one after another, in both alike."""
    rows = k.shape[2], 1
    return k.stride()[1:] == rows and k.stride() == v.stride() and k.dtype == v.dtype


def grouped(q: Tensor, kv_heads: int) -> Tensor:
    """[Hq, T, D] -> [Hkv, G * T, D]: the queries that share a KV head, together."""
    heads, tokens, dim = q.shape
    return q.reshape(kv_heads, heads // kv_heads * tokens, dim)
