"""Arguments as text -> a dataclass, by tyro; a bad argument becomes one sentence."""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from nanogpt_edit.commands.flags import Flag, given_flags, weight
from nanogpt_edit.common.errors import UserError, did_you_mean
from nanogpt_edit.common.records import check_fields
from nanogpt_edit.common.settings import NONE

Arguments = TypeVar("Arguments")
REGISTRY = ConstructorRegistry()
OPTIONAL = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def parse(kind: type[Arguments], arguments: Sequence[str], *, verb: str, default: Arguments | None = None) -> Arguments:
    """Fill a `kind`; what is not given comes from `default`. `--help` prints every field and exits.

    Raises UserError for an unknown, malformed or missing argument. What only tyro refuses it says itself, and exits
    with 2.
    """
    program = f"nanogpt-edit {verb}"
    given: list[Flag] = []
    if not {"-h", "--help"} & set(arguments):
        try:
            given = given_flags(kind, arguments, default=default)
        except UserError as error:
            raise UserError(f"{error} {program} --help explains the arguments.") from None
    try:
        with REGISTRY:
            what, words = description(kind), list(arguments)
            if default is None:
                chosen = tyro.cli(kind, prog=program, description=what, args=words)
            else:
                chosen = tyro.cli(kind, prog=program, description=what, args=words, default=default)
        check_fields(chosen)
    except UserError as error:
        raise _flagged(error, given) from None
    except SystemExit:
        sys.stdout.flush()
        raise
    return chosen


def run_inner(
    kinds: Mapping[str, type[Any]], arguments: Sequence[str], *, verb: str, work: Callable[[str, Any], int]
) -> int:
    """Run the one that comes first among the verbs that a verb has: `work(its name, its arguments)`.

    `--help` lists them. Raises UserError, with the nearest, for a verb that is none.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, kinds)) + 2
        fold = textwrap.TextWrapper(shutil.get_terminal_size().columns, subsequent_indent=" " * (2 + width))
        lines = [fold.fill(f"  {inner:<{width}}{kind.__doc__}") for inner, kind in kinds.items()]
        print(f"usage: nanogpt-edit {verb} VERB [arguments]\n", *lines, sep="\n")
        print(f"\nnanogpt-edit {verb} VERB --help explains the arguments.")
        return 0
    if name not in kinds:
        raise UserError(f'{verb} has no verb "{name}"{did_you_mean(name, kinds)} It has: {", ".join(kinds)}.')
    return work(name, parse(kinds[name], arguments[1:], verb=f"{verb} {name}"))


def description(kind: type) -> str:
    """What `--help` begins with: the docstring, in lines no longer than the terminal's.

    Of the line breaks that tyro is given it keeps only those before a space.
    """
    lines = textwrap.TextWrapper(shutil.get_terminal_size().columns, subsequent_indent="  ", break_on_hyphens=False)
    return "\n\n".join(map(lines.fill, (inspect.getdoc(kind) or "").split("\n\n")))


@REGISTRY.primitive_rule
def _weights(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, float]] | None:
    """Weights by name: `accuracy=1 format=0.1`. What is given takes the place of all the default names."""
    if info.type != dict[str, float]:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=WEIGHT …",
        instance_from_str=lambda words: dict(map(weight, words)),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={weight:g}" for name, weight in value.items()],
    )


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


def _flagged(error: UserError, given: Sequence[Flag]) -> UserError:
    """A mistake in `steps` as one in `grpo.steps`, where only one flag of that name was given."""
    meant = {flag.field for flag in given if flag.field.rpartition(".")[2] == error.field}
    return UserError(error.said, field=meant.pop(), place=error.place) if len(meant) == 1 else error
