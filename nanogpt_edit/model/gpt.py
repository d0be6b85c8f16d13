"""One decoder-only transformer that is GPT-2 or Llama (or Qwen2, Qwen3), depending on its config.

GPT-2 (Radford et al. 2019): learned positions, LayerNorm, tanh-GELU, biases, tied head.
Llama (Touvron et al. 2023; Grattafiori et al. 2024): rotary positions, RMSNorm, SwiGLU, grouped-query attention, no
biases. Qwen2 adds biases to q, k, v; Qwen3 normalises q and k per head instead.

The model can run any span of its blocks (`embed_tokens`, `run_blocks`, `final`, `logits`), which is what editing and
tracing need, and it announces its named sites (`sites.py`). Weights are (out, in).

Shapes: B batch, T new tokens, S all tokens seen, D model width, H query heads, K key/value heads, E head width,
F MLP width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanogpt_edit.errors import UserError
from nanogpt_edit.model.positions import RopeScaling, rotary_angles, rotate, sinusoids
from nanogpt_edit.model.products import Linear, head_product

if TYPE_CHECKING:
    from nanogpt_edit.model.kv_cache import KVCache
    from nanogpt_edit.model.tokenizer import Tokenizer


Activation = Literal["gelu_tanh", "gelu", "relu", "swiglu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "swiglu": F.silu,  # of the gate
}


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and switches of one model. `GPTConfig(vocab_size=419, block_size=128, n_layer=4, n_head=4, n_embd=128)`
    is a small GPT-2."""

    vocab_size: int
    """Rows of the embedding, padding included."""
    block_size: int
    """Longest sequence, in tokens."""
    n_layer: int
    n_head: int
    n_embd: int
    model_type: str = "gpt2"
    """Hugging Face's name of the architecture: gpt2, llama, qwen2, qwen3."""
    n_kv_head: int | None = None
    """Key/value heads shared by the query heads (None: one each)."""
    head_dim: int | None = None
    """Width of a head (None: n_embd / n_head)."""
    mlp_dim: int | None = None
    """Width of the MLP (None: 4 n_embd)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    activation: Activation = "gelu_tanh"
    positions: Literal["learned", "rope"] = "learned"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    bias: bool = True
    """Biases in the attention output, the MLP and (GPT-2) everywhere else."""
    qkv_bias: bool = True
    qk_norm: bool = False
    tie_embeddings: bool = True
    dropout: float = 0.0
    """Share of activations dropped in training; 0 unless a recipe asks, whatever a loaded config says."""

    def __post_init__(self) -> None:
        if self.head_dim is None and self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}; change one of them.")
        if self.n_head % self.kv_heads:
            raise UserError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.kv_heads}; change one of them.")

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def mlp_size(self) -> int:
        return self.mlp_dim or 4 * self.n_embd


class Site(nn.Identity):
    """A named place in the network: passes its input on; `sites.capture` and `sites.patch` hook it."""


class Attention(nn.Module):
    """Causal self-attention; the queries of a group of heads share one key/value head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = config.n_head, config.kv_heads, config.head_size
        self.dropout = config.dropout
        query_size, kv_size = self.heads * self.head_size, self.kv_heads * self.head_size
        self.sizes = (query_size, kv_size, kv_size)
        self.qkv = Linear(config.n_embd, sum(self.sizes), bias=config.qkv_bias)
        self.out = Linear(query_size, config.n_embd, bias=config.bias)
        self.q_norm = nn.RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        layer: int,
        rotary: tuple[Tensor, Tensor] | None,
        cache: KVCache | None,
        mask: Tensor | None,
        columns: Tensor | None = None,
    ) -> Tensor:
        q, k, v = self.qkv(x).split(self.sizes, dim=-1)
        q = self.q_norm(q.unflatten(-1, (self.heads, self.head_size))).transpose(1, 2)  # (B, H, T, E)
        k = self.k_norm(k.unflatten(-1, (self.kv_heads, self.head_size))).transpose(1, 2)  # (B, K, T, E)
        v = v.unflatten(-1, (self.kv_heads, self.head_size)).transpose(1, 2)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if columns is not None and mask is not None:
            q = q.gather(2, columns[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
            mask = mask.expand(len(x), 1, -1, -1)
            mask = mask.gather(2, columns[:, None, :, None].expand(-1, 1, -1, mask.shape[3]))
        if cache is not None:
            y = cache.attend(layer, q, k, v, mask)
        else:
            y = attention(q, k, v, mask=mask, dropout=self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).flatten(2)
        # Without a mask what a token may look at depends on its place, so that all have looked before some are taken.
        return self.out(y if columns is None or mask is not None else take_columns(y, columns))


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
        cache: KVCache | None,
        mask: Tensor | None,
        columns: Tensor | None = None,
    ) -> Tensor:
        middle, key = self.until_key(x, layer, rotary, cache, mask, columns)
        return self.from_key(middle, key)

    def until_key(
        self,
        x: Tensor,
        layer: int,
        rotary: tuple[Tensor, Tensor] | None,
        cache: KVCache | None,
        mask: Tensor | None,
        columns: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The residual stream between attention and MLP, (B, T, D), and `mlp_key`, (B, T, F); at `columns` only."""
        x = self.resid_pre(x)
        attended = self.attn_out(self.dropout(self.attn(self.norm1(x), layer, rotary, cache, mask, columns)))
        x = (x if columns is None else take_columns(x, columns)) + attended
        return x, self.mlp.key(self.norm2(x))

    def from_key(self, middle: Tensor, key: Tensor) -> Tensor:
        """The rest of the block: what the MLP's second matrix makes of the key is added."""
        return self.resid_post(middle + self.mlp_out(self.dropout(self.mlp.down(key))))


class GPT(nn.Module):
    """The decoder. `model(token_ids)` gives logits; the other methods are its parts.

    `tokenizer` and `lineage` (what was done to the weights, newest last) ride along; `checkpoint.py` sets them.
    """

    def __init__(self, config: GPTConfig, *, seed: int | None = None) -> None:
        """Build with GPT-2's initialisation drawn from `seed`, or (None) with weights about to be overwritten."""
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.lineage: tuple[str, ...] = ()
        self.activation_checkpointing = False
        """Where gradients are taken: keep only what goes into each block and compute the rest again in the backward
        pass (Chen et al. 2016)."""
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd) if config.positions == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config)
        self.head = None if config.tie_embeddings else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if seed is not None:
            self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Normal(0, 0.02); what is added to the residual stream is scaled by 1/√(2 n_layer); biases 0 (GPT-2).

        One difference: learned positions begin as sinusoids instead of noise, so that "one place back" is the same
        rotation everywhere from the start.
        """
        generator = torch.Generator(device=self.device).manual_seed(seed)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)
            else:
                residual = name.endswith(("attn.out.weight", "mlp.down.weight"))
                spread = 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02
                weight.normal_(0.0, spread, generator=generator)
        if self.positions is not None:
            self.positions.weight.copy_(sinusoids(self.config.block_size, self.config.n_embd))

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    def forward(
        self,
        token_ids: Tensor,
        *,
        cache: KVCache | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token after each of `token_ids` (B, T)."""
        return self.logits(
            self.hidden(token_ids, cache=cache, position_ids=position_ids, attention_mask=attention_mask)
        )

    def hidden(
        self,
        token_ids: Tensor,
        *,
        cache: KVCache | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Final normalised states (B, T, D), from which `logits` reads; only at `columns` (B, M) where they are given.

        `position_ids` (B, T) or (T,) default to the tokens that follow `cache`. `attention_mask` is bool, True where
        a new token may look, broadcastable to (B, 1, T, S); by default attention is causal, and right padding needs
        no mask.
        """
        if position_ids is None:
            seen = cache.length if cache is not None else 0
            position_ids = torch.arange(seen, seen + token_ids.shape[1], device=token_ids.device)
        x = self.embed_tokens(token_ids, position_ids)
        x = self.run_blocks(x, cache=cache, position_ids=position_ids, attention_mask=attention_mask, columns=columns)
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return self.final(x)

    def embed_tokens(self, token_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """`resid_pre` of block 0, (B, T, D)."""
        x = self.embed(token_ids)
        if self.positions is not None:
            if position_ids is None:
                position_ids = torch.arange(token_ids.shape[1], device=token_ids.device)
            x = x + self.positions(position_ids)
        return self.dropout(x)

    def run_blocks(
        self,
        x: Tensor,
        *,
        start: int = 0,
        stop: int | None = None,
        cache: KVCache | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Blocks `start` up to (not including) `stop`: from `resid_pre` of `start`, (B, T, D), to `resid_post` of the
        last one run. A `cache` is written but not advanced (see `hidden`).

        With `columns` (B, M) only those tokens' states are made in the last block, (B, M, D).
        """
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)
        rotary = self._rotary(position_ids, x.dtype)
        stop = self.config.n_layer if stop is None else stop
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for layer in range(start, stop):
            block = partial(checkpoint, self.blocks[layer], use_reentrant=False) if again else self.blocks[layer]
            x = block(x, layer, rotary, cache, attention_mask, columns if layer == stop - 1 else None)
        return x if columns is None or start < stop else take_columns(x, columns)

    def run_to_key(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """From `resid_pre` of block `layer`, (B, T, D), to just before its MLP's second matrix: the residual stream
        there, (B, T, D), and `mlp_key`, (B, T, F). `run_from_key` is the rest of the block."""
        positions = torch.arange(x.shape[1], device=x.device)
        rotary = self._rotary(positions, x.dtype)
        return self._block(layer).until_key(x, layer, rotary, None, None)

    def run_from_key(self, middle: Tensor, key: Tensor, layer: int) -> Tensor:
        """The rest of block `layer`, after `run_to_key`: its `resid_post`, (B, T, D)."""
        return self._block(layer).from_key(middle, key)

    def _rotary(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """The angles queries and keys are turned by; None where positions are learned."""
        config = self.config
        if config.positions == "learned":
            return None
        return rotary_angles(
            position_ids, head_size=config.head_size, theta=config.rope_theta, scaling=config.rope_scaling, dtype=dtype
        )

    def _block(self, layer: int) -> Block:
        block = self.blocks[layer]
        assert isinstance(block, Block)
        return block

    def final(self, x: Tensor) -> Tensor:
        """The final norm: `resid_post` of the last block -> states the head reads, (..., D)."""
        return self.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return head_product(states, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the head's matrix, which is the embedding's where the two are tied."""
        return self.embed.weight if self.head is None else self.head.weight


def take_columns(x: Tensor, columns: Tensor) -> Tensor:
    """x (B, T, D) at each row's `columns` (B, M) -> (B, M, D)."""
    if len(x) == 1:  # the same, with a faster backward pass
        return x[0].index_select(0, columns[0])[None]
    return x.gather(1, columns[..., None].expand(-1, -1, x.shape[2]))


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √E) v: q (B, H, T, E), k and v (B, K, S, E) -> (B, H, T, E).

    Without a mask the T queries are the last of the S tokens and look at what is not after them.
    """
    new, seen = q.shape[2], k.shape[2]
    if mask is None and 1 < new < seen:
        mask = causal_mask(new, seen, device=q.device)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None and new > 1,
        dropout_p=dropout,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def make_norm(config: GPTConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


def causal_mask(new: int, seen: int, *, device: torch.device) -> Tensor:
    """(new, seen) bool: the last `new` of `seen` tokens may look at themselves and everything before."""
    return torch.ones(new, seen, dtype=torch.bool, device=device).tril(diagonal=seen - new)
