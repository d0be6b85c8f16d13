"""Arguments as text -> a dataclass, by tyro; a bad argument becomes one sentence."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from nanogpt_edit.errors import UserError
from nanogpt_edit.settings import NONE
from nanogpt_edit.typed import check_fields

Arguments = TypeVar("Arguments")
REGISTRY = ConstructorRegistry()
OPTIONAL = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}
RULE = re.compile(r"[─\-+╭╮╰╯ ]+")  # a line of a box that holds no text


def parse(kind: type[Arguments], arguments: Sequence[str], *, verb: str, default: Arguments | None = None) -> Arguments:
    """Fill a `kind`; what is not given comes from `default`. `--help` prints every field and exits.

    Raises UserError for an unknown, malformed or missing argument.
    """
    complaint = io.StringIO()
    program = f"nanogpt-edit {verb}"
    try:
        with contextlib.redirect_stderr(complaint), REGISTRY:
            if default is None:
                chosen = tyro.cli(kind, prog=program, args=list(arguments))
            else:
                chosen = tyro.cli(kind, prog=program, args=list(arguments), default=default)
        check_fields(chosen)
    except UserError as error:
        raise UserError(_placed(str(error), arguments)) from None
    except SystemExit as exit_:
        if not exit_.code:
            sys.stdout.flush()
            raise
        raise UserError(f"{_sentence(complaint.getvalue())} {program} --help explains the arguments.") from None
    return chosen


@REGISTRY.primitive_rule
def _weights(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, float]] | None:
    """Weights by name: `accuracy=1 format=0.1`. What is given takes the place of all the default names."""
    if info.type != dict[str, float]:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=WEIGHT …",
        instance_from_str=lambda words: dict(map(_weight, words)),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={weight:g}" for name, weight in value.items()],
    )


def _weight(word: str) -> tuple[str, float]:
    name, _, weight = word.rpartition("=")
    try:
        return name or weight, float(weight)
    except ValueError:
        raise ValueError(f'"{word}" is not a name and a weight, as in accuracy=1') from None


@REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A value or None, which may be written "none", as in a recipe."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if get_origin(info.type) not in (Union, UnionType) or len(kinds) != 1 or kinds[0] not in OPTIONAL:
        return None
    (kind,) = kinds
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{None}}|{OPTIONAL[kind]}",
        instance_from_str=lambda words: None if words[0].lower() == NONE else kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def _placed(sentence: str, arguments: Sequence[str]) -> str:
    """'steps is -5; …' -> 'grpo.steps is -5; …', where only one argument of that name was given."""
    names = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word[:2] == "--"}
    meant = [name for name in names if name.rpartition(".")[2] == sentence.partition(" ")[0]]
    return sentence if len(meant) != 1 else f"{meant[0]}{sentence[len(sentence.partition(' ')[0]) :]}"


def _sentence(box: str) -> str:
    """The message in tyro's box, without the box: its first paragraph, and the argument it thinks was meant."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│| \t") for line in plain.splitlines()[1:]]  # the first is the box's title
    paragraphs = "\n".join("" if RULE.fullmatch(line) else line for line in lines).strip().split("\n\n")
    sentence = " ".join(paragraphs[0].split()).removesuffix(" (required)").rstrip(".")
    sentence = re.sub(r"invalid literal for int\(\) with base 10: ('.*')", r"\1 is not a whole number", sentence)
    sentence = re.sub(r"could not convert string to float: ('.*')", r"\1 is not a number", sentence)
    sentence = sentence[:1].lower() + sentence[1:]
    if missing := re.match(r"missing from nanogpt-edit [^:]*: ", sentence):
        arguments = re.findall(
            r"(--\S+ (?:\[\S+ \[\S+ \.\.\.\]\]|\S+)|\S+) (.+?)\.?(?: \(required\) |$)", sentence[missing.end() :]
        )
        sentence = "missing: " + " and ".join(f"{name} ({meaning})" for name, meaning in arguments)
    meant = re.search(r"erhaps you meant:\s+(--[\w.-]+)", re.sub("[│|]", "", plain))
    return f"{sentence}; did you mean {meant[1]}?" if meant else f"{sentence}."
