"""Tokens that come one by one, as text that can be shown at once: whole characters only, and nothing of a stop."""

from __future__ import annotations

from collections.abc import Sequence

from nanogpt_edit.engine.completion import FinishReason, Fresh, Look
from nanogpt_edit.model.tokenizer import Tokenizer

HALF = "\ufffd"  # what stands for a character of which not all bytes have come


class Writing:
    """One text while it is written. `add` returns what can be shown of it by now that could not before."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, silent: frozenset[int] | None = None
    ) -> None:
        """The tokens `silent` (None: those that end a text) are not shown."""
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.silent = tokenizer.end_ids if silent is None else silent
        self.token_ids: list[int] = []
        self.offsets: list[int] = []  # where in the text each token begins
        self.looks: list[Look] = []
        self.finish_reason: FinishReason | None = None
        self.text = ""  # up to a stop
        self.shown = 0  # characters of it
        self._seen: list[int] = []  # the tokens that are text
        self._clean = self._read = 0  # up to where they are whole characters, and the place one such earlier

    def add(self, written: Sequence[Fresh]) -> str:
        """Take in tokens; nothing more is taken in once the text is finished.

        They are taken one by one only where that matters: for stop texts, and for where in the text each token begins.
        Reading tokens as text is a good part of an answer's work.
        """
        if self.stops or any(each.look is not None for each in written):
            return "".join(self._add_one(each) for each in written)
        if self.finish_reason is not None or not written:
            return ""
        return self.take([each.token_id for each in written], written[-1].finish_reason)

    def _add_one(self, fresh: Fresh) -> str:
        if self.finish_reason is not None:
            return ""
        if fresh.look is not None:
            self.looks.append(fresh.look)
        return self.take([fresh.token_id], fresh.finish_reason)

    def take(self, token_ids: Sequence[int], finish_reason: FinishReason | None = None) -> str:
        """As `add`, for tokens of which nothing else is known; for `offsets` they all begin where the first does."""
        self.token_ids += token_ids
        self.offsets += [len(self.text)] * len(token_ids)
        self._seen += [token_id for token_id in token_ids if token_id not in self.silent]
        return self._extend(self._whole(last=finish_reason is not None), finish_reason)

    def cut(self) -> str:
        """Nothing more comes: what has been written is the text."""
        return self._extend(self._whole(last=True), "length") if self.finish_reason is None else ""

    def _whole(self, *, last: bool) -> str:
        """The characters that have become whole. They are read together with the few tokens before them, for what a
        token looks like can hang on its neighbour."""
        before = self.tokenizer.decode(self._seen[self._read : self._clean])
        now = self.tokenizer.decode(self._seen[self._read :])
        if len(now) <= len(before) or (now.endswith(HALF) and not last):
            return ""
        self._read, self._clean = self._clean, len(self._seen)
        return now[len(before) :]

    def _extend(self, piece: str, finish_reason: FinishReason | None) -> str:
        begun = max(0, len(self.text) - max(map(len, self.stops), default=0))
        self.text += piece
        found = [(at + len(stop), at) for stop in self.stops if (at := self.text.find(stop, begun)) >= 0]
        if found:  # the one that is whole first ends the text, however it was cut into tokens
            _, at = min(found)
            self.text, finish_reason = self.text[:at], "stop"
        self.finish_reason = finish_reason
        ready = len(self.text) - (0 if finish_reason else self._held_back())
        shown, self.shown = self.text[self.shown : ready], max(self.shown, ready)
        return shown

    def _held_back(self) -> int:
        """How many characters at the end may be the beginning of a stop."""
        lengths = (n for stop in self.stops for n in range(len(stop) - 1, 0, -1) if self.text.endswith(stop[:n]))
        return max(lengths, default=0)


def offsets_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[int]:
    """Where in its text each token begins, in characters; a character of several tokens begins with the first."""
    writing = Writing(tokenizer, silent=frozenset())
    for token_id in token_ids:
        writing.take([token_id])
    return writing.offsets
