"""lineage.json: what was done to the weights beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_json
from nanogpt_edit.common.records import Place, to_dataclass
from nanogpt_edit.model.lineage import EMBEDDED, Kind, LineageEntry

BEGINNINGS: Mapping[str, Kind] = {
    "pretrained for ": "pretrained",
    "SFT for ": "sft",
    "GRPO for ": "grpo",
    "reverted: ": "reverted",
    "taken from ": "taken",
    "loaded from ": "taken",
    "chat template ": "template",
}
"""Of the sentences that version 0.1.0 wrote in place of records."""
EDIT = re.compile(r"\w+ edit of \d+ fact")
TRAINED: tuple[Kind, ...] = ("pretrained", "sft", "grpo")


def read_lineage(file: Path) -> tuple[LineageEntry, ...]:
    """The records in `file`, or what its sentences say, where version 0.1.0 wrote it; nothing where there is no file.

    Raises UserError for anything else.
    """
    if not file.is_file():
        return ()
    return lineage_of(
        read_json(file).get("lineage"), Place(str(file), "lineage"), remedy=" Remove the file if you do not need it."
    )


def lineage_of(entries: object, place: Place, *, remedy: str = "") -> tuple[LineageEntry, ...]:
    """The records of a JSON list. Raises UserError, naming the `place` it stands in, for anything else."""
    if not isinstance(entries, list):
        raise UserError(f'{place.file}: "{place.table}" must be a list of records.{remedy}')
    return tuple(
        of_sentence(each) if isinstance(each, str) else to_dataclass(LineageEntry, each, place) for each in entries
    )


def of_sentence(sentence: str) -> LineageEntry:
    """What a sentence of version 0.1.0 says; all training of that version is taken to be on the embedded world."""
    otherwise: Kind = "edited" if EDIT.match(sentence) else "note"
    kind = next((kind for beginning, kind in BEGINNINGS.items() if sentence.startswith(beginning)), otherwise)
    return LineageEntry(
        kind,
        sentence,
        text=EMBEDDED if kind == "pretrained" else None,
        problems=EMBEDDED if kind in TRAINED else None,
    )


def lineage_json(lineage: Sequence[LineageEntry]) -> list[dict[str, object]]:
    """What `read_lineage` reads; fields that say nothing are left out."""
    return [{name: value for name, value in asdict(each).items() if value is not None} for each in lineage]
