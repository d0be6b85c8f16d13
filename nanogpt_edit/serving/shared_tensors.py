"""Weights in memory that two processes see: what one changes in place is changed for the other.

The memory has no name in any folder (memfd_create(2)): the other process finds it among the open files of the first, in
/proc/PID/fd, and it is gone when both have let go of it.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes that a processor reads at once


@dataclass(frozen=True)
class Memory:
    """Where tensors lie: `Memory("/proc/41/fd/9", 0, 2_847_232)`."""

    file: str
    number: int
    """Counts the memories of a process: a file's name may come again."""
    size: int
    """Bytes."""

    def map(self) -> mmap.mmap:
        """Its bytes, for reading and writing. Raises OSError where it is gone."""
        with open(self.file, "r+b") as file:
            return mmap.mmap(file.fileno(), self.size)


@dataclass(frozen=True)
class Place:
    """A tensor in a memory: `Place(memory, 4096, torch.float32, (256, 4))`. Its offset is in bytes."""

    memory: Memory
    offset: int
    dtype: torch.dtype
    shape: torch.Size

    def tensor(self, mapped: mmap.mmap) -> Tensor:
        """It, without a copy; it keeps `mapped` alive."""
        flat = torch.frombuffer(mapped, dtype=self.dtype, count=self.shape.numel(), offset=self.offset)
        return flat.view(self.shape)


class SharedTensors:
    """The memories that this process has made. Objects are pickled with the places of the parameters that lie there."""

    def __init__(self) -> None:
        self._memories: tuple[
            tuple[int, weakref.ref[mmap.mmap], Memory], ...
        ] = ()  # address, whether it is there still
        self._made = 0

    @staticmethod
    def possible(device: torch.device) -> bool:
        """On Linux, for tensors that a CPU computes with, where a process may look at another of the same user's."""
        open_files = f"/proc/{os.getpid()}/fd"
        return device.type == "cpu" and hasattr(os, "memfd_create") and os.access(open_files, os.R_OK | os.X_OK)

    def take(self, model: nn.Module) -> None:
        """Move the parameters of `model` to memory that can be shared, but for those that lie in such.

        They stay the same objects. Nobody else may be at them meanwhile. Raises OSError where there is no memory.
        """
        moving = [each for each in model.parameters() if each.numel() and self.place_of(each) is None]
        if not moving:
            return
        offsets, size = [], 0
        for parameter in moving:
            offsets.append(size)
            size += -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
        memory, mapped = self._new_memory(size)
        for parameter, offset in zip(moving, offsets, strict=True):
            moved = Place(memory, offset, parameter.dtype, parameter.shape).tensor(mapped)
            moved.copy_(parameter.detach())
            parameter.data = moved

    def _new_memory(self, size: int) -> tuple[Memory, mmap.mmap]:
        """Memory of `size` bytes; it is gone when no tensor lies there any more."""
        file = os.memfd_create("nanogpt_edit")
        os.ftruncate(file, size)
        memory = Memory(f"/proc/{os.getpid()}/fd/{file}", self._made, size)
        mapped = mmap.mmap(file, size)
        weakref.finalize(mapped, os.close, file)
        address = torch.frombuffer(mapped, dtype=torch.uint8).data_ptr()
        there = tuple(each for each in self._memories if each[1]() is not None)
        self._memories, self._made = (*there, (address, weakref.ref(mapped), memory)), self._made + 1
        return memory, mapped

    def place_of(self, tensor: Tensor) -> Place | None:
        """Where a whole tensor lies; None: in memory of this process alone."""
        for address, mapped, memory in self._memories:
            offset = tensor.data_ptr() - address
            if 0 <= offset < memory.size and mapped() is not None and tensor.is_contiguous():
                return Place(memory, offset, tensor.dtype, tensor.shape)
        return None

    def dumps(self, thing: object) -> bytes:
        """`thing` for another process of this machine, which reads it with `Borrowed`."""
        written = io.BytesIO()
        _Pickler(written, self).dump(thing)
        return written.getvalue()


class Borrowed:
    """The memories of another process, as this one has mapped them."""

    def __init__(self) -> None:
        self._mapped: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()

    def loads(self, data: bytes) -> Any:
        """What `SharedTensors.dumps` has written. Raises OSError where a memory is gone."""
        return _Unpickler(io.BytesIO(data), self).load()

    def map(self, memory: Memory) -> mmap.mmap:
        """Its bytes, mapped once."""
        mapped = self._mapped.get(memory.number)
        if mapped is None:
            mapped = self._mapped[memory.number] = memory.map()
        return mapped


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, shared: SharedTensors) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.shared = shared

    def persistent_id(self, thing: object) -> Place | None:
        return self.shared.place_of(thing) if isinstance(thing, nn.Parameter) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, borrowed: Borrowed) -> None:
        super().__init__(file)
        self.borrowed = borrowed
        self.found: dict[Place, nn.Parameter] = {}  # a parameter that two modules have is one object here, too

    def persistent_load(self, place: Place) -> nn.Parameter:
        if place not in self.found:
            tensor = place.tensor(self.borrowed.map(place.memory))
            self.found[place] = nn.Parameter(tensor, requires_grad=False)
        return self.found[place]
