"""The one exception that people are meant to read, and what helps to say it: the nearest known name, the bound a number
must keep, text made safe to show."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Control characters but newline and tab, and those that turn the direction of writing.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

MOST_QUOTED = 120  # characters of a prompt, an answer, a name


class UserError(Exception):
    """A mistake a person can mend. The message is a whole sentence: what was found, where, and what to do.

    The command line prints it as one line and exits with status 2; nothing half-written is left behind. Where it is
    about a `field`, the sentence begins with its name; before both stands the `place`, "config.json:".
    """

    def __init__(self, said: str, *, field: str = "", place: str = "") -> None:
        super().__init__(said)
        self.said, self.field, self.place = said, field, place

    def __str__(self) -> str:
        return " ".join(part for part in (self.place, self.field, self.said) if part)

    def at(self, place: str) -> UserError:
        """The same mistake, with `place` before what it says of its place."""
        return UserError(self.said, field=self.field, place=f"{place} {self.place}".rstrip())


@contextmanager
def about(what: str) -> Iterator[None]:
    """Errors inside begin with what they are about: a field that a person may never have typed, a function's name."""
    try:
        yield
    except UserError as error:
        raise error.at(f"{what}:") from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about a misspelt word: '; did you mean "steps"?' when one is near, else '.'."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else "."


def at_least(bound: int, settings: object, *names: str) -> None:
    """Raise UserError for the first of these fields of `settings` that is a number below `bound`, or NaN."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            wanted = f"must be at least {bound}" if bound else "cannot be negative"
            raise UserError(f"is {value}; it {wanted}.", field=name)


def quoted(text: str) -> str:
    """Text from elsewhere within a sentence: of a long one the beginning and the end."""
    return f'"{text}"' if len(text) <= MOST_QUOTED else f'"{text[:60]} … {text[-30:]}" ({len(text):,} characters)'


def visible(text: str) -> str:
    r"""Text from elsewhere for a terminal: what would move its cursor or change its colours stands as \x1b, \r, …"""
    return UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


def reason_of(error: OSError | ValueError) -> str:
    """Why the operating system, or Python before it, refused a path: "permission denied"."""
    found = error.strerror if isinstance(error, OSError) else None
    return (found or str(error)).lower()


def unreadable(path: object, error: OSError | ValueError) -> str:
    """The sentence about a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file."
    if isinstance(error, IsADirectoryError):
        return f"{path}: a folder, where a file was expected."
    return f"{path}: it cannot be read ({reason_of(error)})."
