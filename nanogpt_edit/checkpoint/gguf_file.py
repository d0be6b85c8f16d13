"""A GGUF file: its metadata at once, its tensors one by one as float32.

The layout is that of version 3 (ggml's docs/gguf.md): magic, version, counts, entries of metadata, descriptions of
tensors, and the tensors, aligned. What it says of itself is believed as far as the file is long: nothing is made as
large as a number claims before that many bytes are found behind it. Quantised tensors are dequantised by the `gguf`
package of llama.cpp's authors; its reader is not used, for it makes several arrays of each token's name (12 seconds for
SmolLM2 where this one takes a tenth of one) and checks no length.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanogpt_edit.checkpoint.tensors import Entry
from nanogpt_edit.common.errors import UserError, reason_of, visible

MAGIC, VERSION = b"GGUF", 3
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Kinds of metadata and what `struct` calls them."""
MOST_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
CHUNK = 2**18  # numbers dequantised at a time: what they take on the way stays in the processor's cache

Value = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]
"""What an entry of the metadata holds."""


class Damaged(Exception):
    """What is wrong with a file, for a sentence that names the file."""


@dataclass(frozen=True)
class Described:
    """A tensor as its description has it."""

    shape: tuple[int, ...]
    """Slowest dimension first, as everywhere but in the file."""
    type_name: str
    type_number: int
    offset: int
    """From the beginning of the file, in bytes."""
    size: int
    """In bytes."""


class GGUFFile:
    """An opened file. `entries` and `read` make it `Tensors`."""

    def __init__(self, path: Path) -> None:
        """Read metadata and descriptions. Raises UserError for a file that is cut off, damaged, of another version or
        byte order, or that holds a tensor of a type which cannot be dequantised."""
        self.path = path
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                self.metadata, self.described = _read(_Cursor(mapped))
        except Damaged as problem:
            raise UserError(f"{path}: {problem}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a GGUF file ({reason_of(error)}).") from None
        self.entries: dict[str, Entry] = {
            name: Entry(shape=tensor.shape, dtype=torch.float32, file=path) for name, tensor in self.described.items()
        }

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor, float32."""
        tensor = self.described[name]
        values = np.empty(math.prod(tensor.shape), dtype=np.float32)
        block, block_size = _block(tensor.type_number)
        step = max(CHUNK // block, 1) * block
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            for start in range(0, len(values), step):
                part = values[start : start + step]
                stored = file.read(len(part) // block * block_size)
                if len(stored) != len(part) // block * block_size:
                    raise UserError(f"{self.path}: the file was cut off while it was read. Fetch it again.")
                part[:] = _dequantise(stored, tensor.type_number)
        return torch.from_numpy(values.reshape(tensor.shape))


def _read(cursor: _Cursor) -> tuple[dict[str, Value], dict[str, Described]]:
    magic, version = cursor.take(4), cursor.number("I")
    if magic != MAGIC:
        raise Damaged(f"not a GGUF file (it begins with {magic!r}).")
    if version == int.from_bytes(VERSION.to_bytes(4, "little"), "big"):
        raise Damaged("a GGUF file in big-endian order, which is not read; convert the model again on this machine.")
    if version != VERSION:
        raise Damaged(f"version {version} of GGUF is not read, only {VERSION}; convert the model again.")
    tensors, entries = cursor.count("Q", smallest=24), cursor.count("Q", smallest=13)
    metadata: dict[str, Value] = {}
    for _ in range(entries):
        key = cursor.text("the name of an entry")
        if key in metadata:
            raise Damaged(f'"{key}" is in the metadata twice; the file is damaged.')
        metadata[key] = cursor.value(key)
    headers = [_header(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise Damaged(f'"general.alignment" must be a power of two, found {alignment!r}; the file is damaged.')
    start = -(-cursor.position // alignment) * alignment
    return metadata, dict(_described(headers, start, cursor.end))


@dataclass(frozen=True)
class _Header:
    """A tensor's description as it stands in the file."""

    name: str
    dimensions: tuple[int, ...]
    type_number: int
    offset: int


def _header(cursor: _Cursor) -> _Header:
    name, count = cursor.text("the name of a tensor"), cursor.number("I")
    if not 1 <= count <= MOST_DIMENSIONS:
        raise Damaged(f"{name} has {count:,} dimensions, where 1 to {MOST_DIMENSIONS} are possible; it is damaged.")
    dimensions = tuple(cursor.number("Q") for _ in range(count))
    return _Header(name, dimensions, type_number=cursor.number("I"), offset=cursor.number("Q"))


def _described(headers: list[_Header], start: int, end: int) -> Iterator[tuple[str, Described]]:
    """Names and places, checked: each once, each within the file and behind the one before."""
    seen: set[str] = set()
    taken = start
    for header in sorted(headers, key=lambda header: header.offset):
        name, offset = header.name, start + header.offset
        if name in seen:
            raise Damaged(f"{name} is in the file twice; it is damaged.")
        seen.add(name)
        size = _size(header)
        if offset < taken:
            raise Damaged(f"{name} lies on another tensor; the file is damaged.")
        if offset + size > end:
            raise Damaged(f"cut off: {name} ends at byte {offset + size:,}, the file at {end:,}. Fetch it again.")
        taken = offset + size
        yield (
            name,
            Described(
                shape=header.dimensions[::-1],
                type_name=_type_name(header.type_number),
                type_number=header.type_number,
                offset=offset,
                size=size,
            ),
        )


def _size(header: _Header) -> int:
    """Bytes of a tensor. Raises Damaged for a type that is not known, or does not fit the first dimension."""
    if not _known(header.type_number):
        raise Damaged(
            f"{header.name} is of type {_type_name(header.type_number)}, which cannot be dequantised; convert the "
            "model to another, F16 or Q8_0 for example."
        )
    block, block_size = _block(header.type_number)
    if 0 in header.dimensions or header.dimensions[0] % block:
        raise Damaged(
            f"{header.name} has dimensions {header.dimensions}, of which {_type_name(header.type_number)}, in blocks "
            f"of {block}, cannot be; the file is damaged."
        )
    return math.prod(header.dimensions) // block * block_size


class _Cursor:
    """Reads values one behind another, and nothing that is not there."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position, self.end = data, 0, len(data)

    def take(self, count: int) -> bytes:
        if count > self.end - self.position:
            raise Damaged(f"cut off or damaged: {count:,} bytes are said to follow byte {self.position:,}, but the "
                          f"file has {self.end:,}. Fetch it again.")  # fmt: skip
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, code: str) -> int:
        """One whole number, little-endian, as `struct` calls it."""
        value: int = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return value

    def count(self, code: str, *, smallest: int) -> int:
        """How many things follow that take `smallest` bytes each, or more."""
        count = self.number(code)
        if count > (self.end - self.position) // smallest:
            raise Damaged(
                f"cut off or damaged: {count:,} things are said to follow byte {self.position:,}, for which the file "
                f"is too short ({self.end:,} bytes). Fetch it again."
            )
        return count

    def text(self, what: str) -> str:
        stored = self.take(self.number("Q"))
        try:
            return stored.decode()
        except UnicodeDecodeError as error:
            raise Damaged(f"{what} is not UTF-8 text ({error}); the file is damaged.") from None

    def value(self, key: str) -> Value:
        kind = self.number("I")
        if kind == STRING:
            return self.text(f'"{key}"')
        if kind == ARRAY:
            return self.array(key)
        return self.scalars(key, kind, 1)[0]

    def array(self, key: str) -> list[int] | list[float] | list[bool] | list[str]:
        kind = self.number("I")
        if kind == STRING:
            what = f'"{key}"'
            return [self.text(what) for _ in range(self.count("Q", smallest=8))]
        return self.scalars(key, kind, self.count("Q", smallest=1))

    def scalars(self, key: str, kind: int, count: int) -> list[int] | list[float] | list[bool]:
        code = SCALARS.get(kind)
        if code is None:
            raise Damaged(f'"{visible(key)}" is of kind {kind} in the metadata, which GGUF has not; it is damaged.')
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"))))


@cache
def _known(type_number: int) -> bool:
    """Whether the `gguf` package can dequantise this type."""
    try:
        _dequantise(bytes(_block(type_number)[1]), type_number)
    except (ValueError, NotImplementedError):
        return False
    return True


@cache
def _block(type_number: int) -> tuple[int, int]:
    """Numbers and bytes of a block. Raises ValueError for a type that is none."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(type_number)]
    return block, size


def _type_name(type_number: int) -> str:
    from gguf.constants import GGMLQuantizationType

    try:
        return GGMLQuantizationType(type_number).name
    except ValueError:
        return str(type_number)


def _dequantise(stored: bytes, type_number: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    row = np.frombuffer(stored, dtype=np.uint8)[None]  # of one row, which is done at once
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]] = dequantize(row, GGMLQuantizationType(type_number))
    return values[0]
