"""What distinguishes one model from another: sizes, and the switches between GPT-2 and the Llama family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nanogpt_edit.common.errors import UserError, at_least
from nanogpt_edit.model.positions import RopeScaling

Activation = Literal["gelu_tanh", "gelu", "relu", "swiglu"]


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
        at_least(1, self, "vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head", "head_dim", "mlp_dim")
        if self.head_dim is None and self.n_embd % self.n_head:
            raise UserError(
                f"{self.n_embd} is not a multiple of n_head {self.n_head}; change one of them.", field="n_embd"
            )
        if self.n_head % self.kv_heads:
            raise UserError(
                f"{self.n_head} is not a multiple of n_kv_head {self.kv_heads}; change one of them.", field="n_head"
            )
        if self.positions == "rope" and self.head_size % 2:
            raise UserError(f"a head of width {self.head_size} cannot be turned by rotary positions; make it even.")

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def mlp_size(self) -> int:
        return self.mlp_dim or 4 * self.n_embd
