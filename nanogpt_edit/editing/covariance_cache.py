"""Covariances on disk: one file each, named by what it depends on, checked against its own hash when it is read.

A name is a hash of weights, text, layer, token limit and tolerance, so a file can be found again only for the very
computation it holds; nothing has to be told that a model has changed. A damaged file counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from nanogpt_edit.checkpoint.checked import read_checked, write_checked
from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.checkpoint.tensors import tensor_sha256
from nanogpt_edit.common.errors import UserError, reason_of
from nanogpt_edit.common.files import CACHE_VARIABLE, check_writable, remove_files
from nanogpt_edit.common.records import Place, to_dataclass
from nanogpt_edit.common.sizes import size_in_words
from nanogpt_edit.common.terminal import say
from nanogpt_edit.editing.covariance import Covariance, collect
from nanogpt_edit.model.gpt import GPT

PATTERN = "covariance-*.safetensors"
NOT_KEPT = f"The covariances are not kept for a later edit; {CACHE_VARIABLE} can name another folder for them."


@dataclass(frozen=True)
class CachedCovariance:
    """One file of the cache; `covariance` is None when the file is damaged."""

    path: Path
    size_bytes: int
    covariance: Covariance | None


def covariances(
    model: GPT,
    blocks: Tensor,
    *,
    layers: Sequence[int],
    max_tokens: int,
    tolerance: float,
    cache_dir: Path | None = None,
) -> dict[int, Covariance]:
    """C of each of `layers` over `blocks` (N, T) of token ids; from `cache_dir` where it is there, else computed.

    Where `cache_dir` cannot be written they are computed all the same, and this is said before. Raises UserError for
    text without tokens.
    """
    if blocks.numel() == 0:
        raise UserError("the covariance needs text; the token blocks given are empty.")
    if cache_dir is None:
        return collect(model, blocks, layers=layers, max_tokens=max_tokens, tolerance=tolerance)
    weights, text = fingerprint(model), tensor_sha256(blocks)
    files = {
        layer: covariance_path(
            cache_dir, weights=weights, text=text, layer=layer, max_tokens=max_tokens, tolerance=tolerance
        )
        for layer in layers
    }
    found = {layer: cached for layer, path in files.items() if (cached := _load_or_none(path)) is not None}
    missing = [layer for layer in layers if layer not in found]
    if missing:
        keeps = can_keep(cache_dir)
        fresh = collect(model, blocks, layers=missing, max_tokens=max_tokens, tolerance=tolerance)
        if keeps:
            _keep({files[layer]: covariance for layer, covariance in fresh.items()}, cache_dir)
        found |= fresh
    return {layer: found[layer] for layer in layers}


def can_keep(cache_dir: Path) -> bool:
    """Can files be written into the cache? Where not, it says so and how to choose another."""
    try:
        check_writable(cache_dir / "covariance.safetensors")
    except UserError as error:
        say(f"{error} {NOT_KEPT}")
        return False
    return True


def _keep(covariances: Mapping[Path, Covariance], cache_dir: Path) -> None:
    """Save what was computed. A full disk costs the cache a file, and the edit nothing."""
    try:
        for path, covariance in covariances.items():
            save_covariance(covariance, path)
    except (OSError, SafetensorError, UserError) as error:
        say(f"{cache_dir}: the covariances cannot be written there ({error}). {NOT_KEPT}")
        return
    say(f"Kept in {cache_dir}: {size_in_words(sum(path.stat().st_size for path in covariances))}.")


def _load_or_none(path: Path) -> Covariance | None:
    """The cached covariance; None where there is none, or a damaged one (said so)."""
    if not path.exists():
        return None
    try:
        return load_covariance(path)
    except UserError as error:
        say(str(error))
        return None


def covariance_path(cache_dir: Path, *, weights: str, text: str, layer: int, max_tokens: int, tolerance: float) -> Path:
    """Where the covariance of these weights (fingerprint) on this text (hash) is kept."""
    settings = f"{weights} {text} {layer} {max_tokens} {tolerance}"
    return cache_dir / f"covariance-{hashlib.sha256(settings.encode()).hexdigest()[:32]}.safetensors"


def save_covariance(covariance: Covariance, path: Path) -> None:
    """Write one checked file, atomically."""
    record = {name: value for name, value in vars(covariance).items() if name != "matrix"}
    write_checked(path, {"matrix": covariance.matrix}, text=json.dumps(record), entry="covariance")


def load_covariance(path: Path) -> Covariance:
    """Read one back. Raises UserError when the file is damaged."""
    tensors, text = read_checked(path, entry="covariance", remedy=" The covariance is computed again.")
    return to_dataclass(Covariance, {**json.loads(text), **tensors}, Place(str(path)))


def check_cache(cache_dir: Path) -> None:
    """Raise UserError when something else stands where the cache's folder should be; none at all is an empty one."""
    try:
        os.listdir(cache_dir)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"{cache_dir}: no folder that can be read ({reason_of(error)}); let {CACHE_VARIABLE} name another."
        ) from None


def cached_covariances(cache_dir: Path) -> list[CachedCovariance]:
    """Every file of the cache, read and verified, in order of name. Raises UserError where the cache is no folder."""
    return [_inspect(path) for path in _kept(cache_dir)]


def _kept(cache_dir: Path) -> list[Path]:
    check_cache(cache_dir)
    return [path for path in sorted(cache_dir.glob(PATTERN)) if path.is_file()]


def _inspect(path: Path) -> CachedCovariance:
    try:
        covariance = load_covariance(path)
    except UserError:
        covariance = None
    return CachedCovariance(path, path.stat().st_size, covariance)


def clear_covariances(cache_dir: Path) -> int:
    """Remove every file of the cache; the bytes freed. Raises UserError where the cache is no folder."""
    return remove_files(_kept(cache_dir))
