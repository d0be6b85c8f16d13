"""A model in a GGUF file, as llama.cpp, Ollama and LM Studio keep it: architecture, weights, vocabulary, template.

The file's quantised weights become float32, tensor by tensor: what comes out is the model that llama.cpp runs, not the
one the file was once made from.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nanogpt_edit.checkpoint import gguf_names
from nanogpt_edit.checkpoint.gguf_config import config_from_gguf
from nanogpt_edit.checkpoint.gguf_file import GGUFFile
from nanogpt_edit.checkpoint.gguf_metadata import Metadata
from nanogpt_edit.checkpoint.gguf_tokenizer import end_ids, named_ids, read_tokenizer
from nanogpt_edit.checkpoint.lineage import lineage_of
from nanogpt_edit.common.card import CARD, Card, card_text, entry
from nanogpt_edit.common.files import parse_json
from nanogpt_edit.common.records import Place
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.kept import Kept
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.tokenizer import Tokenizer

PLAIN = ("F32", "F16", "BF16")
LICENCE = "general.license"
LINEAGE = "nanogpt_edit.lineage"
"""The entry that holds the lineage of a model written here, as lineage.json has it."""


@dataclass(frozen=True)
class GGUFModel:
    """An opened file."""

    config: GPTConfig
    tensors: GGUFFile
    tokenizer: Tokenizer | None
    kept: Kept
    lineage: tuple[LineageEntry, ...]
    """What was done to the weights before they were written, where this project wrote the file."""
    note: str
    """One sentence on what was read."""


def read(path: Path) -> GGUFModel:
    """Open `path`. Raises UserError, naming it, for what is damaged in it or not supported."""
    file = GGUFFile(path)
    config, metadata = config_from_gguf(file), Metadata(file.metadata, path)
    tokenizer = read_tokenizer(metadata, rows=config.vocab_size)
    ends = end_ids(metadata)
    if config.model_type == "llama":
        file.entries.pop(gguf_names.STRETCHING, None)  # no weight; what it says is in the config
    return GGUFModel(
        config=config,
        tensors=file,
        tokenizer=tokenizer,
        kept=Kept(
            config=named_ids(metadata),
            generation={"eos_token_id": ends} if ends else {},
            texts={CARD: _card(metadata).encode()} if LICENCE in metadata.raw else {},
        ),
        lineage=_lineage(metadata),
        note=_note(file),
    )


def _lineage(metadata: Metadata) -> tuple[LineageEntry, ...]:
    if LINEAGE not in metadata.raw:
        return ()
    try:
        entries = parse_json(metadata.text(LINEAGE))
    except ValueError as error:
        raise metadata.wrong(LINEAGE, f"must be JSON ({error})", metadata.text(LINEAGE)) from None
    return lineage_of(entries, Place(str(metadata.file), LINEAGE))


def _card(metadata: Metadata) -> str:
    """What the file says of its licence, as a model card has it."""
    return card_text(Card(their_metadata={"license": entry("license", metadata.text(LICENCE))}))


def _note(file: GGUFFile) -> str:
    types = Counter(tensor.type_name for tensor in file.described.values())
    done = "dequantised" if types.keys() - set(PLAIN) else "read"
    of = ", ".join(f"{count} {name}" for name, count in types.most_common())
    return f"{done} from the GGUF file {file.path.name} to float32 ({of})"
