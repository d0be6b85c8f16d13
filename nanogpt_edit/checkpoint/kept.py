"""What came with a model beside its weights, its sizes and its vocabulary, and is kept when the model is saved again.

Three things: the entries of config.json and generation_config.json that are not ours to set, and the texts in its
directory (model card, licence, further chat templates). Other formats of the weights and second copies of the
vocabulary, which lack the reasoning tokens, are not kept.

The model card, README.md, is kept too, and what was done to the weights is said at its end, anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from nanogpt_edit.common.files import read_json, write_text
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE
from nanogpt_edit.model.kept import Kept
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.tokenizer import Tokenizer

CARD = "README.md"
OWN_PART = "<!-- nanogpt_edit: what follows is written anew whenever the model is saved -->"
TEXTS = ("*.md", "LICEN[CS]E*", "NOTICE*", "COPYING*", "*USE_POLICY*", "*.jinja")
TEMPLATES = "additional_chat_templates"
LARGEST_TEXT = 2**20  # bytes

# Entries of config.json that describe sizes and number formats in other words than those that are written.
REPLACED = ("dtype", "torch_dtype", "rope_parameters", "rope_theta", "rope_scaling", "auto_map", "n_ctx")


def read_kept(directory: Path, config: Mapping[str, object]) -> Kept:
    """What `directory` holds; `config` is its config.json. Raises UserError for a damaged file."""
    generation, lineage = _entries(directory / "generation_config.json"), _entries(directory / "lineage.json")
    found = sorted(path for path in directory.iterdir() if is_kept(path.name))
    found += sorted((directory / TEMPLATES).glob("*.jinja"))
    return Kept(
        config={name: value for name, value in config.items() if name not in REPLACED},
        generation=generation,
        vocabulary_sha256=str(lineage["vocabulary"]) if "vocabulary" in lineage else None,
        texts={
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in found
            if path.is_file() and path.stat().st_size <= LARGEST_TEXT
        },
    )


def write_texts(kept: Kept, directory: Path) -> None:
    """Put the texts of `kept` back, all but those that `directory` already has."""
    for name, text in kept.texts.items():
        if not (directory / name).exists():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(text)


def _entries(file: Path) -> dict[str, object]:
    return read_json(file) if file.is_file() else {}


def is_kept(name: str) -> bool:
    """Whether a file of this name in a model's directory is a text that is kept."""
    return name == TEMPLATES or any(fnmatch(name.upper(), pattern.upper()) for pattern in TEXTS)


def write_card(directory: Path, lineage: Sequence[LineageEntry], tokenizer: Tokenizer | None) -> None:
    """Say at the end of the model card what was done to the weights and how a question is put to the model."""
    card = directory / CARD
    theirs = card.read_text(encoding="utf-8", errors="replace").partition(OWN_PART)[0] if card.is_file() else ""
    notes = [each.sentence.replace("<", "\\<") for each in lineage]  # else Markdown takes the reasoning tokens for HTML
    steps = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1)) or "Nothing is recorded."
    own = f"## What was done to these weights\n\n{steps}\n\n## How a question is put\n\n{_format(tokenizer)}\n"
    write_text(card, f"{theirs.rstrip()}\n\n{OWN_PART}\n{own}".lstrip())


def _format(tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return "No vocabulary came with the weights."
    if tokenizer.chat_template == REASONING_TEMPLATE:
        return (
            "As the bare question. The model then writes `<think>` steps `</think><answer>` answer `</answer>` and "
            "stops. The chat template says this format, which is the one it was trained on: the last question, then "
            "`<think>`; it leaves out a system's words and earlier turns."
        )
    if tokenizer.chat_template is None:
        return "As plain text; there is no chat template, and none was trained."
    return "By the chat template that came with the model; training here did not teach it another format."
