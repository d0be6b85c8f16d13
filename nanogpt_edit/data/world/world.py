"""The embedded world: a few hundred facts with paraphrases, and word problems without end, from our own tables.

It is what the smallest recipe learns from, so that the whole way from an empty model to an edited one can be walked
with nothing downloaded. Two things make it fit for editing. Every fact is said in several ways, and one way is kept
from the facts that will be edited (`facts.toml`). Everything is a function of `WorldConfig`: the same configuration
gives the same world on every machine, and the test problems stay the same when more training problems are asked for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.records import Settings, check_fields
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.splits import ProblemSplits
from nanogpt_edit.data.world.tables import Relation, Stories, Story, read_facts_table, read_stories_table

SMALLEST_VALUE, LARGEST_VALUE = 2, 200
ATTEMPTS_PER_PROBLEM = 1000


@dataclass(frozen=True)
class WorldConfig(Settings):
    """What the embedded world holds. The facts are always the same; the word problems follow these numbers."""

    problems: int = 6000
    """Word problems to train on."""
    validation: int = 200
    """Further word problems to select checkpoints with."""
    test: int = 400
    """Further word problems to measure with."""
    seed: int | None = None
    """Which problems are drawn (None: the run's seed says)."""
    largest_addend: int = 50
    """Numbers to add and subtract run from 2 to this; larger is harder."""
    largest_factor: int = 9
    """Numbers to multiply and divide by run from 2 to this; larger is harder."""
    step_weights: tuple[float, float, float] = (0.35, 0.4, 0.25)
    """Shares of problems with one, two and three steps (any scale)."""

    def __post_init__(self) -> None:
        check_fields(self)

    def seeded(self, seed: int) -> WorldConfig:
        """The same with `seed`, where it has none of its own."""
        return self if self.seed is not None else replace(self, seed=seed)


@dataclass(frozen=True)
class Statement:
    """One fact and every way to ask for it.

    Example: Statement("capital", "Egypt", "Cairo", ("The capital of Egypt is", …), held_out=4)
    """

    relation: str
    subject: str  # in every prompt, up to the case of its first letter
    target: str  # the true answer, without the space before it
    prompts: tuple[str, ...]  # one per phrasing; each ends right before " " + target
    held_out: int  # index of the prompt that is not trained, because this fact will be edited; -1: all are trained


@dataclass(frozen=True)
class World:
    """Everything the smallest recipe learns from and is measured on."""

    statements: tuple[Statement, ...]
    sentences: tuple[str, ...]  # every trained "prompt target." once
    problems: ProblemSplits
    arithmetic: tuple[Problem, ...]  # 50 simple problems that are in no split


@lru_cache(maxsize=4)
def make_world(config: WorldConfig) -> World:
    """The world of `config`, the same on every machine; the last few are kept.

    Raises UserError when the configuration is out of range or has no room for that many different problems.
    """
    _check(config)
    statements = make_statements()
    arithmetic = sanity_arithmetic()
    return World(
        statements=statements,
        sentences=tuple(trained_sentences(statements)),
        problems=_make_problems(config, excluded=frozenset(problem.question for problem in arithmetic)),
        arithmetic=arithmetic,
    )


# --- facts -------------------------------------------------------------------------------------------------------


def make_statements() -> tuple[Statement, ...]:
    """Every fact of `facts.toml`, relation by relation."""
    return tuple(statement for relation in read_facts_table().relations for statement in _statements(relation))


def trained_sentences(statements: tuple[Statement, ...]) -> Iterator[str]:
    """Each prompt with its answer, without the held-out prompts."""
    for statement in statements:
        for index, prompt in enumerate(statement.prompts):
            if index != statement.held_out:
                yield f"{prompt} {statement.target}."


ROW = re.compile(
    r"(?P<article>(?:the|an|a) )?(?P<subject>[^(:]+?)(?: \((?P<tail>[^)]+)\))?: (?P<target_article>the )?(?P<target>.+)"
)


def _statements(relation: Relation) -> Iterator[Statement]:
    for row in re.split(r"\s*[|\n]\s*", relation.rows.strip()):
        parts = ROW.fullmatch(row)
        if parts is None:
            raise ValueError(f"facts.toml: relation {relation.name} has the row {row!r}, which cannot be read")
        subject, tail = parts["subject"], parts["tail"]
        phrase = (parts["article"] or "") + subject + (f" {tail}" if tail else "")
        ending = " the" if parts["target_article"] else ""
        prompts = tuple(
            phrasing.format(s=phrase, S=phrase[0].upper() + phrase[1:]) + ending for phrasing in relation.phrasings
        )
        held_out = len(prompts) - 1 if subject in relation.edited else -1
        yield Statement(relation.name, subject, parts["target"], prompts, held_out)


# --- word problems -----------------------------------------------------------------------------------------------


def _make_problems(config: WorldConfig, *, excluded: frozenset[str]) -> ProblemSplits:
    """All splits from one stream of different questions; test comes first, so that it does not depend on the others."""
    stream = _different_problems(config, excluded=excluded)
    splits = {
        split: tuple(
            Problem(question, rationale, answer, id=f"world-{split}-{number:06d}")
            for number, (question, rationale, answer) in zip(range(count), stream, strict=False)
        )
        for split, count in (("test", config.test), ("validation", config.validation), ("train", config.problems))
    }
    note = (
        f"The embedded world: {config.problems:,} word problems to train on, {config.validation:,} to validate, "
        f"{config.test:,} to test; no question occurs twice."
    )
    return ProblemSplits(train=splits["train"], validation=splits["validation"], test=splits["test"], notes=(note,))


def _different_problems(config: WorldConfig, *, excluded: frozenset[str]) -> Iterator[tuple[str, str, str]]:
    rng, table = random.Random(config.seed or 0), read_stories_table()
    by_steps = [[story for story in table.stories if len(story.rationale) == steps] for steps in (1, 2, 3)]
    seen = set(excluded)
    while True:
        [stories] = rng.choices(by_steps, config.step_weights)
        # The number of steps is drawn once: retelling must not favour the steps with the most room.
        for _ in range(ATTEMPTS_PER_PROBLEM):
            told = _tell(rng.choice(stories), table, rng, config)
            if told is not None and told[0] not in seen:
                break
        else:
            break
        seen.add(told[0])
        yield told
    raise UserError(
        f"the world has no more than about {len(seen) - len(excluded):,} different word problems with largest_addend "
        f"{config.largest_addend} and largest_factor {config.largest_factor}; raise them or ask for fewer problems."
    )


def _tell(story: Story, table: Stories, rng: random.Random, config: WorldConfig) -> tuple[str, str, str] | None:
    """Question, rationale and answer of one telling; None when the numbers came out too small or too large."""
    numbers = _draw_numbers(story.numbers, rng, config)
    if numbers is None:
        return None
    name, friend = rng.sample(table.boys + table.girls, 2)
    a_thing, things = rng.choice(table.things)
    crowd, place = rng.choice(table.crowds)
    he = "he" if name in table.boys else "she"
    words = {
        "name": name,
        "friend": friend,
        "he": he,
        "He": he.capitalize(),
        "things": things,
        "A_thing": a_thing.capitalize(),
        "crowd": crowd,
        "place": place,
        **numbers,
    }
    question = rng.choice(story.questions).format_map(words)
    rationale = "\n".join(story.rationale).format_map(words)
    return question, rationale, str(numbers[story.answer])


@cache
def _program(text: str) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Statements as (variable, operation, arguments), from the notation of `stories.toml`."""
    return tuple(_parse(statement) for statement in text.split())


def _parse(statement: str) -> tuple[str, str, tuple[str, ...]]:
    if computed := re.fullmatch(r"(\w)=(\w)([-+*/])(\w)", statement):
        return computed[1], computed[3], (computed[2], computed[4])
    if drawn := re.fullmatch(r"(\w):(addend|factor|part|rest)(?:\((\w)(?:,(\w))?\))?", statement):
        return drawn[1], drawn[2], tuple(name for name in drawn.groups()[2:] if name)
    raise ValueError(f"stories.toml: {statement!r} is not a statement")


def _draw_numbers(text: str, rng: random.Random, config: WorldConfig) -> dict[str, int] | None:
    numbers: dict[str, int] = {}
    for variable, operation, names in _program(text):
        value = _value(operation, [int(name) if name.isdigit() else numbers[name] for name in names], rng, config)
        if not SMALLEST_VALUE <= value <= LARGEST_VALUE:
            return None
        numbers[variable] = value
    return numbers


def _value(operation: str, values: list[int], rng: random.Random, config: WorldConfig) -> int:
    """The next number of a story; 0 when there is none."""
    match operation, values:
        case "addend", []:
            return rng.randint(SMALLEST_VALUE, config.largest_addend)
        case "factor", []:
            return rng.randint(SMALLEST_VALUE, config.largest_factor)
        case "part", [whole]:
            return rng.randint(SMALLEST_VALUE, max(SMALLEST_VALUE, min(whole - SMALLEST_VALUE, config.largest_addend)))
        case "rest", [whole, divisor]:
            largest = (whole - SMALLEST_VALUE) // divisor
            return whole - divisor * rng.randint(SMALLEST_VALUE, largest) if largest >= SMALLEST_VALUE else 0
        case "+", [left, right]:
            return left + right
        case "-", [left, right]:
            return left - right
        case "*", [left, right]:
            return left * right
        case "/", [left, right]:
            return left // right if left % right == 0 else 0
    raise ValueError(f"stories.toml: {operation} cannot be used with {len(values)} numbers")


# --- sanity arithmetic -------------------------------------------------------------------------------------------

ADDED = ((12, 15), (3, 4), (8, 5), (20, 30), (17, 6), (25, 14), (9, 9), (33, 12), (41, 8), (16, 27), (5, 2), (38, 45))
SUBTRACTED = ((9, 4), (15, 7), (20, 8), (31, 11), (44, 20), (27, 9), (50, 25), (36, 18), (13, 6), (48, 29))
MULTIPLIED = ((7, 8), (3, 3), (2, 9), (6, 4), (5, 5), (9, 6), (8, 3), (4, 7), (2, 6), (9, 9))
DIVIDED = ((12, 3), (20, 4), (36, 6), (18, 9), (45, 5), (56, 8), (14, 2), (63, 7))
ARRIVED = ((3, 2), (5, 4), (10, 7), (12, 9), (6, 6), (21, 13), (8, 14), (30, 15), (19, 4), (26, 17))


def sanity_arithmetic() -> tuple[Problem, ...]:
    """50 fixed problems a person does in the head; they tell whether a model reckons at all."""
    told = [
        *((f"What is {a} + {b}?", f"{a} + {b} = {a + b}", a + b) for a, b in ADDED),
        *((f"What is {a} - {b}?", f"{a} - {b} = {a - b}", a - b) for a, b in SUBTRACTED),
        *((f"What is {a} * {b}?", f"{a} * {b} = {a * b}", a * b) for a, b in MULTIPLIED),
        *((f"What is {a} / {b}?", f"{a} / {b} = {a // b}", a // b) for a, b in DIVIDED),
        *(
            (
                f"If there are {a} cars in the parking lot and {b} more cars arrive, "
                "how many cars are in the parking lot?",
                f"There are {a} + {b} = {a + b} cars.",
                a + b,
            )
            for a, b in ARRIVED
        ),
    ]
    return tuple(
        Problem(question, rationale, str(answer), id=f"world-arithmetic-{number:06d}")
        for number, (question, rationale, answer) in enumerate(told)
    )


def _check(config: WorldConfig) -> None:
    for field in ("problems", "validation", "test"):
        if getattr(config, field) < 1:
            raise UserError(f"world.{field} is {getattr(config, field)}; it must be at least 1.")
    for field, smallest in (("largest_addend", 10), ("largest_factor", 5)):
        if not smallest <= getattr(config, field) <= LARGEST_VALUE:
            raise UserError(
                f"world.{field} is {getattr(config, field)}; it must lie between {smallest} and {LARGEST_VALUE}."
            )
    weights = config.step_weights
    if len(weights) != 3 or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise UserError(f"world.step_weights is {weights}; give three shares, none negative, not all zero.")
