"""Where a model runs ("auto", "cpu", "cuda", "cuda:1", …), with how many CPU threads, and in what precision."""

from __future__ import annotations

import torch

from nanogpt_edit.common import distributed
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.settings import Precision

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOST_THREADS = 512  # a number beyond any machine's ends in an abort of the thread library


def autocast(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """A context in which matrix products run in `precision` (auto: bfloat16 on a GPU that has it, else float32).

    Weights, their gradients and the optimizer stay in float32. Casts of the weights are not kept: they would be stale
    after an update, and without gradient where the first use was in sampling.
    """
    wanted = precision == "bfloat16"
    if precision == "auto":
        wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted, cache_enabled=False)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Is this a CPU with a unit for matrices of bfloat16 (Intel's AMX), for which `precision = "auto"` does not ask?"""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and asked is not None and bool(asked())


def product_dtype(tensor: torch.Tensor) -> torch.dtype:
    """What a matrix product of `tensor` is computed in: its own dtype, or what `autocast` makes of it."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def choose_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype itself, or the one called so ("bfloat16"). Raises UserError unless it is one that weights can have."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in WEIGHT_DTYPES:
        names = ", ".join(str(each).removeprefix("torch.") for each in WEIGHT_DTYPES)
        raise UserError(
            f"{str(dtype).removeprefix('torch.')} is none that weights can have; use {names}.", field="dtype"
        )
    return found


def choose_device(name: str = "auto", *, threads: int | None = None) -> torch.device:
    """The device called `name` (auto: a GPU when there is one), with `threads` CPU threads (None: torch's own choice).

    Raises UserError for a name torch does not know, a device this machine does not have, and fewer than one thread.
    """
    if threads is not None:
        check_threads(threads)
        torch.set_num_threads(threads)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = _usable(name)
    if device is None:
        found = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise UserError(f'device "{name}" cannot be used here; this machine has: {found}. Or say auto.')
    if device.index is not None and distributed.world_size() > 1:
        raise UserError(
            f'device "{name}" is one for {distributed.world_size()} processes; say {device.type}: each takes its own.'
        )
    return device


def _usable(name: str) -> torch.device | None:
    """The device, where a number can be put on it and read again (meta, say, holds none); else None.

    Torch says in three ways that it cannot: RuntimeError for a name it does not know, AssertionError where it was built
    without the device, NotImplementedError where an operator is missing there.
    """
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        return None
    return torch.device(name)


def check_threads(threads: int) -> None:
    """Raise UserError for a number of threads that no machine has."""
    if not 1 <= threads <= MOST_THREADS:
        raise UserError(f"is {threads}; it must be from 1 to {MOST_THREADS}.", field="threads")
