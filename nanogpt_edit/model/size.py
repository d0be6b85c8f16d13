"""How many weights a model of given sizes has, and whether a machine can hold them: asked before any is made."""

from __future__ import annotations

import torch

from nanogpt_edit.common import sizes
from nanogpt_edit.model.config import GPTConfig

BLOCK_OBJECTS = 30_000  # bytes of Python's objects for one block, whatever its width


def parameter_count(config: GPTConfig) -> int:
    """The number of weights of a model of these sizes, a tied head counted once."""
    width, mlp, head = config.n_embd, config.mlp_size, config.head_size
    queries, keys = config.n_head * head, config.kv_heads * head
    norm = width * (2 if config.norm == "layernorm" and config.bias else 1)
    attention = width * (queries + 2 * keys) + queries * width
    attention += (queries + 2 * keys) * config.qkv_bias + width * config.bias + 2 * head * config.qk_norm
    inner = 2 if config.activation == "swiglu" else 1  # matrices that lead into the MLP
    feed_forward = (inner + 1) * width * mlp + (inner * mlp + width) * config.bias
    rows = config.vocab_size * (1 if config.tie_embeddings else 2)
    rows += config.block_size if config.positions == "learned" else 0
    return rows * width + config.n_layer * (attention + feed_forward + 2 * norm) + norm


def check_fits(config: GPTConfig, dtype: torch.dtype | None = None) -> None:
    """Raise UserError, with the estimate and the limit, where the weights alone exceed the machine's memory."""
    dtype = dtype or torch.get_default_dtype()
    what = (
        f"a model of n_layer {config.n_layer:,}, n_embd {config.n_embd:,}, vocab_size {config.vocab_size:,} and "
        f"block_size {config.block_size:,} in {str(dtype).removeprefix('torch.')}"
    )
    needed = parameter_count(config) * dtype.itemsize + config.n_layer * BLOCK_OBJECTS
    sizes.check_fits(what, needed, remedy="choose smaller sizes")


def activation_bytes(config: GPTConfig, *, checkpointing: bool, itemsize: int = 4) -> int:
    """Roughly what a token keeps for the backward pass, in bytes.

    In each block: the two norms' inputs and outputs, queries, keys and values, as they are made and as attention takes
    them, what attention gives, and the sides of the MLP's nonlinearity. Attention itself keeps no scores. With
    activation checkpointing it is what goes into each block, and one block's share of the rest.
    """
    sides = 4 if config.activation == "swiglu" else 2
    per_block = 10 * config.n_embd + sides * config.mlp_size
    numbers = config.n_layer * config.n_embd + per_block if checkpointing else config.n_layer * per_block
    return numbers * itemsize
