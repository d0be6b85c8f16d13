"""The one exception that people are meant to read, and the hint that mends a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake a person can mend. The message is a whole sentence: what was found, where, and what to do.

    The command line prints it as one line and exits with status 2; nothing half-written is left behind.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about a misspelt word: '; did you mean "steps"?' when one is near, else '.'."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else "."
