"""What came with a model beside its weights, its sizes and its vocabulary, and is kept when the model is saved again.

Three things: the entries of config.json and generation_config.json that are not ours to set, and the texts in its
directory (model card, licence, further chat templates). Other formats of the weights and second copies of the
vocabulary, which lack the reasoning tokens, are not kept.

The model card, README.md, is kept too: what was done to the weights is said at its end (`card.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from nanogpt_edit.common.files import read_json
from nanogpt_edit.model.kept import Kept

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
