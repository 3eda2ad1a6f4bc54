"""Attention in plain PyTorch, called like ComfyUI's."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    *,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **_: Any,
) -> Tensor:
    """PyTorch's attention, called like ComfyUI's ``optimized_attention``.

    q, k, v are [N, heads, L, d] with ``skip_reshape``, else [N, L, heads·d]; the result is [N, heads, L, d] with
    ``skip_output_reshape``, else [N, L, heads·d].
    """
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)
