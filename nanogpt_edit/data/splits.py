"""Which word problems a model learns from, which choose among its states, and which it is measured on.

Three rules. The test split gives nothing to validation and shares no question with training. Equal questions stay on
one side of every cut. Whatever is cut, skipped or limited is said in `notes`, with its count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from nanogpt_edit.common.errors import UserError, at_least
from nanogpt_edit.common.records import Settings, check_fields
from nanogpt_edit.data.problems import Fields, Problem, read_all_splits


@dataclass(frozen=True)
class ProblemSplits:
    """Train, validation and test problems, and what a person should know about how they came to be."""

    train: tuple[Problem, ...]
    validation: tuple[Problem, ...]  # cut from train, never from test
    test: tuple[Problem, ...]
    notes: tuple[str, ...]  # whole sentences with counts: what was cut, skipped, limited


@dataclass(frozen=True)
class ProblemsConfig(Settings):
    """Which word problems to learn from."""

    path: str | None = None
    """A file (.jsonl, .json, .parquet; also .gz), a folder with train.jsonl and test.jsonl, a hub name (openai/gsm8k),
    or example: twenty problems that come with the package. None: the embedded world's problems."""
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

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(1, self, "validation", "limit")


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
    fields = Fields(config.question_field, config.answer_field, config.skip_bad_records)
    found = read_all_splits(config.path, fields, notes)
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
        different = len({_same(problem) for problems in found.values() for problem in problems})
        raise UserError(
            f"{config.path}: {different:,} different problems are too few to divide into those to train, to validate "
            "and to test on; add more."
        )
    notes.append(f"{len(train):,} problems to train on, {len(validation):,} to validate, {len(test):,} to test.")
    if config.limit is not None:
        notes.append(f"Every split is limited to its first {config.limit:,} problems.")
    return ProblemSplits(
        train=train[: config.limit],
        validation=validation[: config.limit],
        test=test[: config.limit],
        notes=tuple(notes),
    )


def split_problems(problems: Sequence[Problem], *, validation: int, seed: int) -> ProblemSplits:
    """Problems at hand, of which up to a tenth validates; none is set aside to test on.

    Raises UserError where fewer than two are different.
    """
    train, chosen = _cut(problems, min(validation, max(1, len(problems) // 10)), key=f"validation {seed}")
    if not train:
        raise UserError("problems: fewer than two of them are different, and one has to validate; give more.")
    notes = (f"{len(train):,} problems to train on, {len(chosen):,} of those given set aside to validate.",)
    return ProblemSplits(train=train, validation=chosen, test=(), notes=notes)


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
