"""Products of many rows in float32, on CPUs that multiply 16-bit matrices more slowly than that.

Without matrix instructions for a format PyTorch's library multiplies it at a fraction of the speed
of float32 (PERFORMANCE.md, "Reading on a CPU"); widening a matrix takes little beside many rows.
Works piece by piece: a matrix is never in memory as a whole twice. Sums are rounded once, as
PyTorch's are.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .merge import merge

FEWEST_ROWS = 64
"""Rows from which on a matrix is widened for them ..."""
FEWEST_QUERIES = 256
"""... and queries from which on keys and values are."""
ROWS = 2048
"""Rows that are multiplied at once, at most."""
NUMBERS = 1 << 22
"""Of a matrix, widened at once, and of products; of rows twice as many (64 MiB together)."""
KEYS = 16_384
"""Keys that are attended at once."""


@functools.cache
def instructions() -> frozenset[str]:
    """What this CPU can, by PyTorch's names; empty where that is not known or it is no x86."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if known.get("architecture") != "x86_64":
        return frozenset()
    return frozenset(name for name, there in known.items() if there is True)


def widens(x: Tensor) -> bool:
    """Whether products of x [T, K] are taken so."""
    if x.device.type != "cpu" or x.shape[0] < FEWEST_ROWS:
        return False
    known = instructions()
    if x.dtype == torch.bfloat16:
        return bool(known) and "amx_bf16" not in known
    return x.dtype == torch.float16 and bool(known) and not known & {"amx_fp16", "avx512_fp16"}


def widens_attention(q: Tensor) -> bool:
    """Whether attention of q [H, M, D] is; PyTorch's own is no slower but in this case."""
    known = instructions()
    return (
        q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and q.shape[1] >= FEWEST_QUERIES
        and "avx512_f" in known
        and "amx_bf16" not in known
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `kernels.linear.linear`."""
    rows, columns = weight.shape
    out = x.new_empty(x.shape[0], rows)
    height = max(1, min(ROWS, 2 * NUMBERS // max(1, columns)))
    step = max(1, NUMBERS // max(1, columns, min(height, x.shape[0])))
    scratch = x.new_empty(min(step, rows), columns, dtype=torch.float32)
    for top in range(0, x.shape[0], height):
        part = x[top : top + height].float()
        for first in range(0, rows, step):
            some = slice(first, min(first + step, rows))
            wide = scratch[: some.stop - first].copy_(weight[some]).T
            product = part @ wide
            out[top : top + height, some] = product if bias is None else product.add_(bias[some])
            # What follows is made before the names are bound anew.
            del product
        del part
    return out


def partial_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.attention.partial_attention`; there are queries and keys."""
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    step = k.shape[1] if causal else KEYS
    for head in range(q.shape[0]):
        queries, found = q[head].float(), None
        for first in range(0, k.shape[1], step):
            keys, values = (t[head, first : first + step].float() for t in (k, v))
            part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *(t[None, None] for t in (queries, keys, values)), 0.0, causal, scale=scale
            )
            piece = part[0, 0], part_lse[0, 0]
            found = piece if found is None else merge(found, piece)
        assert found is not None
        out[head], lse[head] = found
    return out, lse
