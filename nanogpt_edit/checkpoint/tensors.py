"""Tensors on the disk, read one at a time: safetensors files, or the dictionary of an opened ckpt.pt. And their hash.

A safetensors file is mapped into memory, and the pages read so far count as ours for as long as it is open. It is
therefore opened anew for each tensor: loading peaks at the model plus its largest tensor, not at twice the model.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanogpt_edit.common.errors import UserError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Entry:
    """What a file says of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None for a format that is no plain float (quantised weights, sparse ones, none at all)."""
    file: Path


class Tensors(Protocol):
    """Named tensors: their entries at once, their numbers one by one."""

    @property
    def entries(self) -> Mapping[str, Entry]: ...

    def read(self, name: str) -> Tensor: ...


class SafetensorsFiles:
    """The tensors of one or several safetensors files."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Read the headers. Raises UserError for a file that is missing, cut off, or no safetensors file."""
        self.entries: dict[str, Entry] = {}
        for file in files:
            if not file.is_file():
                raise UserError(f"{file}: no such file, though the model's index lists it. Fetch the file again.")
            try:
                with safe_open(file, framework="pt") as opened:
                    names = opened.keys()
                    for name in names:
                        header = opened.get_slice(name)
                        shape, dtype = tuple(header.get_shape()), DTYPES.get(header.get_dtype())
                        self.entries[name] = Entry(shape=shape, dtype=dtype, file=file)
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{file}: damaged or cut off, not a whole safetensors file ({error}). Fetch or save it again."
                ) from None

    def read(self, name: str) -> Tensor:
        with safe_open(self.entries[name].file, framework="pt") as opened:
            return opened.get_tensor(name)


class TensorDict:
    """Tensors that are open already (a memory-mapped ckpt.pt)."""

    def __init__(self, tensors: Mapping[str, Tensor], file: Path) -> None:
        self.tensors = tensors
        self.entries: dict[str, Entry] = {
            name: Entry(shape=tuple(tensor.shape), dtype=tensor.dtype if _plain(tensor) else None, file=file)
            for name, tensor in tensors.items()
        }

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def _plain(tensor: Tensor) -> bool:
    return tensor.dtype in DTYPES.values() and tensor.layout is torch.strided and tensor.device.type != "meta"


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 (hex) over one tensor's dtype, shape and bytes."""
    digest = hashlib.sha256()
    add_tensor(digest, tensor)
    return digest.hexdigest()


def add_tensor(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Add a tensor's dtype, shape and bytes to a hash."""
    shape = struct.pack(f"<{tensor.dim()}q", *tensor.shape)
    digest.update(f"{tensor.dtype} {tensor.dim()} ".encode() + shape)
    digest.update(bytes_of(tensor))


def bytes_of(tensor: Tensor) -> memoryview:
    """The numbers of a tensor, row by row, whatever their order in memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
