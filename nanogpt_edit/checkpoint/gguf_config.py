"""The sizes and switches of a model from a GGUF file: `GPTConfig` from its metadata and the names of its tensors.

What the decoder does not have is refused by name. Three things are in no entry: whether the head is tied (there is no
`output.weight`), whether Llama has biases (their tensors are there), and Llama 3's stretching of the rotary
frequencies, which is a tensor of what they are divided by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nanogpt_edit.checkpoint.config_json import ARCHITECTURES, GPT2_ACTIVATIONS, terse
from nanogpt_edit.checkpoint.gguf_file import GGUFFile, Value
from nanogpt_edit.checkpoint.gguf_metadata import Metadata
from nanogpt_edit.checkpoint.gguf_names import (
    ACTIVATION,
    EMBEDDING,
    HEAD,
    LAYERNORM_EPS,
    RMSNORM_EPS,
    ROPE_THETA,
    ROTARY_SIZES,
    SIZES,
    STRETCHING,
    stretching,
)
from nanogpt_edit.common.errors import UserError, visible
from nanogpt_edit.model.config import Activation, GPTConfig
from nanogpt_edit.model.positions import RopeScaling, rotary_frequencies

# What another value would change in the calculation, by what it is here where nothing is said.
EXPECTED: Mapping[str, Value] = {
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.sliding_window": 0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
    "expert_count": 0,
    "pooling_type": 0,
    "rope.scale_linear": 1.0,
}
LLAMA_3 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_block_size=8192)
CLOSE = 1e-4  # of factors that were written as float32


def config_from_gguf(file: GGUFFile) -> GPTConfig:
    """Raises UserError, naming the file, for an entry that is missing or wrong, an unknown architecture, or a feature
    the decoder has not."""
    metadata = Metadata(file.metadata, file.path)
    architecture = metadata.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(
            f'architecture "{visible(architecture)}" is not supported; supported are {", ".join(ARCHITECTURES)}.',
            place=f"{file.path}:",
        )
    for key, value in EXPECTED.items():
        metadata.expect(f"{architecture}.{key}", value)
    try:
        config = terse(_gpt2(metadata, file) if architecture == "gpt2" else _llama(metadata, file, architecture))
        return replace(config, rope_scaling=_rope_scaling(config, file))
    except UserError as error:
        raise error if error.place else error.at(f"{file.path}:") from None


def _gpt2(metadata: Metadata, file: GGUFFile) -> GPTConfig:
    return GPTConfig(
        vocab_size=_vocabulary_rows(metadata, file, "gpt2"),
        block_size=metadata.integer(f"gpt2.{SIZES['block_size']}"),
        n_layer=metadata.integer(f"gpt2.{SIZES['n_layer']}"),
        n_head=metadata.integer(f"gpt2.{SIZES['n_head']}"),
        n_embd=metadata.integer(f"gpt2.{SIZES['n_embd']}"),
        mlp_dim=metadata.integer(f"gpt2.{SIZES['mlp_size']}"),
        norm_eps=metadata.number(f"gpt2.{LAYERNORM_EPS}"),
        activation=_activation(metadata),
        tie_embeddings=HEAD not in file.entries,
    )


def _activation(metadata: Metadata) -> Activation:
    key = f"gpt2.{ACTIVATION}"
    named = metadata.text(key, "gelu_new")
    if named not in GPT2_ACTIVATIONS:
        raise metadata.wrong(key, f"must be one of {', '.join(GPT2_ACTIVATIONS)}", named)
    return GPT2_ACTIVATIONS[named]


def _llama(metadata: Metadata, file: GGUFFile, name: str) -> GPTConfig:
    metadata.expect(f"{name}.rope.scaling.type", "none", "linear")
    metadata.expect(f"{name}.rope.scaling.factor", 0.0, 1.0)
    bias = name == "llama" and "blk.0.ffn_up.bias" in file.entries
    width, heads = metadata.integer(f"{name}.{SIZES['n_embd']}"), metadata.integer(f"{name}.{SIZES['n_head']}")
    (kv_heads,) = ROTARY_SIZES["kv_heads"]
    return GPTConfig(
        vocab_size=_vocabulary_rows(metadata, file, name),
        block_size=metadata.integer(f"{name}.{SIZES['block_size']}"),
        n_layer=metadata.integer(f"{name}.{SIZES['n_layer']}"),
        n_head=heads,
        n_embd=width,
        model_type=name,
        n_kv_head=metadata.integer(f"{name}.{kv_heads}", heads),
        head_dim=_head_size(metadata, name, default=max(width // heads, 1)),
        mlp_dim=metadata.integer(f"{name}.{SIZES['mlp_size']}"),
        norm="rmsnorm",
        norm_eps=metadata.number(f"{name}.{RMSNORM_EPS}"),
        activation="swiglu",
        positions="rope",
        rope_theta=metadata.number(f"{name}.{ROPE_THETA}", 10_000.0),
        bias=bias,
        qkv_bias=name == "qwen2" or bias,
        qk_norm=name == "qwen3",
        tie_embeddings=HEAD not in file.entries,
    )


def _head_size(metadata: Metadata, name: str, *, default: int) -> int:
    """Of queries, keys and values alike, turned whole by the rotary positions."""
    keys = [f"{name}.{key}" for key in ROTARY_SIZES["head_size"]]
    size = metadata.integer(keys[0], default)
    for key in keys:
        metadata.expect(key, size)
    return size


def _vocabulary_rows(metadata: Metadata, file: GGUFFile, architecture: str) -> int:
    embedding = file.entries.get(EMBEDDING)
    if embedding is None:
        raise UserError(f"the file lacks {EMBEDDING}; it holds no whole model.", place=f"{file.path}:")
    metadata.expect(f"{architecture}.vocab_size", embedding.shape[0])
    return embedding.shape[0]


def _rope_scaling(config: GPTConfig, file: GGUFFile) -> RopeScaling | None:
    """How Llama 3 stretches the frequencies, found from what the file divides them by."""
    if config.model_type != "llama" or STRETCHING not in file.entries:
        return None
    shape = file.entries[STRETCHING].shape
    if shape != (config.head_size // 2,):
        raise UserError(f"{STRETCHING} has shape {shape}, where a head of {config.head_size} has half as many numbers.")
    factors = file.read(STRETCHING)
    for scaling in (None, _with_factor(LLAMA_3, factors), _solved(config, factors)):
        if torch.allclose(stretching(replace(config, rope_scaling=scaling)), factors, rtol=CLOSE):
            return scaling
    raise UserError(f"{STRETCHING} stretches the rotary frequencies in another way than Llama 3's, the only one known.")


def _with_factor(scaling: RopeScaling, factors: Tensor) -> RopeScaling:
    """`scaling` with the factor of the slowest frequency, which is stretched whole."""
    return replace(scaling, factor=_rounded(float(factors[-1])))


def _solved(config: GPTConfig, factors: Tensor) -> RopeScaling | None:
    """The stretching that gives these factors, from two of the frequencies that are stretched in part.

    Only two of the three numbers beside the factor matter (the context and both bounds can be scaled together); the
    lower bound is taken to be 1, as in every Llama 3. None where fewer than two frequencies lie between the bounds.
    """
    factor = _rounded(float(factors[-1]))
    between = ((factors > 1 + CLOSE) & (factors < factor * (1 - CLOSE))).nonzero().flatten()
    if len(between) < 2 or factor <= 1:
        return None
    # 1 / factors = smooth + (1 - smooth) / factor, and smooth = (context · f / 2π - 1) / (high - 1)
    smooth = ((1 / factors.double() - 1 / factor) / (1 - 1 / factor))[between[[0, -1]]]
    frequency = rotary_frequencies(config.head_size, config.rope_theta).double()[between[[0, -1]]]
    slope = float((smooth[0] - smooth[1]) / (frequency[0] - frequency[1]))
    offset = float(smooth[0]) - slope * float(frequency[0])
    if slope <= 0 or offset >= 0:
        return None
    high = 1 - 1 / offset
    return RopeScaling(factor, 1.0, _rounded(high), round(2 * math.pi * slope * (high - 1)))


def _rounded(value: float) -> float:
    """31.999998 -> 32.0"""
    return float(f"{value:.5g}")
