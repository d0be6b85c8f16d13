"""Word problems: read from GSM8K, SVAMP, any JSONL, or the hub; split honestly; turned into training samples.

GSM8K's form (Cobbe et al. 2021) is the native one: `answer` holds a rationale with calculator marks `<<48/2=24>>`, then
`#### 72`. The marks are stripped, commas inside numbers removed. A record without `####` is all answer, no rationale.

Three rules: a bad record stops with its file and line (or is counted, with `skip_bad_records`); the test split gives
nothing to validation and shares no question with training; whatever is left out is said in `notes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_edit.data import hub
from nanogpt_edit.errors import UserError

if TYPE_CHECKING:
    from nanogpt_edit.model.tokenizer import Tokenizer

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d)")
REASONING_TAG = re.compile(r"</?(?:think|answer)>")


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


@dataclass(frozen=True)
class ProblemSplits:
    """Train, validation and test problems, and what a person should know about how they came to be."""

    train: tuple[Problem, ...]
    validation: tuple[Problem, ...]  # cut from train, never from test
    test: tuple[Problem, ...]
    notes: tuple[str, ...]  # whole sentences with counts: what was cut, skipped, limited


@dataclass(frozen=True)
class ProblemsConfig:
    """Which word problems to learn from."""

    path: str | None = None
    """A .jsonl or SVAMP .json file, a folder with train.jsonl and test.jsonl, or a hub name (openai/gsm8k).
    None: the embedded world's problems."""
    question_field: str = "question"
    """Name of the field that holds the question."""
    answer_field: str = "answer"
    """Name of the field that holds the answer (GSM8K's form, or the bare answer)."""
    validation: int = 200
    """Problems set aside from train for validation (chosen by the seed; never from test)."""
    limit: int | None = None
    """Keep at most this many problems of every split; None: all."""
    skip_bad_records: bool = False
    """Leave out records that cannot be used, and say how many, instead of stopping at the first."""


@dataclass(frozen=True)
class Sample:
    """One training row: a question and its completion. Both fields have length T.

    Example: token_ids=(1532, …, 50257, …, 50260), loss_mask=(0, …, 1, …, 1)
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]  # 1 where the token is a target


@dataclass(frozen=True)
class _Fields:
    question: str
    answer: str
    skip_bad: bool = False


# --- reading -----------------------------------------------------------------------------------------------------


def read_problems(
    source: str | Path, *, question_field: str = "question", answer_field: str = "answer", split: str = "test"
) -> tuple[Problem, ...]:
    """All problems of one file, or the `split` of a folder or hub data set.

    Raises UserError naming file and line of a bad record, or the file when it is missing or empty.
    """
    fields = _Fields(question=question_field, answer=answer_field)
    path = Path(source)
    if path.is_file():
        return _read_file(path, fields, notes=[])
    if path.is_dir():
        return _read_file(_split_file(path, split), fields, notes=[])
    hub.is_hub_name(str(source))
    return _read_rows(_hub_rows(str(source), split), str(source), fields, notes=[])


def load_splits(config: ProblemsConfig, *, seed: int) -> ProblemSplits:
    """Train, validation and test of `config.path`.

    A folder or hub data set brings its own test split; validation is cut from train by `seed` (or is the folder's
    own validation.jsonl). A lone file gives a tenth to test, chosen by the questions' hash whatever the seed, so that
    no seed ever trains on it, and up to another tenth to validation. Equal questions stay on one side of every cut.

    Raises UserError for a bad record, an empty or missing file, or a file too small to cut.
    """
    if config.path is None:
        raise UserError("problems.path is not set. Pass --problems.path with a file, a folder, or a hub name.")
    notes: list[str] = []
    fields = _Fields(config.question_field, config.answer_field, config.skip_bad_records)
    found = _read_all_splits(config.path, fields, notes)
    train, validation, test = found["train"], found.get("validation", ()), found.get("test", ())
    share = 4
    if not test:
        train, test = _cut(train, max(1, len(train) // 10), key="test")
        share = 9  # a tenth of the whole is a ninth of what is left
        notes.append(f"{config.path} has no test split: {len(test):,} problems were set aside as one, by question.")
    train = _without(train, test, "the test split", notes)
    if validation:
        validation = _without(validation, test, "the test split", notes)
        train = _without(train, validation, "the validation split", notes)
    else:
        count = min(config.validation, max(1, len(train) // share))
        train, validation = _cut(train, count, key=f"validation {seed}")
        fewer = f" ({config.validation:,} were asked for)" if count < config.validation else ""
        notes.append(f"{len(validation):,} of the training problems were set aside for validation{fewer}.")
    if not (train and validation and test):
        raise UserError(f"{config.path}: too few different problems to train, validate and test on; add more.")
    notes.append(f"{len(train):,} problems to train on, {len(validation):,} to validate, {len(test):,} to test.")
    if config.limit is not None:
        notes.append(f"Every split is limited to its first {config.limit:,} problems.")
    return ProblemSplits(
        train=train[: config.limit],
        validation=validation[: config.limit],
        test=test[: config.limit],
        notes=tuple(notes),
    )


def _read_all_splits(source: str, fields: _Fields, notes: list[str]) -> dict[str, tuple[Problem, ...]]:
    path = Path(source)
    if path.is_file():
        return {"train": _read_file(path, fields, notes)}
    if path.is_dir():
        found = {"train": _read_file(_split_file(path, "train"), fields, notes)}
        for split in ("validation", "test"):
            if any(path.glob(f"{split}.json*")):
                found[split] = _read_file(_split_file(path, split), fields, notes)
        return found
    hub.is_hub_name(source)
    rows = hub.read_splits(source, wanted=("train", "validation", "test"))
    if "train" not in rows:
        raise UserError(f"{source}: this data set has no train split, only {', '.join(rows)}.")
    return {split: _read_rows(_numbered(rows[split], split), source, fields, notes) for split in rows}


def _split_file(folder: Path, split: str) -> Path:
    for name in (f"{split}.jsonl", f"{split}.json"):
        if (folder / name).is_file():
            return folder / name
    present = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise UserError(f"{folder}: no {split}.jsonl in this folder (it holds {present}).")


def _hub_rows(source: str, split: str) -> Iterator[tuple[str, object]]:
    return _numbered(hub.read_rows(source, split=split), split)


def _numbered(rows: Iterable[object], label: str) -> Iterator[tuple[str, object]]:
    return ((f"{label}:{number}", row) for number, row in enumerate(rows, start=1))


def _read_file(path: Path, fields: _Fields, notes: list[str]) -> tuple[Problem, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    rows = _json_array(path, text) if text.lstrip().startswith("[") else _json_lines(text)
    return _read_rows(((f"{path.stem}:{number}", row) for number, row in rows), str(path), fields, notes)


def _json_array(path: Path, text: str) -> Iterator[tuple[int, object]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}).") from None
    return enumerate(rows, start=1)


def _json_lines(text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, error


def _read_rows(
    rows: Iterable[tuple[str, object]], source: str, fields: _Fields, notes: list[str]
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
        raise UserError(f"{source}: no problems in it. A problem is a line such as {_EXAMPLE}.")
    return tuple(problems)


_EXAMPLE = '{"question": "…", "answer": "… #### 72"}'


class _BadRecord(Exception):
    """Why one record is no problem; the caller knows the file and line."""


def _problem(row: object, identifier: str, fields: _Fields) -> Problem:
    if isinstance(row, json.JSONDecodeError):
        raise _BadRecord(f"not valid JSON ({row.msg} at column {row.colno}).")
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
    if equation.startswith("( ") and equation.endswith(" )"):
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


# --- splitting ---------------------------------------------------------------------------------------------------


def _cut(problems: Sequence[Problem], count: int, *, key: str) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """(rest, cut): about `count` problems, the ones whose question hashes lowest under `key`; file order kept.

    Hashing makes the choice a matter of the question, not of its line; equal questions fall on the same side.
    """
    by_hash = sorted({_same(p) for p in problems}, key=lambda text: sha256(f"{key}\n{text}".encode()).digest())
    chosen = set(by_hash[:count])
    return tuple(p for p in problems if _same(p) not in chosen), tuple(p for p in problems if _same(p) in chosen)


def _without(
    problems: Sequence[Problem], others: Sequence[Problem], where: str, notes: list[str]
) -> tuple[Problem, ...]:
    taken = {_same(p) for p in others}
    kept = tuple(p for p in problems if _same(p) not in taken)
    if len(kept) < len(problems):
        notes.append(f"{len(problems) - len(kept):,} problems were left out because their question is also in {where}.")
    return kept


def _same(problem: Problem) -> str:
    return " ".join(problem.question.lower().split())


# --- samples -----------------------------------------------------------------------------------------------------


def prompt_ids(problem: Problem | str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the bare question: what the model is given before it writes `<think>`."""
    question = problem if isinstance(problem, str) else problem.question
    return tokenizer.encode(question.strip())


def to_sample(problem: Problem, tokenizer: Tokenizer) -> Sample:
    """The question, then `<think>` rationale `</think><answer>` answer `</answer>`; targets from `<think>` on."""
    prompt = prompt_ids(problem, tokenizer)
    completion = [
        tokenizer.think_start,
        *tokenizer.encode(problem.rationale),
        tokenizer.think_end,
        tokenizer.answer_start,
        *tokenizer.encode(problem.answer),
        tokenizer.answer_end,
    ]
    return Sample(token_ids=(*prompt, *completion), loss_mask=(0,) * len(prompt) + (1,) * len(completion))


def to_samples(
    problems: Iterable[Problem], tokenizer: Tokenizer, *, block_size: int
) -> tuple[list[Sample], tuple[str, ...]]:
    """(samples, notes): every problem that fits in `block_size` tokens; notes say how many did not.

    Raises UserError when none is left.
    """
    samples = [to_sample(problem, tokenizer) for problem in problems]
    kept = [sample for sample in samples if len(sample.token_ids) <= block_size]
    too_long = len(samples) - len(kept)
    if not kept:
        raise UserError(
            f"None of {len(samples):,} problems fits in block_size {block_size} tokens; use a model with a larger "
            f"block_size, or shorter problems."
        )
    if not too_long:
        return kept, ()
    longest = max(len(sample.token_ids) for sample in samples)
    return kept, (
        f"{too_long:,} of {len(samples):,} problems were left out because they exceed block_size {block_size} "
        f"(the longest has {longest:,} tokens).",
    )
