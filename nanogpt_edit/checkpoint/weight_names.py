"""What Hugging Face calls the weights of GPT-2, Llama, Qwen2 and Qwen3. (What it calls the sizes: `config_json.py`.)

Inside, a weight is (out, in) and q, k, v are one matrix. GPT-2's files keep most matrices the other way round (their
Conv1D), and the Llama family keeps q, k and v apart. `stored_as` says, for each of our weights, which tensors of the
file make it up; nothing else in the package knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from nanogpt_edit.model.config import GPTConfig

GPT2_MODULES = {
    "embed": ("wte",),
    "positions": ("wpe",),
    "norm": ("ln_f",),
    "norm1": ("ln_1",),
    "attn.qkv": ("attn.c_attn",),
    "attn.out": ("attn.c_proj",),
    "norm2": ("ln_2",),
    "mlp.up": ("mlp.c_fc",),
    "mlp.down": ("mlp.c_proj",),
}
LLAMA_MODULES = {
    "embed": ("embed_tokens",),
    "norm": ("norm",),
    "norm1": ("input_layernorm",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out": ("self_attn.o_proj",),
    "attn.q_norm": ("self_attn.q_norm",),
    "attn.k_norm": ("self_attn.k_norm",),
    "norm2": ("post_attention_layernorm",),
    "mlp.gate": ("mlp.gate_proj",),
    "mlp.up": ("mlp.up_proj",),
    "mlp.down": ("mlp.down_proj",),
}
CONV1D_MODULES = frozenset({"attn.qkv", "attn.out", "mlp.up", "mlp.down"})

# What others put before names, or between their parts: DistributedDataParallel, torch.compile, FSDP, activation
# checkpointing, TRL.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "pretrained_model")

# Parts of names that tell what a file is that is not, or not only, a language model: what that is, and the remedy.
FOREIGN = {
    "v_head": (
        "the value head of PPO training",
        "Save the language model alone (in TRL: model.pretrained_model.save_pretrained) and pass that directory.",
    ),
    "score": (
        "the head of a classifier or reward model",
        "Such a model writes no text; pass the language model it was made from.",
    ),
    "lora_A": (
        "the matrices of a LoRA adapter",
        "Merge them into their model (in PEFT: merge_and_unload, then save_pretrained) and pass that directory.",
    ),
}

# Tensors of older files that are no weights: the causal mask, the rotary frequencies.
NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Stored:
    """Where one of our weights lies in a file: these tensors, one below the other."""

    names: tuple[str, ...]
    rows: tuple[int, ...] = ()
    """How many of our rows each tensor holds; () when it is the only one and holds them all."""
    transposed: bool = False
    """The file holds (in, out)."""
    paired: tuple[int, ...] = ()
    """Into how many heads each tensor falls whose rotary pairs (row i and row i + E/2) the file keeps next to each
    other; 0 for a tensor without, () where none has any."""
    factor: float = 1.0
    """A power of two: the file holds our numbers times it."""

    def ours(self, index: int, tensor: Tensor) -> Tensor:
        """What the file holds as `names[index]`, in our order: (out, in), or (out,)."""
        heads = self.paired[index] if self.paired else 0
        if heads:
            pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])  # (heads, E/2, 2, in)
            return pairs.swapaxes(1, 2).reshape(tensor.shape)
        tensor = tensor if self.factor == 1 else tensor / self.factor
        return tensor.T if self.transposed else tensor

    def parts(self, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Our weight as the tensors of the file, each under its name: the way back of `ours`."""
        split = weight.split(self.rows or weight.shape[0])
        for index, (name, part) in enumerate(zip(self.names, split, strict=True)):
            heads = self.paired[index] if self.paired else 0
            if heads:
                halves = part.reshape(heads, 2, -1, *part.shape[1:])  # (heads, 2, E/2, in)
                part = halves.swapaxes(1, 2).reshape(part.shape)
            part = part if self.factor == 1 else part * self.factor
            yield name, part.T if self.transposed else part


Layout = Callable[[str, GPTConfig], Stored]
"""A way to store models: for each of our weights by its name, where it lies."""


def stored_as(name: str, config: GPTConfig) -> Stored:
    """`blocks.3.attn.qkv.weight` -> the tensors that hold it.

    >>> stored_as("blocks.3.mlp.up.weight", GPTConfig(419, 128, 4, 4, 128)).names
    ('transformer.h.3.mlp.c_fc.weight',)
    """
    if name == "head.weight":
        return Stored(names=("lm_head.weight",))
    gpt2 = config.model_type == "gpt2"
    prefix, block, modules = ("transformer.", "h", GPT2_MODULES) if gpt2 else ("model.", "layers", LLAMA_MODULES)
    path, kind = name.rsplit(".", 1)
    if path.startswith("blocks."):
        _, index, path = path.split(".", 2)
        prefix += f"{block}.{index}."
    parts = modules[path]
    query, kv = config.n_head * config.head_size, config.kv_heads * config.head_size
    return Stored(
        names=tuple(f"{prefix}{part}.{kind}" for part in parts),
        rows=(query, kv, kv) if len(parts) == 3 else (),
        transposed=gpt2 and kind == "weight" and path in CONV1D_MODULES,
    )


def without_prefix(name: str) -> str:
    """The name as files of the bare decoder have it: `module.transformer.wte.weight` -> `wte.weight`."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(parts[1:] if parts[0] in ("transformer", "model") else parts)


def wrappers(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `WRAPPERS` that occur in any of the names, in the order in which they first do."""
    parts = dict.fromkeys(part for name in names for part in name.split("."))
    return tuple(part for part in parts if part in WRAPPERS)
