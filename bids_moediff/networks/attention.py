# SPDX-License-Identifier: Apache-2.0
"""Self-attention over tokens, shared by the families."""

from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head self-attention with an optional additive bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, N, d) -> (B, N, d); ``bias`` broadcasts to (B, heads, N, N)."""
        batch, count, dim = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = None if bias is None else bias.to(query.dtype)
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.project(out.transpose(1, 2).reshape(batch, count, dim))
