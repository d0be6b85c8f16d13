"""nanoGPT's ckpt.pt: `{"model": state dict, "model_args": {...}, "iter_num": ...}`, read without running any code.

torch.load with weights_only=True builds tensors, numbers, strings and containers and refuses everything else, so a
pickle that carries code is turned down before any of it runs.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_edit.checkpoint import weight_names
from nanogpt_edit.checkpoint.tensors import TensorDict
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.config import GPTConfig

SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


@dataclass(frozen=True)
class NanoGPT:
    """An opened checkpoint."""

    config: GPTConfig
    tensors: TensorDict
    """Hugging Face's GPT-2 names, but (out, in)."""
    note: str
    """One sentence on what was converted."""


def read(file: Path) -> NanoGPT:
    """Open `file`. Raises UserError when it carries code, is damaged, or is no nanoGPT checkpoint."""
    opened = _unpickle(file)
    loaded = opened if isinstance(opened, Mapping) else {}
    weights, args = loaded.get("model"), loaded.get("model_args")
    if not isinstance(weights, Mapping) or not isinstance(args, Mapping):
        raise UserError(f'{file}: not a nanoGPT checkpoint; "model" and "model_args" are expected in it.')
    strange = [name for name, tensor in weights.items() if not isinstance(name, str) or not isinstance(tensor, Tensor)]
    if strange:
        raise UserError(f'{file}: "model" must hold tensors by their names; the entry {strange[0]!r} is none.')
    config = _config(args, file)
    bias, wrapped = config.bias, weight_names.wrappers(weights)
    stripped = f", {' and '.join(wrapped)} taken off the names" if wrapped else ""
    biases = "" if bias else ", without biases"
    note = (
        f"converted from the nanoGPT checkpoint {file.name} (iteration {loaded.get('iter_num', '?')}): GPT-2 layout "
        f"with the exact GELU{biases}, {config.n_layer} layers of width {config.n_embd}, "
        f"{config.vocab_size} vocabulary rows{stripped}"
    )
    return NanoGPT(config=config, tensors=TensorDict(weights, file), note=note)


def stored_as(name: str, config: GPTConfig) -> weight_names.Stored:
    """Where a weight lies in such a checkpoint: as in Hugging Face's GPT-2, but (out, in)."""
    return replace(weight_names.stored_as(name, config), transposed=False)


def _config(args: Mapping[object, object], file: Path) -> GPTConfig:
    def size(key: str) -> int:
        value = args.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f'{file}: "model_args" has no whole number "{key}"; found {value!r}.')
        return value

    n_layer, n_head, n_embd, block_size, vocab_size = map(size, SIZES)
    bias = bool(args.get("bias", True))
    try:
        return GPTConfig(
            vocab_size, block_size, n_layer, n_head, n_embd, bias=bias, qkv_bias=bias, activation="gelu"
        )  # nanoGPT's GELU is the exact one
    except UserError as error:
        raise UserError(f'{file}: "model_args": {error}') from None


def _unpickle(file: Path) -> object:
    for mapped in (True, False):  # files older than torch 1.6 cannot be mapped
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the pickle's protocol, on the way to refusing it
                return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError:
            raise UserError(
                f"{file}: holds more than tensors and numbers (a pickle that would run code); refused, nothing was run."
            ) from None
        except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
            problem = error
    reason = " ".join(str(problem).split()).partition(". ")[0]
    raise UserError(f"{file}: damaged, or not written by torch.save ({reason[:160]}).")
