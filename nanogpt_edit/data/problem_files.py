"""Reading word problems: GSM8K, SVAMP, any JSONL or JSON array, a folder of them, or a hub data set.

GSM8K's form (Cobbe et al. 2021) is the native one: `answer` holds a rationale with calculator marks `<<48/2=24>>`, then
`#### 72`. The marks are stripped, commas inside numbers removed. A record without `####` is all answer, no rationale.
A bad record stops the reading with its file and line, or is left out and counted in `notes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nanogpt_edit.arguments import checked
from nanogpt_edit.data import hub
from nanogpt_edit.errors import UserError
from nanogpt_edit.typed import check_fields

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d)")
REASONING_TAG = re.compile(r"</?(?:think|answer)>")
EXAMPLE = '{"question": "…", "answer": "… #### 72"}'


@dataclass(frozen=True)
class Problem:
    """One word problem.

    Example: Problem(question="Natalia sold clips to 48 …?", rationale="Natalia sold 48/2 = 24 clips in May.\\n…",
    answer="72", id="train:1")
    """

    question: str  # as the prompt shows it
    rationale: str  # goes between <think> and </think>; may be empty
    answer: str  # goes between <answer> and </answer>; holds a number, no thousands commas
    id: str  # where it came from, "<file stem>:<line>"; unique within its splits

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Fields:
    """How a file names its fields, and whether a bad record stops the reading."""

    question: str = "question"
    answer: str = "answer"
    skip_bad: bool = False


@checked
def read_problems(
    source: str | Path, *, question_field: str = "question", answer_field: str = "answer", split: str = "test"
) -> tuple[Problem, ...]:
    """All problems of one file, or the `split` of a folder or hub data set.

    Raises UserError naming file and line of a bad record, or the file when it is missing or empty.
    """
    fields = Fields(question=question_field, answer=answer_field)
    path = Path(source)
    if path.is_file():
        return _read_file(path, fields, notes=[])
    if path.is_dir():
        return _read_file(_split_file(path, split), fields, notes=[])
    hub.check_name(str(source))
    rows = hub.read_rows(str(source), split=split)
    return _read_rows(_numbered(rows, split), f"{source} {split}", fields, notes=[])


def read_all_splits(source: str, fields: Fields, notes: list[str]) -> dict[str, tuple[Problem, ...]]:
    """The splits that `source` has: "train" always, "validation" and "test" where it brings them.

    A lone file is all "train". What was left out is added to `notes`. Raises UserError as `read_problems` does.
    """
    path = Path(source)
    if path.is_file():
        return {"train": _read_file(path, fields, notes)}
    if path.is_dir():
        found = {"train": _read_file(_split_file(path, "train"), fields, notes)}
        present = [split for split in ("validation", "test") if any((path / name).is_file() for name in _names(split))]
        return found | {split: _read_file(_split_file(path, split), fields, notes) for split in present}
    hub.check_name(source)
    rows = hub.read_splits(source, wanted=("train", "validation", "test"))
    if "train" not in rows:
        raise UserError(f"{source}: this data set has no train split, only {', '.join(rows)}.")
    return {split: _read_rows(_numbered(rows[split], split), f"{source} {split}", fields, notes) for split in rows}


def _split_file(folder: Path, split: str) -> Path:
    for name in _names(split):
        if (folder / name).is_file():
            return folder / name
    present = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{folder}: no {split}.jsonl in this folder (it holds {present}). Name the file itself, or give the folder one."
    )


def _names(split: str) -> tuple[str, str]:
    return f"{split}.jsonl", f"{split}.json"


def _numbered(rows: Iterable[object], label: str) -> Iterator[tuple[str, object]]:
    return ((f"{label}:{number}", row) for number, row in enumerate(rows, start=1))


def _read_file(path: Path, fields: Fields, notes: list[str]) -> tuple[Problem, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    rows = _json_array(path, text) if text.lstrip().startswith("[") else _json_lines(text)
    return _read_rows(((f"{path.stem}:{number}", row) for number, row in rows), str(path), fields, notes)


def _json_array(path: Path, text: str) -> Iterator[tuple[int, object]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:  # damaged, a number of thousands of digits, nested too deeply
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: not valid JSON ({_reason(error)}).") from None
    return enumerate(rows, start=1)


def _json_lines(text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, error


def _reason(error: Exception) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _read_rows(
    rows: Iterable[tuple[str, object]], source: str, fields: Fields, notes: list[str]
) -> tuple[Problem, ...]:
    """Problems of numbered rows; `rows` yields ("train:17", record). Errors read "<source>:17: …"."""
    problems: list[Problem] = []
    bad: list[str] = []
    for identifier, row in rows:
        try:
            problems.append(_problem(row, identifier, fields))
        except _BadRecord as error:
            sentence = f"{source}:{identifier.rpartition(':')[2]}: {error}"
            if not fields.skip_bad:
                raise UserError(sentence) from None
            bad.append(sentence)
    if bad:
        notes.append(f"{source}: {len(bad):,} of {len(bad) + len(problems):,} records were left out; first {bad[0]}")
    if not problems:
        raise UserError(f"{source}: no problems in it. A problem is a line such as {EXAMPLE}.")
    return tuple(problems)


class _BadRecord(Exception):
    """Why one record is no problem; the caller knows the file and line."""


def _problem(row: object, identifier: str, fields: Fields) -> Problem:
    if isinstance(row, Exception):
        raise _BadRecord(f"not valid JSON ({_reason(row)}).")
    if not isinstance(row, Mapping):
        raise _BadRecord(f"a JSON object was expected, found {type(row).__name__}.")
    if "Body" in row and "Question" in row and fields.question not in row:
        return _checked(_from_svamp(row, identifier))
    question = _text(row, fields.question, flag="--problems.question-field")
    answer = _text(row, fields.answer, flag="--problems.answer-field")
    rationale, _, final = answer.rpartition("####")
    rationale = CALCULATOR_MARK.sub("", rationale).strip()
    final = THOUSANDS_COMMA.sub("", CALCULATOR_MARK.sub("", final)).strip()
    return _checked(Problem(question=question.strip(), rationale=rationale, answer=final, id=identifier))


def _from_svamp(row: Mapping[object, object], identifier: str) -> Problem:
    """SVAMP (Patel et al. 2021): the story, the question, and the equation as a one-line rationale."""
    body, question = _text(row, "Body").strip(), _text(row, "Question").strip()
    if not body.endswith((".", "!", "?")):  # the story runs on into the question
        body, question = body.rstrip(",") + ",", question[:1].lower() + question[1:]
    answer = _text(row, "Answer")
    equation = re.sub(r"(\d)\.0\b", r"\1", _text(row, "Equation")).strip() if row.get("Equation") else ""
    if re.fullmatch(r"\( ([^()]|\([^()]*\))* \)", equation):  # one pair around it all, as in ( 6 - ( 3 + 2 ) )
        equation = equation[2:-2]
    rationale = f"{equation} = {answer}" if equation else ""
    return Problem(question=f"{body} {question}", rationale=rationale, answer=answer, id=identifier)


def _text(row: Mapping[object, object], field: str, flag: str = "") -> str:
    if field not in row:
        rename = f" Name the right one with {flag}." if flag else ""
        has = ", ".join(f'"{name}"' for name in list(row)[:8]) or "none"
        raise _BadRecord(f'the record has no field "{field}" (it has {has}).{rename}')
    value = row[field]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(int(value)) if value == value and abs(value) < 1e15 and value == int(value) else str(value)
    if not isinstance(value, str):
        raise _BadRecord(f'field "{field}" should be text or a number, found {type(value).__name__}.')
    return value


def _checked(problem: Problem) -> Problem:
    if not problem.question:
        raise _BadRecord("the question is empty.")
    if not re.search(r"\d", problem.answer):
        raise _BadRecord(f'the answer "{problem.answer[:60]}" holds no number.')
    tag = REASONING_TAG.search(f"{problem.question}\n{problem.rationale}\n{problem.answer}")
    if tag:
        raise _BadRecord(f"the text holds {tag[0]}, which only the completion's own markup may.")
    return problem
