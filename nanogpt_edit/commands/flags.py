"""The words of a command line, held against the flags of a dataclass: a wrong one is named in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import Lost, read_float
from nanogpt_edit.common.records import default_of
from nanogpt_edit.common.settings import NONE

MOST_SHOWN, MOST_LISTED = 60, 6  # characters of a word, words


@dataclass(frozen=True)
class Flag:
    """One flag, or one argument that stands by its place."""

    name: str
    """--grpo.steps, or MODEL"""
    kind: object
    needed: bool

    @property
    def field(self) -> str:
        """As a recipe writes it: "grpo.learning_rate"."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def items(self) -> tuple[object, int | None]:
        """The type of its values (of a pair: of the first), and how many there are (None: any number)."""
        kind, arguments = _without_none(self.kind), get_args(_without_none(self.kind))
        if get_origin(kind) is tuple:
            return arguments[0], None if arguments[-1] is ... else len(arguments)
        return (kind, None) if get_origin(kind) is dict else (kind, 0 if kind is bool else 1)

    def check(self, words: Sequence[str]) -> None:
        """Raise UserError for a value too few, or one that is not of the flag's type."""
        kind, count = self.items
        if len(words) < (count or 0):
            raise UserError(f"missing value for argument '{self.name}': it takes {count}, found {len(words)}.")
        mixed = count is not None and count > 1
        kinds = get_args(_without_none(self.kind)) if mixed else (kind,) * len(words)
        for each, word in zip(kinds, words, strict=False):
            self._check_value(each, word)
        names = [weight(word)[0] for word in words] if get_origin(kind) is dict else []
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{self.name} names {_short(twice[0])} twice; give each one weight.")

    def _check_value(self, kind: object, word: str) -> None:
        shown = repr(_short(word))
        if kind != self.kind and word.lower() == NONE and NoneType in get_args(self.kind):
            return
        if get_origin(kind) is Literal and word not in get_args(kind):
            wanted = ", ".join(get_args(kind))
            raise UserError(f"invalid choice {shown} for argument '{self.name}'. It is one of {wanted}.")
        if kind is Path and not word:
            raise UserError(f"{self.name} is an empty word; name a place, as . for the folder this was started in.")
        try:
            if kind in (int, float):
                int(word) if kind is int else read_float(word)
            elif get_origin(kind) is dict:
                weight(word)
        except Lost as error:
            raise UserError(f"error parsing {self.name}: {error}.") from None
        except ValueError:
            wanted = "a whole number" if kind is int else "a number" if kind is float else WEIGHT
            raise UserError(f"error parsing {self.name}: {shown} is not {wanted}.") from None


WEIGHT = "a name and a weight, as in accuracy=1"


def weight(word: str) -> tuple[str, float]:
    """'accuracy=1' -> ("accuracy", 1.0). Raises ValueError."""
    name, _, number = word.rpartition("=")
    return name or number, read_float(number)


def flags_of(kind: type, default: object = None, prefix: str = "") -> Iterator[Flag]:
    """Every flag and argument of a dataclass, nested ones as tyro names them; what `default` fills is not needed."""
    assert is_dataclass(kind)
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        found, *marks = (
            get_args(hints[field.name]) if get_origin(hints[field.name]) is Annotated else [hints[field.name]]
        )
        named: str | None = next((mark.name for mark in marks if hasattr(mark, "name")), None)
        metavar: str | None = next((mark.metavar for mark in marks if hasattr(mark, "metavar")), None)
        may_be_empty = metavar is not None and get_origin(found) is tuple
        needed = default is None and default_of(field) is MISSING and not may_be_empty
        if is_dataclass(found):
            assert isinstance(found, type)
            inner = prefix if named == "" else f"{prefix}{field.name}."
            yield from flags_of(found, getattr(default, field.name, None), inner)
        elif tyro.conf.Suppress not in marks:
            yield Flag(metavar or f"--{prefix}{field.name}".replace("_", "-"), found, needed)


def given_flags(kind: type, words: Sequence[str], *, default: object = None) -> list[Flag]:
    """The flags among the words, in their order.

    Raises UserError for an unknown one (with the nearest known one), a value of the wrong type and what is missing.
    """
    known = list(flags_of(kind, default))
    by_name = {flag.name: flag for flag in known if flag.name.startswith("--")}
    places = [flag for flag in known if flag.name not in by_name]
    given, loose = _assign(words, by_name, reserved=sum(flag.needed for flag in places))
    for flag in places:
        count = len(loose) if flag.items[1] is None else 1
        if loose:
            flag.check(loose[:count])
        given += [flag] * bool(loose[:count])
        loose = loose[count:]
    if loose:
        raise UserError(f"unrecognized options: {_listed(loose)}.")
    tables = [flag.name for flag in given if get_origin(flag.items[0]) is dict]
    if twice := [name for name in tables if tables.count(name) > 1]:  # of any other flag the last word counts
        raise UserError(f"{twice[0]} is given twice; give all its names and weights at once.")
    if missing := [flag.name for flag in known if flag.needed and flag not in given]:
        raise UserError(f"missing: {' and '.join(missing)}.")
    return given


def _assign(words: Sequence[str], known: dict[str, Flag], *, reserved: int) -> tuple[list[Flag], list[str]]:
    """The flags given, their values checked, and the words that are no flag's; `reserved` of these must be left."""
    given: list[Flag] = []
    loose: list[str] = []
    groups = list(_groups(words))
    for number, (name, values) in enumerate(groups):
        flag = known.get(name) or _negated(known, name)
        if flag is None:
            if name:
                raise UserError(_unknown(name, values, known))
            loose += values
            continue
        count = flag.items[1]
        if count is None:  # all that follow, but at the end what arguments without a name still need
            wanted = max(0, reserved - len(loose)) if number == len(groups) - 1 else 0
            count = max(0, len(values) - wanted)
        flag.check(values[:count])
        given.append(flag)
        loose += values[count:]
    return given, loose


def _groups(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the words up to the next one; what stands before the first, or behind "--", goes by no name."""
    name, values = "", list[str]()
    for number, word in enumerate(words):
        if word == "--":
            yield name, values
            name, values = "", list(words[number + 1 :])
            break
        if word.startswith("--"):
            yield name, values
            name, equals, value = word.partition("=")
            name, values = "--" + name[2:].replace("_", "-"), [value] if equals else []
        else:
            values.append(word)
    yield name, values


def _negated(flags: dict[str, Flag], name: str) -> Flag | None:
    """--no-shard is about --shard."""
    start, dot, last = name.removeprefix("--").rpartition(".")
    flag = flags.get(f"--{start}{dot}{last.removeprefix('no-')}")
    return flag if flag is not None and flag.kind is bool else None


def _unknown(name: str, values: Sequence[str], known: dict[str, Flag]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.6) or [
        each for each in known if each.rpartition(".")[2] == name.removeprefix("--")
    ]
    return f"unrecognized options: {_listed([name, *values])}{f'; did you mean {near[0]}?' if near else '.'}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(map(_short, words[:MOST_LISTED])) + (", …" if len(words) > MOST_LISTED else "")


def _short(word: str) -> str:
    return word if len(word) <= MOST_SHOWN else word[: MOST_SHOWN - 1] + "…"


def _without_none(kind: object) -> object:
    rest = [each for each in get_args(kind) if each is not NoneType]
    return rest[0] if get_origin(kind) in (Union, UnionType) and len(rest) == 1 else kind
