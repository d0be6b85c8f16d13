"""A Hugging Face config.json of GPT-2, Llama, Qwen2 or Qwen3 <-> `GPTConfig`.

What the decoder does not have is refused by name, and what is written reads back as the config it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.config import Activation, GPTConfig
from nanogpt_edit.model.positions import RopeScaling

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

LARGEST_SIZE, LARGEST_NUMBER = 2**31, 1e30  # what lies beyond is a mistake

GPT2_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}


def config_from_json(raw: Mapping[str, object], file: Path) -> GPTConfig:
    """Read a Hugging Face config.json. Dropout is ignored.

    Raises UserError, naming `file`, for a missing key, an unknown architecture, or a feature the decoder has not.
    """
    keys = _Keys(raw, file)
    if raw.get("model_type") is None:
        raise UserError(
            f'the key "model_type" is missing; it says which of {_list(ARCHITECTURES)} this is.', place=f"{file}:"
        )
    model_type = keys.text("model_type")
    if model_type not in ARCHITECTURES:
        raise UserError(
            f'architecture "{model_type}" is not supported; supported are {_list(ARCHITECTURES)}.', place=f"{file}:"
        )
    if keys.nested("quantization_config") is not None:
        raise UserError(
            "the weights are quantised (quantization_config), which is not supported; use the model they were made "
            "from, in float32, bfloat16 or float16.",
            place=f"{file}:",
        )
    try:
        return terse(_gpt2_config(keys) if model_type == "gpt2" else _llama_config(keys, model_type))
    except UserError as error:
        raise error if error.place else error.at(f"{file}:") from None


def config_to_json(config: GPTConfig) -> dict[str, object]:
    """The config.json entries that describe the architecture, in the keys transformers 4 and 5 and vLLM read.

    Raises UserError for a mix of features that the named `model_type` cannot express.
    """
    if config.model_type not in ARCHITECTURES:
        raise UserError(f'model_type "{config.model_type}" is not supported; it is one of {_list(ARCHITECTURES)}.')
    written = _gpt2_json(config) if config.model_type == "gpt2" else _llama_json(config)
    written = {"model_type": config.model_type, "architectures": [ARCHITECTURES[config.model_type]], **written}
    understood = config_from_json(written, Path("config.json"))
    for field, value in vars(_explicit(config)).items():
        if getattr(_explicit(understood), field) != value:
            raise UserError(
                f"{config.model_type} in Hugging Face's layout has no {field} = {value!r}; "
                f"set {field} to {getattr(understood, field)!r}, or choose another model_type."
            )
    return written


def _gpt2_config(keys: _Keys) -> GPTConfig:
    keys.expect("scale_attn_weights", True)
    keys.expect("scale_attn_by_inverse_layer_idx", False)
    keys.expect("add_cross_attention", False)
    activation = keys.text("activation_function", "gelu_new")
    if activation not in GPT2_ACTIVATIONS:
        raise UserError(
            f'activation "{activation}" is not supported; supported are {_list(GPT2_ACTIVATIONS)}.',
            place=f"{keys.file}:",
        )
    return GPTConfig(
        vocab_size=keys.integer("vocab_size"),
        block_size=keys.integer("n_positions"),
        n_layer=keys.integer("n_layer"),
        n_head=keys.integer("n_head"),
        n_embd=keys.integer("n_embd"),
        mlp_dim=keys.optional_integer("n_inner"),
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        activation=GPT2_ACTIVATIONS[activation],
        bias=keys.flag("bias", True),
        qkv_bias=keys.flag("bias", True),
        tie_embeddings=keys.flag("tie_word_embeddings", True),
    )


def _gpt2_json(config: GPTConfig) -> dict[str, object]:
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,  # what readers older than n_positions, and llama.cpp's converter, ask for
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.mlp_dim,
        "activation_function": next(name for name, ours in GPT2_ACTIVATIONS.items() if ours == config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        # Not a key of Hugging Face's: its GPT-2 always has biases, and where ours has none the file holds zeros.
        **({} if config.bias else {"bias": False}),
    }


def _llama_config(keys: _Keys, model_type: str) -> GPTConfig:
    keys.expect("hidden_act", "silu")
    keys.expect("use_sliding_window", False)
    # Qwen2 has biases on q, k, v alone and no flag for it; Llama's flag puts them on the output as well.
    bias = model_type == "llama" and keys.flag("attention_bias", False)
    if model_type != "qwen2":
        keys.expect("attention_bias", bias)
    if keys.flag("mlp_bias", False) != bias:
        raise UserError(
            f'"mlp_bias" is {not bias} and "attention_bias" is {bias}; only both or neither is supported.',
            place=f"{keys.file}:",
        )
    theta, scaling = _rope(keys)
    return GPTConfig(
        model_type=model_type,
        vocab_size=keys.integer("vocab_size"),
        block_size=keys.integer("max_position_embeddings"),
        n_layer=keys.integer("num_hidden_layers"),
        n_head=keys.integer("num_attention_heads"),
        n_embd=keys.integer("hidden_size"),
        n_kv_head=keys.optional_integer("num_key_value_heads"),
        head_dim=keys.integer("head_dim", 128) if model_type == "qwen3" else keys.optional_integer("head_dim"),
        mlp_dim=keys.integer("intermediate_size"),
        norm="rmsnorm",
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        activation="swiglu",
        positions="rope",
        rope_theta=theta,
        rope_scaling=scaling,
        bias=bias,
        qkv_bias=model_type == "qwen2" or bias,
        qk_norm=model_type == "qwen3",
        tie_embeddings=keys.flag("tie_word_embeddings", False),
    )


def _llama_json(config: GPTConfig) -> dict[str, object]:
    written: dict[str, object] = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
    }
    if config.model_type != "qwen2":
        written["attention_bias"] = config.bias
    if config.model_type == "llama":
        written["mlp_bias"] = config.bias
    if config.rope_scaling is not None:
        written["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_block_size,
        }
    return written


def _rope(keys: _Keys) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    nested = keys.nested("rope_parameters") or keys.nested("rope_scaling") or _Keys({}, keys.file)
    nested = nested.nested("full_attention") or nested
    theta = nested.number("rope_theta", keys.number("rope_theta", 10_000.0))
    for entries in (keys, nested):
        entries.expect("partial_rotary_factor", 1.0)
    kind = nested.text("rope_type", nested.text("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(
            f'rotary scaling "{kind}" is not supported; supported are default, llama3.', place=f"{keys.file}:"
        )
    return theta, RopeScaling(
        factor=nested.number("factor"),
        low_freq_factor=nested.number("low_freq_factor"),
        high_freq_factor=nested.number("high_freq_factor"),
        original_block_size=nested.integer("original_max_position_embeddings"),
    )


def terse(config: GPTConfig) -> GPTConfig:
    """The same model with None where the default says it, so that a config comes back from its file as it was."""
    return replace(
        config,
        n_kv_head=None if config.kv_heads == config.n_head else config.n_kv_head,
        head_dim=None if config.head_size * config.n_head == config.n_embd else config.head_dim,
        mlp_dim=None if config.mlp_size == 4 * config.n_embd else config.mlp_dim,
    )


def _explicit(config: GPTConfig) -> GPTConfig:
    """The same model with the None defaults filled in, and without dropout, which no file carries."""
    return replace(config, n_kv_head=config.kv_heads, head_dim=config.head_size, mlp_dim=config.mlp_size, dropout=0.0)


def _list(names: Mapping[str, object]) -> str:
    return ", ".join(names)


@dataclass(frozen=True)
class _Keys:
    """The entries of a config.json, with errors that name the file and the key."""

    raw: Mapping[str, object]
    file: Path

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < LARGEST_SIZE:
            raise UserError(
                f'"{key}" must be a whole number from 1 to {LARGEST_SIZE:,}, found {value!r}.', place=f"{self.file}:"
            )
        return value

    def optional_integer(self, key: str) -> int | None:
        return None if self.raw.get(key) is None else self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < LARGEST_NUMBER:
            raise UserError(f'"{key}" must be a finite number, found {value!r}.', place=f"{self.file}:")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise UserError(f'"{key}" must be true or false, found {value!r}.', place=f"{self.file}:")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise UserError(f'"{key}" must be a string, found {value!r}.', place=f"{self.file}:")
        return value

    def nested(self, key: str) -> _Keys | None:
        value = self.raw.get(key)
        return _Keys(value, self.file) if isinstance(value, Mapping) else None

    def expect(self, key: str, value: object) -> None:
        """Refuse a feature the decoder has not."""
        found = self._get(key, value)
        if found != value:
            raise UserError(f'"{key}": {found!r} is not supported; only {value!r} is.', place=f"{self.file}:")

    def _get(self, key: str, default: object) -> object:
        found = self.raw.get(key)
        if found is None and default is None:
            raise UserError(
                f'the key "{key}" is missing; a {self.raw.get("model_type")} config has it.', place=f"{self.file}:"
            )
        return default if found is None else found
