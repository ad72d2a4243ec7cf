"""Cross-attention: the image asks the columns of the table, each a token, what they say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperfusion_rt.data.encoder_columns import InputColumn


def columns_alone(width: int) -> tuple[InputColumn, ...]:
    """Every one of `width` inputs a column of its own that has no gaps."""
    return tuple(InputColumn((i,), None) for i in range(width))


class ColumnTokens(nn.Module):
    """A row `[B, T]` → one token per column of the table, N of them side by side: `[B, N * D]`.

        token_n = (1 - m_n) · (b_n + Σ_i t_i w_i) + m_n · w_m

    i: the column's inputs, a number or one per category (FT-Transformer, Gorishniy et al.,
    NeurIPS 2021). m_n: its gap flag; the token of a missing value is learned, and what was imputed
    does not count (TIP, Du et al., ECCV 2024; here each column has its own). A column without gaps
    in training has no flag.
    """

    owner: Tensor
    gap: Tensor

    def __init__(self, columns: Sequence[InputColumn], width: int) -> None:
        super().__init__()
        positions = [i for column in columns for i in column.positions]
        limit = width**-0.5
        self.weight = nn.Parameter(torch.empty(len(positions), width).uniform_(-limit, limit))
        self.bias = nn.Parameter(torch.empty(len(columns), width).uniform_(-limit, limit))
        owner, gap = torch.zeros(2, len(columns), len(positions))
        for n, column in enumerate(columns):
            owner[n, list(column.inputs)] = 1
            if column.gap is not None:
                gap[n, column.gap] = 1
        self.has_gaps = any(column.gap is not None for column in columns)
        # [N, T]: whether input t is a value of column n, or its gap flag.
        self.register_buffer("owner", owner, persistent=False)
        self.register_buffer("gap", gap, persistent=False)

    def forward(self, row: Tensor) -> Tensor:
        """`row [B, T]` → `[B, N * D]`."""
        tokens = F.linear(row, self._of(self.owner), self.bias.flatten())
        if not self.has_gaps:
            return tokens
        count, width = self.bias.shape
        flags = F.linear(row, self.gap[:, None].expand(count, width, -1).flatten(0, 1))
        return (1 - flags) * tokens + F.linear(row, self._of(self.gap))

    def _of(self, which: Tensor) -> Tensor:
        """`[N * D, T]`: the inputs `which [N, T]`, each with its vector."""
        return (which[:, None, :] * self.weight.T).flatten(0, 1)


class TableAttention(nn.Module):
    """The features of the image are the query, the columns of the table keys and values.

        a_h = softmax_n(token_n · (Q_h p) / √D),   y = x + W2 relu(W1 [Σ_n a_hn token_n]_h)

    p: x, or the global average of a volume. All heads h see whole tokens of D numbers; the maps
    that only act as a product (query with key, value with output) are one. Of TIP it has the
    tokens and the cross-attention of one layer; it has no pretraining, no self-attention among the
    columns, and one image token. Only maps of vectors, so that every engine can run it.
    """

    repeat: Tensor
    sum: Tensor

    def __init__(
        self, channels: int, columns: Sequence[InputColumn], *, width: int = 16, heads: int = 2
    ) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        self.tokens = ColumnTokens(columns, width)
        self.query = nn.Linear(channels, heads * width)
        self.mix = nn.Linear(heads * width, width)
        self.shift = nn.Linear(width, channels)
        count = len(columns)
        # [N * D, D]: a vector in every token's place; [N, N * D]: the sum within each token.
        self.register_buffer("repeat", torch.eye(width).repeat(count, 1), persistent=False)
        self.register_buffer("sum", torch.eye(count).repeat_interleave(width, 1), persistent=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x [B, C, D, H, W]` or `[B, C]`, `condition [B, T]` → the shape of x."""
        pooled = x.mean((2, 3, 4)) if x.dim() == 5 else x
        tokens = self.tokens(condition)
        heard = []
        for query in (self.scale * self.query(pooled)).chunk(self.heads, 1):
            scores = F.linear(tokens * F.linear(query, self.repeat), self.sum)
            weights = F.linear(scores.softmax(1), self.sum.T)
            heard.append(F.linear(tokens * weights, self.repeat.T))
        shift: Tensor = self.shift(self.mix(torch.cat(heard, 1)).relu())
        return x + (shift[..., None, None, None] if x.dim() == 5 else shift)
