"""nanoGPT's ckpt.pt: `{"model": state dict, "model_args": {...}, "iter_num": ...}`, read without running any code.

torch.load with weights_only=True builds tensors, numbers, strings and containers and refuses everything else, so a
pickle that carries code is turned down before any of it runs.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_edit.errors import UserError
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.tensors import TensorDict

COMPILED_PREFIX = "_orig_mod."  # what torch.compile puts before every name
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
    for key in SIZES:
        if not isinstance(args.get(key), int):
            raise UserError(f'{file}: "model_args" has no whole number "{key}"; found {args.get(key)!r}.')
    bias = bool(args.get("bias", True))
    config = GPTConfig(
        **{key: args[key] for key in SIZES}, bias=bias, qkv_bias=bias, activation="gelu"
    )  # nanoGPT's GELU is the exact one
    tensors = {
        name.removeprefix(COMPILED_PREFIX): tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)
    }
    stripped = f', "{COMPILED_PREFIX}" taken off the names' if any(map(_compiled, weights)) else ""
    biases = "" if bias else ", without biases"
    note = (
        f"converted from the nanoGPT checkpoint {file.name} (iteration {loaded.get('iter_num', '?')}): GPT-2 layout "
        f"with the exact GELU{biases}, {config.n_layer} layers of width {config.n_embd}, "
        f"{config.vocab_size} vocabulary rows{stripped}"
    )
    return NanoGPT(config=config, tensors=TensorDict(tensors, file), note=note)


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


def _compiled(name: str) -> bool:
    return name.startswith(COMPILED_PREFIX)
