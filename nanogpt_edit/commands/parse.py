"""Arguments as text -> a dataclass, by tyro; a bad argument becomes one sentence."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import TypeVar

import tyro

from nanogpt_edit.errors import UserError

Arguments = TypeVar("Arguments")
RULE = re.compile(r"[─\-+╭╮╰╯ ]+")  # a line of a box that holds no text


def parse(kind: type[Arguments], arguments: Sequence[str], *, verb: str, default: Arguments | None = None) -> Arguments:
    """Fill a `kind`; what is not given comes from `default`. `--help` prints every field and exits.

    Raises UserError for an unknown, malformed or missing argument.
    """
    complaint = io.StringIO()
    program = f"nanogpt-edit {verb}"
    try:
        with contextlib.redirect_stderr(complaint):
            if default is None:
                return tyro.cli(kind, prog=program, args=list(arguments))
            return tyro.cli(kind, prog=program, args=list(arguments), default=default)
    except SystemExit as exit_:
        if not exit_.code:
            sys.stdout.flush()
            raise
        raise UserError(f"{_sentence(complaint.getvalue())} {program} --help explains the arguments.") from None


def _sentence(box: str) -> str:
    """The message in tyro's box, without the box: its first paragraph, and the argument it thinks was meant."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│| \t") for line in plain.splitlines()[1:]]  # the first is the box's title
    paragraphs = "\n".join("" if RULE.fullmatch(line) else line for line in lines).strip().split("\n\n")
    sentence = " ".join(paragraphs[0].split()).removesuffix(" (required)").rstrip(".")
    sentence = re.sub(r"^missing from nanogpt-edit [^:]*:", "missing:", sentence[:1].lower() + sentence[1:])
    meant = re.search(r"erhaps you meant:\s+(--[\w.-]+)", re.sub("[│|]", "", plain))
    return f"{sentence}; did you mean {meant[1]}?" if meant else f"{sentence}."
