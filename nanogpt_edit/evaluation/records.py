"""The raw record behind every number: one completion of one problem, graded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from nanogpt_edit.common.files import write_jsonl
from nanogpt_edit.common.records import read_jsonl_as


@dataclass(frozen=True)
class EvalRecord:
    """One completion, as a line of `eval/<stage>.jsonl`.

    Example: EvalRecord(skill="problems", problem_id="test:1", sample_index=0, prompt="Janet’s ducks …", gold="18",
    text="<think>…</think><answer>18</answer>", strict="18", flexible="18", correct=True, well_formed=True,
    thinking_tokens=57, answer_tokens=1, finish_reason="stop")
    """

    skill: str  # problems, arithmetic, probes
    problem_id: str
    sample_index: int
    prompt: str
    gold: str
    text: str  # the completion, reasoning tags included
    strict: str | None  # the answer of a well-formed completion
    flexible: str | None  # the last number, however the completion looks
    correct: bool  # the strict answer equals gold
    well_formed: bool
    thinking_tokens: int
    answer_tokens: int
    finish_reason: str  # stop, length


def write_records(path: Path, records: Iterable[EvalRecord]) -> None:
    """Write one JSON object per record, atomically."""
    write_jsonl(path, (asdict(record) for record in records))


def read_records(path: Path) -> list[EvalRecord]:
    """Read what `write_records` wrote. Raises UserError naming the file, line and field of a record that is not one."""
    return read_jsonl_as(EvalRecord, path)
