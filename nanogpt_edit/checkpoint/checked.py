"""Checked files: tensors and a text in one safetensors file with a SHA-256 over both, complete or absent.

Patches, states of a training run and kept covariances are such files. Whoever reads one gets what was written, or a
sentence: a file that is cut short or changed by a bit is refused whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanogpt_edit.checkpoint.tensors import bytes_of
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import atomic_file


def write_checked(path: Path, tensors: Mapping[str, Tensor], *, text: str, entry: str, format: str = "") -> None:
    """Write `tensors` and, as the `entry` of the header, `text`; `format` is what `format_of` finds."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {entry: text, "sha256": _sha256(tensors, text)} | ({"format": format} if format else {})
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_checked(path: Path, *, entry: str, remedy: str = "") -> tuple[dict[str, Tensor], str]:
    """The tensors and the text that `write_checked` wrote. Raises UserError for a damaged file, with the `remedy`."""
    with _opened(path, remedy) as file:
        header: dict[str, str] = file.metadata() or {}
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    text = header.get(entry, "")
    if header.get("sha256") != _sha256(tensors, text):
        raise UserError(f"{path}: damaged (its contents do not match its checksum).{remedy}")
    return tensors, text


def format_of(path: Path, *, remedy: str = "") -> str | None:
    """What the header says that the file is. Raises UserError for what is no whole safetensors file."""
    with _opened(path, remedy) as file:
        header: dict[str, str] = file.metadata() or {}
    return header.get("format")


@contextmanager
def _opened(path: Path, remedy: str) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, not a whole safetensors file ({error}).{remedy}") from None


def _sha256(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
