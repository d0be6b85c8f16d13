"""What GGUF calls weights and sizes of GPT-2, Llama, Qwen2 and Qwen3: both ways, for what is read and what is written.

A GGUF file holds every matrix as we do, (out, in), though it lists dimensions the other way round. Two things differ.
Llama's queries and keys stand in the order of Meta's own rotary positions, where a pair is two neighbouring rows of a
head (ours, as Hugging Face's, are E/2 apart); Qwen's do not. And a head tied to the embedding is not in the file.

llama.cpp runs every GPT-2 with GELU. One with ReLU is written so that this is the same: GELU(c x) / c is ReLU(x) up to
0.17 / c near 0, so what comes before it is stored times c, and the matrix behind it divided by c. A reader that obeys
the entry `hidden_activation` is right, too, for ReLU(c x) / c is ReLU(x). c is a power of two, which rounds nothing;
with 1,024 logits differ by little more than what float32 rounds anyway, and all products stay within float16, in which
some graphics cards make them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanogpt_edit.checkpoint.weight_names import Stored
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.positions import rotary_frequencies, stretch_frequencies

GPT2_MODULES = {
    "embed": ("token_embd",),
    "positions": ("position_embd",),
    "norm": ("output_norm",),
    "norm1": ("attn_norm",),
    "attn.qkv": ("attn_qkv",),
    "attn.out": ("attn_output",),
    "norm2": ("ffn_norm",),
    "mlp.up": ("ffn_up",),
    "mlp.down": ("ffn_down",),
}
LLAMA_MODULES = {
    "embed": ("token_embd",),
    "norm": ("output_norm",),
    "norm1": ("attn_norm",),
    "attn.qkv": ("attn_q", "attn_k", "attn_v"),
    "attn.out": ("attn_output",),
    "attn.q_norm": ("attn_q_norm",),
    "attn.k_norm": ("attn_k_norm",),
    "norm2": ("ffn_norm",),
    "mlp.gate": ("ffn_gate",),
    "mlp.up": ("ffn_up",),
    "mlp.down": ("ffn_down",),
}
EMBEDDING, POSITIONS, HEAD = "token_embd.weight", "position_embd.weight", "output.weight"
STRETCHING = "rope_freqs.weight"
"""By what Llama 3's rotary frequencies are divided, (E/2,)."""

# Entries of the metadata that give a size or a number, behind "llama." or whatever the architecture is called.
SIZES = {
    "block_size": "context_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_embd": "embedding_length",
    "mlp_size": "feed_forward_length",
}
ROTARY_SIZES = {
    "kv_heads": ("attention.head_count_kv",),
    "head_size": ("attention.key_length", "attention.value_length", "rope.dimension_count"),
}
LAYERNORM_EPS, RMSNORM_EPS = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
ROPE_THETA = "rope.freq_base"
ACTIVATION = "hidden_activation"
"""Of GPT-2, where it is another than tanh-GELU: as Hugging Face calls it."""
RELU_FACTOR = 1024.0
RELU_FACTORS = {"mlp.up.weight": RELU_FACTOR, "mlp.up.bias": RELU_FACTOR, "mlp.down.weight": 1 / RELU_FACTOR}


def stored_as(name: str, config: GPTConfig) -> Stored:
    """`blocks.3.attn.qkv.weight` -> the tensors that hold it.

    >>> stored_as("blocks.3.mlp.up.weight", GPTConfig(419, 128, 4, 4, 128)).names
    ('blk.3.ffn_up.weight',)
    """
    if name == "head.weight":
        return Stored(names=(HEAD,))
    modules = GPT2_MODULES if config.model_type == "gpt2" else LLAMA_MODULES
    path, kind = name.rsplit(".", 1)
    block = ""
    if path.startswith("blocks."):
        _, index, path = path.split(".", 2)
        block = f"blk.{index}."
    parts = modules[path]
    query, kv = config.n_head * config.head_size, config.kv_heads * config.head_size
    return Stored(
        names=tuple(f"{block}{part}.{kind}" for part in parts),
        rows=(query, kv, kv) if len(parts) == 3 else (),
        paired=(config.n_head, config.kv_heads, 0) if config.model_type == "llama" and len(parts) == 3 else (),
        factor=RELU_FACTORS.get(f"{path}.{kind}", 1.0) if config.activation == "relu" else 1.0,
    )


def may_be_rounded(name: str, config: GPTConfig) -> bool:
    """Whether a tensor of the file may have fewer bits than float32: a matrix, but not the positions, for llama.cpp,
    and not one made small (`RELU_FACTORS`), where float16, in which Q8_0 has its scales, has few digits left."""
    vector = name.endswith(("bias", "norm.weight"))
    small = config.activation == "relu" and ".ffn_down." in name
    return not (vector or small or name in (POSITIONS, STRETCHING))


def metadata_of(config: GPTConfig) -> dict[str, int | float | str]:
    """The entries that describe the architecture, all but the vocabulary's and `STRETCHING`, which is a tensor."""
    entries: dict[str, int | float | str] = {key: getattr(config, field) for field, key in SIZES.items()}
    if config.model_type == "gpt2":
        entries[LAYERNORM_EPS] = config.norm_eps
        if config.activation != "gelu_tanh":
            entries[ACTIVATION] = config.activation
    else:
        entries |= {key: getattr(config, field) for field, keys in ROTARY_SIZES.items() for key in keys}
        entries |= {RMSNORM_EPS: config.norm_eps, ROPE_THETA: config.rope_theta}
    return {f"{config.model_type}.{key}": value for key, value in entries.items()}


def stretching(config: GPTConfig) -> Tensor:
    """(E/2,): by what Llama 3's stretching divides each rotary frequency, the tensor `STRETCHING` of a file."""
    frequencies = rotary_frequencies(config.head_size, config.rope_theta)
    if config.rope_scaling is None:
        return torch.ones_like(frequencies)
    return frequencies / stretch_frequencies(frequencies, config.rope_scaling)
