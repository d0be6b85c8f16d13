"""What `facts.toml` and `stories.toml` hold; each says itself how it is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nanogpt_edit.common.settings import read_settings

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Relation:
    """One relation: how it is said, what is true, and whose answer the edit cases change."""

    name: str
    phrasings: tuple[str, ...]  # the last one is held out from the edited subjects
    rows: str  # "Egypt: Cairo | Peru: Lima", separated by " | " or line breaks
    edited: tuple[str, ...] = ()  # subjects, without article and tail


@dataclass(frozen=True)
class Facts:
    relations: tuple[Relation, ...]


@dataclass(frozen=True)
class Story:
    """One story type. The number of rationale lines is its number of steps."""

    kind: str
    numbers: str  # the program that draws the numbers
    questions: tuple[str, ...]  # wordings, all with the same meaning
    rationale: tuple[str, ...]  # one line per step, each with its equation
    answer: str  # name of the number asked for


@dataclass(frozen=True)
class Stories:
    """The story types, and who and what they are about."""

    boys: tuple[str, ...]
    girls: tuple[str, ...]
    things: tuple[tuple[str, str], ...]  # ("a book", "books")
    crowds: tuple[tuple[str, str], ...]  # ("cars", "in the parking lot")
    stories: tuple[Story, ...]


@cache
def read_facts_table() -> Facts:
    return read_settings(Facts, HERE / "facts.toml")


@cache
def read_stories_table() -> Stories:
    return read_settings(Stories, HERE / "stories.toml")
