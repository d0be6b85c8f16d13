"""One decoder-only transformer that is GPT-2 or Llama (or Qwen2, Qwen3), depending on its config.

GPT-2 (Radford et al. 2019): learned positions, LayerNorm, tanh-GELU, biases, tied head.
Llama (Touvron et al. 2023; Grattafiori et al. 2024): rotary positions, RMSNorm, SwiGLU, grouped-query attention, no
biases. Qwen2 adds biases to q, k, v; Qwen3 normalises q and k per head instead.

The model can run any span of its blocks (`embed_tokens`, `run_blocks`, `final`, `logits`), which is what editing and
tracing need, and it announces its named sites (`sites.py`). Weights are (out, in).

Shapes: B batch, T new tokens, S all tokens seen, D model width, F MLP width, V vocabulary.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanogpt_edit.model.attention import AttentionView
from nanogpt_edit.model.block import Block, make_norm, take_columns
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.head import head_product
from nanogpt_edit.model.kept import Kept
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.linear import Packed
from nanogpt_edit.model.positions import rotary_angles, sinusoids
from nanogpt_edit.model.size import check_fits

if TYPE_CHECKING:
    from nanogpt_edit.model.tokenizer import Tokenizer


class GPT(nn.Module):
    """The decoder. `model(token_ids)` gives logits; the other methods are its parts.

    `tokenizer`, `lineage` (what was done to the weights, newest last) and `kept` (what else came with the model) ride
    along; `checkpoint.py` sets them.
    """

    def __init__(self, config: GPTConfig, *, seed: int | None = None) -> None:
        """Build with GPT-2's initialisation drawn from `seed`, or (None) with weights about to be overwritten.

        Raises UserError for sizes that do not fit in the machine's memory.
        """
        super().__init__()
        if torch.get_default_device().type == "cpu":
            check_fits(config)
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.kept = Kept()
        self.lineage: tuple[LineageEntry, ...] = ()
        self.source: Path | None = None
        """The directory or file it was loaded from."""
        self.activation_checkpointing = False
        """Where gradients are taken: keep only what goes into each block and compute the rest again in the backward
        pass (Chen et al. 2016)."""
        self.packed_head: Packed | None = None
        """The head's matrix once more, while somebody says that it does not change (`packed_weights.py`),"""
        self.cast_head: Tensor | None = None
        """and in the dtype of products."""
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
        view: AttentionView | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token after each of `token_ids` (B, T)."""
        return self.logits(self.hidden(token_ids, view=view, position_ids=position_ids, attention_mask=attention_mask))

    def hidden(
        self,
        token_ids: Tensor,
        *,
        view: AttentionView | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Final normalised states (B, T, D), from which `logits` reads; only at `columns` (B, M) where they are given.

        `position_ids` (B, T) or (T,) default to the tokens that follow what `view` holds. `attention_mask` is bool,
        True where a new token may look, broadcastable to (B, 1, T, S); by default attention is causal, and right
        padding needs no mask.
        """
        if position_ids is None:
            seen = view.length if view is not None else 0
            position_ids = torch.arange(seen, seen + token_ids.shape[1], device=token_ids.device)
        x = self.embed_tokens(token_ids, position_ids)
        x = self.run_blocks(x, view=view, position_ids=position_ids, attention_mask=attention_mask, columns=columns)
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
        view: AttentionView | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Blocks `start` up to (not including) `stop`: from `resid_pre` of `start`, (B, T, D), to `resid_post` of the
        last one run.

        With `columns` (B, M) only those tokens' states are made in the last block, (B, M, D).
        """
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)
        rotary = self._rotary(position_ids, x.dtype)
        stop = self.config.n_layer if stop is None else stop
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for layer in range(start, stop):
            block = partial(checkpoint, self.blocks[layer], use_reentrant=False) if again else self.blocks[layer]
            x = block(x, layer, rotary, view, attention_mask, columns if layer == stop - 1 else None)
        return x if columns is None or start < stop else take_columns(x, columns)

    def run_to_key(
        self, x: Tensor, layer: int, *, view: AttentionView | None = None, position_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """From `resid_pre` of block `layer`, (B, T, D), to just before its MLP's second matrix: the residual stream
        there, (B, T, D), and `mlp_key`, (B, T, F). `run_from_key` is the rest of the block."""
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)
        return self._block(layer).until_key(x, layer, self._rotary(position_ids, x.dtype), view, None)

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
        return head_product(states, self.head_weight if self.cast_head is None else self.cast_head, self.packed_head)

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the head's matrix, which is the embedding's where the two are tied."""
        return self.embed.weight if self.head is None else self.head.weight
