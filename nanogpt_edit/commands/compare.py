"""`nanogpt-edit compare BEFORE AFTER`: two checkpoints on the same problems, in pairs."""

from __future__ import annotations

from pathlib import Path

from nanogpt_edit.commands.arguments import Compare
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.show import show_differences, show_json
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.evaluation.compare import KEPT_BESIDE, compare_evaluations


def compare(arguments: list[str]) -> int:
    """The verb `compare`."""
    chosen = parse(Compare, arguments, verb="compare")
    differences = compare_evaluations(records_of(chosen.before), records_of(chosen.after))
    if not differences:
        raise UserError(f"{chosen.before} and {chosen.after} have no graded problems in common; evaluate both first.")
    (show_json if chosen.json else show_differences)(differences)
    return 0


def records_of(path: Path) -> Path:
    """The .jsonl file of an evaluation's completions: `path` itself, the one a run keeps of the stage in the folder
    `path`, or the only one in that folder.

    Raises UserError when there is none.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a stage of a run (runs/tiny/sft), or a .jsonl file.")
    if not path.is_dir():
        return path
    if (path / "eval").is_dir():
        raise UserError(f"{path}: a whole run; name one of its stages, such as {path / 'sft'}.")
    kept = path.parent / "eval" / f"{path.name}.jsonl"
    beside = tuple(f"_{what}" for what in KEPT_BESIDE)
    own = [file for file in path.glob("*.jsonl") if not file.stem.endswith(beside)]
    if not kept.is_file() and len(own) == 1:
        return own[0]
    if not kept.is_file():
        raise UserError(f"{path}: no evaluation of it at {kept}; name the .jsonl file of its records.")
    return kept
