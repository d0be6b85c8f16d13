"""One block of the decoder: attention, then an MLP, each added to the residual stream, with the sites between them.

Shapes: B batch, T new tokens, S all tokens seen, M chosen columns of a row, D model width, H query heads, K key/value
heads, E head width, F MLP width. Weights are (out, in).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt_edit.model.attention import AttentionView, attention
from nanogpt_edit.model.config import Activation, GPTConfig
from nanogpt_edit.model.linear import Linear
from nanogpt_edit.model.positions import rotate

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "swiglu": F.silu,  # of the gate
}


class Site(nn.Identity):
    """A named place in the network: passes its input on; `sites.capture` and `sites.patch` hook it."""


class Attention(nn.Module):
    """Causal self-attention; the queries of a group of heads share one key/value head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = config.n_head, config.kv_heads, config.head_size
        self.dropout = config.dropout
        self.look = look
        self.qkv = Linear(config.n_embd, (self.heads + 2 * self.kv_heads) * self.head_size, bias=config.qkv_bias)
        self.out = Linear(self.heads * self.head_size, config.n_embd, bias=config.bias)
        self.normed = config.qk_norm
        self.q_norm = nn.RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        layer: int,
        rotary: tuple[Tensor, Tensor] | None,
        view: AttentionView | None,
        mask: Tensor | None,
        columns: Tensor | None = None,
    ) -> Tensor:
        every = self.qkv(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)  # (B, H + 2K, T, E)
        qk, v = every.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        if self.normed:
            q, k = qk.split((self.heads, self.kv_heads), dim=1)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)
        if rotary is not None:
            qk = rotate(qk, *rotary)
        q, k = qk.split((self.heads, self.kv_heads), dim=1)  # (B, H, T, E), (B, K, T, E)
        if columns is not None and mask is not None:
            q = q.gather(2, columns[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
            mask = mask.expand(len(x), 1, -1, -1)
            mask = mask.gather(2, columns[:, None, :, None].expand(-1, 1, -1, mask.shape[3]))
        if view is not None:
            y = self.look(view, layer, q, k, v, mask)
        else:
            y = attention(q, k, v, mask=mask, dropout=self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).flatten(2)
        # Without a mask what a token may look at depends on its place, so that all have looked before some are taken.
        return self.out(y if columns is None or mask is not None else take_columns(y, columns))


def look(view: AttentionView, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention through a view; `compiled_blocks` keeps it out of what is compiled."""
    return view.attend(layer, q, k, v, mask)


class MLP(nn.Module):
    """Two matrices with a nonlinearity between; the input of the second is the site `mlp_key`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        gated = config.activation == "swiglu"
        self.gate = Linear(config.n_embd, config.mlp_size, bias=config.bias) if gated else None
        self.up = Linear(config.n_embd, config.mlp_size, bias=config.bias)
        self.down = Linear(config.mlp_size, config.n_embd, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.mlp_key = Site()

    def key(self, x: Tensor) -> Tensor:
        """What the second matrix reads, (B, T, F)."""
        if self.gate is None:
            return self.mlp_key(self.activation(self.up(x)))
        return self.mlp_key(self.activation(self.gate(x)) * self.up(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.key(x))


class Block(nn.Module):
    """x + attention(norm(x)), then + MLP(norm(x)), with a site before, between and after."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1, self.attn = make_norm(config), Attention(config)
        self.norm2, self.mlp = make_norm(config), MLP(config)
        self.dropout = nn.Dropout(config.dropout)
        self.resid_pre, self.attn_out, self.mlp_out, self.resid_post = Site(), Site(), Site(), Site()

    def forward(
        self,
        x: Tensor,
        layer: int,
        rotary: tuple[Tensor, Tensor] | None,
        view: AttentionView | None,
        mask: Tensor | None,
        columns: Tensor | None = None,
    ) -> Tensor:
        middle, key = self.until_key(x, layer, rotary, view, mask, columns)
        return self.from_key(middle, key)

    def until_key(
        self,
        x: Tensor,
        layer: int,
        rotary: tuple[Tensor, Tensor] | None,
        view: AttentionView | None,
        mask: Tensor | None,
        columns: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The residual stream between attention and MLP, (B, T, D), and `mlp_key`, (B, T, F); at `columns` only."""
        x = self.resid_pre(x)
        attended = self.attn_out(self.dropout(self.attn(self.norm1(x), layer, rotary, view, mask, columns)))
        x = (x if columns is None else take_columns(x, columns)) + attended
        return x, self.mlp.key(self.norm2(x))

    def from_key(self, middle: Tensor, key: Tensor) -> Tensor:
        """The rest of the block: what the MLP's second matrix makes of the key is added."""
        return self.resid_post(middle + self.mlp_out(self.dropout(self.mlp.down(key))))


def take_columns(x: Tensor, columns: Tensor) -> Tensor:
    """x (B, T, D) at each row's `columns` (B, M) -> (B, M, D)."""
    if len(x) == 1:  # the same, with a faster backward pass
        return x[0].index_select(0, columns[0])[None]
    return x.gather(1, columns[..., None].expand(-1, -1, x.shape[2]))


def make_norm(config: GPTConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)
