"""Word problems, and reading them: GSM8K, SVAMP, any file of records (`rows.py`), a folder of them, a hub data set.

GSM8K's form (Cobbe et al. 2021) is the native one: `answer` holds a rationale with calculator marks `<<48/2=24>>`, then
`#### 72`. The marks are stripped, thousands' commas of the answer removed. A record without `####` is all answer, no
rationale. A bad record stops the reading with its file and line, or is left out and counted in `notes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.reasoning import TAGS
from nanogpt_edit.common.records import Answering, check_fields
from nanogpt_edit.data import hub_datasets
from nanogpt_edit.data.numerals import THOUSANDS, numbers
from nanogpt_edit.data.rows import ROW_SUFFIXES, files_of_split, read_rows, reason_of_json, required_split

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
COMMA_BETWEEN_DIGITS = re.compile(r"(?<=\d)[,，٬](?=\d)")
MARKUP = re.compile("|".join((*TAGS, r"</?s>|<\|[^|<>\s]{1,40}\|>")))  # tokens of one family or another
LONGEST_PROBLEM = 1_000_000  # characters; no model reads as much at once
EXAMPLE_FILE = Path(__file__).parent / "example.jsonl"
EXAMPLE = '{"question": "…", "answer": "… #### 72"}'


@dataclass(frozen=True)
class Problem(metaclass=Answering):
    """One word problem.

    Example: Problem(question="Natalia sold clips to 48 …?", rationale="Natalia sold 48/2 = 24 clips in May.\\n…",
    answer="72", id="train:1")
    """

    question: str  # as the prompt shows it
    rationale: str  # goes between <think> and </think>; may be empty
    answer: str  # goes between <answer> and </answer>; holds a number, no thousands commas
    id: str  # where it came from, "<file stem>:<line>"; unique within its splits

    def __post_init__(self) -> None:
        for text in (self.question, self.rationale, self.answer, self.id):
            if type(text) is not str or not text.isascii():  # seldom, and what is asked then takes its time
                check_fields(self)
                return


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
    """All problems of one file, or the `split` of a folder or hub data set; "example": twenty of the package.

    Raises UserError naming file and line of a bad record, or the file when it is missing or empty.
    """
    fields = Fields(question=question_field, answer=answer_field)
    path = _path(source)
    if path.is_file():
        return _read_files([path], fields, notes=[])
    if path.is_dir() and not hub_datasets.is_saved(path):
        return _read_files(required_split(path, split), fields, notes=[])
    hub_datasets.check_name(str(source))
    rows = hub_datasets.read_rows(str(source), split=split)
    return _read_rows(_numbered(rows, split), f"{source} {split}", fields, notes=[])


def read_all_splits(source: str, fields: Fields, notes: list[str]) -> dict[str, tuple[Problem, ...]]:
    """The splits that `source` has: "train" always, "validation" and "test" where it brings them.

    A lone file is all "train". What was left out is added to `notes`. Raises UserError as `read_problems` does.
    """
    path = _path(source)
    if path.is_file():
        return {"train": _read_files([path], fields, notes)}
    if path.is_dir() and not hub_datasets.is_saved(path):
        files = {"train": required_split(path, "train")}
        files |= {split: found for split in ("validation", "test") if (found := files_of_split(path, split))}
        return {split: _read_files(found, fields, notes) for split, found in files.items()}
    hub_datasets.check_name(source)
    rows = hub_datasets.read_splits(source, wanted=("train", "validation", "test"))
    if "train" not in rows:
        raise UserError(f"{source}: this data set has no train split, only {', '.join(rows)}.")
    return {split: _read_rows(_numbered(rows[split], split), f"{source} {split}", fields, notes) for split in rows}


def _path(source: str | Path) -> Path:
    path = Path(source)
    return EXAMPLE_FILE if str(source) == "example" and not path.exists() else path


def _numbered(rows: Iterable[object], label: str) -> Iterator[tuple[str, object]]:
    return ((f"{label}:{number}", row) for number, row in enumerate(rows, start=1))


def _read_files(paths: Iterable[Path], fields: Fields, notes: list[str]) -> tuple[Problem, ...]:
    problems: list[Problem] = []
    for path in paths:
        stem = path.name.partition(".")[0] if path.name.endswith(ROW_SUFFIXES) else path.stem
        rows = ((f"{stem}:{number}", row) for number, row in read_rows(path, fields=(fields.question,)))
        problems += _read_rows(rows, str(path), fields, notes)
    return tuple(problems)


def _read_rows(
    rows: Iterable[tuple[str, object]], source: str, fields: Fields, notes: list[str]
) -> tuple[Problem, ...]:
    """Problems of numbered rows; `rows` yields ("train:17", record). Errors read "<source>:17: …"."""
    problems: list[Problem] = []
    bad: list[str] = []
    for identifier, row in rows:
        try:
            problems.append(_problem(row, identifier, fields))
        except (_BadRecord, UserError) as error:  # what the reader asks, and what every Problem must be
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
        raise _BadRecord(f"not valid JSON ({reason_of_json(row)}).")
    if not isinstance(row, Mapping):
        raise _BadRecord(f"a JSON object was expected, found {type(row).__name__}.")
    if "Body" in row and "Question" in row and fields.question not in row:
        return _checked(_from_svamp(row, identifier))
    question = _text(row, fields.question, flag="--problems.question-field")
    answer = _text(row, fields.answer, flag="--problems.answer-field")
    rationale, _, final = answer.rpartition("####")
    rationale = CALCULATOR_MARK.sub("", rationale).strip()
    final = _without_commas(CALCULATOR_MARK.sub("", final).strip())
    return _checked(Problem(question=question.strip(), rationale=rationale, answer=final, id=identifier))


def _without_commas(answer: str) -> str:
    """The answer without its thousands' commas; any other comma between digits may mean a decimal, or a list."""
    if "," in answer:
        answer = THOUSANDS.sub(lambda found: found[0].replace(",", ""), answer)
    if COMMA_BETWEEN_DIGITS.search(answer) and None in numbers(answer):
        raise _BadRecord(
            f'the answer "{answer[:60]}" has a comma between digits that is no thousands\' comma; write one number, '
            "a decimal with a point."
        )
    return answer


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
    if not (problem.answer.isdigit() or numbers(problem.answer)):
        raise _BadRecord(f'the answer "{problem.answer[:60]}" holds no number.')
    text = f"{problem.question}\n{problem.rationale}\n{problem.answer}"
    if len(text) > LONGEST_PROBLEM:
        raise _BadRecord(f"the problem has {len(text):,} characters; {LONGEST_PROBLEM:,} is the most that is read.")
    if "<" in text and (tag := MARKUP.search(text)):
        raise _BadRecord(
            f"the text holds {tag[0]}, a token that only the markup around a problem may use; take it out."
        )
    return problem
