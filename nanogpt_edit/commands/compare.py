"""`nanogpt-edit compare BEFORE AFTER`: two checkpoints on the same problems, in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.show import show_differences
from nanogpt_edit.errors import UserError
from nanogpt_edit.evaluate.records import EvalRecord, read_records
from nanogpt_edit.evaluate.suite import compare_records


@dataclass(frozen=True)
class Compare:
    """Compare two evaluations of the same problems: paired differences with intervals, and what n could have shown."""

    before: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BEFORE")]
    """Records of an evaluation (a .jsonl file), or a stage of a run (runs/tiny/sft)."""
    after: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="AFTER")]
    """The same for the other checkpoint."""


def compare(arguments: list[str]) -> int:
    """The verb `compare`."""
    chosen = parse(Compare, arguments, verb="compare")
    before, after = (read_evaluation(path) for path in (chosen.before, chosen.after))
    differences = compare_records(before, after)
    if not differences:
        raise UserError(f"{chosen.before} and {chosen.after} have no graded problems in common; evaluate both first.")
    show_differences(differences)
    return 0


def read_evaluation(path: Path) -> list[EvalRecord]:
    """The records of a .jsonl file, or those that a run keeps of the stage in the folder `path`.

    Raises UserError naming what is missing or damaged.
    """
    if not path.is_dir():
        return read_records(path)
    kept = path.parent / "eval" / f"{path.name}.jsonl"
    if not kept.is_file():
        raise UserError(f"{path}: no evaluation of it at {kept}; name the .jsonl file of its records.")
    return read_records(kept)
