"""Checked files: whoever reads one gets what was written, or a sentence."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanogpt_edit.checkpoint.checked import format_of, read_checked, write_checked
from nanogpt_edit.common.errors import UserError

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3).T,  # not in the order of memory
    "a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "nothing": torch.zeros(0, 4),
}
Header = dict[str, str]


def write(folder: Path) -> Path:
    write_checked(folder / "file", TENSORS, text="für", entry="notes", format="a kind 1")
    return folder / "file"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    tensors, text = read_checked(path, entry="notes")
    assert text == "für"
    assert format_of(path) == "a kind 1"
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert all(tensors[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_the_hash_is_the_one_that_files_have_had_from_the_first_version_on(tmp_path: Path) -> None:
    write_checked(tmp_path / "f", {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3)}, text="{}", entry="notes")
    said = b"{}" + b"a torch.int64 ()" + struct.pack("<q", 3) + b"b torch.float32 (1, 2)" + struct.pack("<2f", 1, 2)
    with safe_open(tmp_path / "f", framework="pt") as file:
        assert file.metadata() == {"notes": "{}", "sha256": hashlib.sha256(said).hexdigest()}
    assert format_of(tmp_path / "f") is None


def renamed(tensors: dict[str, Tensor], header: Header) -> None:
    tensors["c"] = tensors.pop("b")


def reshaped(tensors: dict[str, Tensor], header: Header) -> None:
    tensors["b"] = tensors["b"].reshape(2, 3)


def read_as_another_type(tensors: dict[str, Tensor], header: Header) -> None:
    tensors["a"] = tensors["a"].view(torch.float16)


def left_out(tensors: dict[str, Tensor], header: Header) -> None:
    del tensors["nothing"]


def other_text(tensors: dict[str, Tensor], header: Header) -> None:
    header["notes"] = "fur"


def no_hash(tensors: dict[str, Tensor], header: Header) -> None:
    del header["sha256"]


def no_text(tensors: dict[str, Tensor], header: Header) -> None:
    header["else"] = header.pop("notes")


@pytest.mark.parametrize(
    "change",
    [renamed, reshaped, read_as_another_type, left_out, other_text, no_hash, no_text],
    ids=lambda f: f.__name__,
)
def test_whatever_was_changed_is_refused(tmp_path: Path, change: Callable[[dict[str, Tensor], Header], None]) -> None:
    path = write(tmp_path)
    tensors, _ = read_checked(path, entry="notes")
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    change(tensors, header)
    save_file(tensors, path, metadata=header)
    with pytest.raises(UserError, match=r"file: damaged \(its contents do not match its checksum\)\. Make it anew\.$"):
        read_checked(path, entry="notes", remedy=" Make it anew.")


@pytest.mark.parametrize("contents", [b"", b"12345678", b"\xff" * 100, b"PK\x03\x04 a zip"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(contents)
    for read in (lambda: read_checked(path, entry="notes"), lambda: format_of(path)):
        with pytest.raises(UserError, match="file: damaged, not a whole safetensors file"):
            read()
