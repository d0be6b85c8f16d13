"""One completion, token by token: position, id, text, and whether the model was thinking or answering.

A token's kind follows from the tags before it: "think" from `<think>` on, "answer" from `<answer>` on, "outside"
elsewhere, until the next tag; the tags themselves are "tag". The counts of thinking and answer tokens are the counts
of those kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from nanogpt_edit.common.errors import visible
from nanogpt_edit.common.reasoning import AFTER, TokenKind, split_completion
from nanogpt_edit.common.words import count
from nanogpt_edit.evaluation.records import Transcript

if TYPE_CHECKING:
    from nanogpt_edit.model.tokenizer import Tokenizer

STYLES: dict[TokenKind, str] = {"think": "dim", "answer": "bold green", "tag": "cyan", "outside": ""}


def token_kinds(token_ids: Sequence[int], tokenizer: Tokenizer) -> list[TokenKind]:
    """The kind of every token of a completion (one that begins at `<think>`, without the prompt)."""
    after_tag = dict(zip(tokenizer.reasoning_ids, AFTER.values(), strict=True))
    end_of_text = tokenizer.eos_id
    kinds: list[TokenKind] = []
    kind: TokenKind = "outside"
    for token_id in token_ids:
        if token_id in after_tag:
            kinds.append("tag")
            kind = after_tag[token_id]
        else:
            if token_id == end_of_text:
                kind = "outside"
            kinds.append(kind)
    return kinds


def count_tokens(token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, int]:
    """(thinking, answer) tokens of a completion, tags not counted."""
    kinds = token_kinds(token_ids, tokenizer)
    return kinds.count("think"), kinds.count("answer")


def transcript_text(prompt_ids: Sequence[int], completion_ids: Sequence[int], tokenizer: Tokenizer) -> Text:
    """The transcript for a terminal: thinking dim, the answer bright. `.plain` is what a pipe gets."""
    ids = [*prompt_ids, *completion_ids]
    wide_position = max(3, len(str(len(ids) - 1)))
    wide_id = max(5, len(str(max(ids, default=0))))

    def line(position: int, kind: TokenKind) -> tuple[str, str]:
        shown = tokenizer.token_text(ids[position])
        shown = f"*** {shown} ***" if kind == "tag" else repr(shown)
        return f"[{position:{wide_position}d}] id={ids[position]:{wide_id}d} {shown}\n", STYLES[kind]

    kinds = token_kinds(completion_ids, tokenizer)
    thinking, answer = kinds.count("think"), kinds.count("answer")
    decoded = tokenizer.decode(completion_ids).replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    return Text.assemble(
        (f"--- PROMPT TOKENS ({count(len(prompt_ids), 'token')}) ---\n", "bold"),
        *(line(position, "outside") for position in range(len(prompt_ids))),
        (f"--- GENERATED TOKENS ({count(len(completion_ids), 'token')}) ---\n", "bold"),
        *(line(position, kind) for position, kind in enumerate(kinds, start=len(prompt_ids))),
        f"Decoded: {visible(decoded)}\n",
        f"Stats: {count(len(completion_ids), 'generated token')} total, {count(thinking, 'thinking token')}, "
        f"{count(answer, 'answer token')}.",
    )


def completion_text(text: str) -> Text:
    """A completion's text for a terminal, in the same styles: `<think>3 + 4 = 7</think><answer>7</answer>`.

    A small model writes any byte; control characters are shown and not obeyed.
    """
    return Text.assemble(*((part.text, STYLES[part.kind]) for part in split_completion(visible(text))))


def transcript(
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    tokenizer: Tokenizer,
    *,
    stage: str,
    gold: str,
    correct: bool,
) -> Transcript:
    """The same as a record."""
    kinds = token_kinds(completion_ids, tokenizer)
    return Transcript(
        stage=stage,
        prompt=tuple((token_id, tokenizer.token_text(token_id)) for token_id in prompt_ids),
        completion=tuple(
            (token_id, tokenizer.token_text(token_id), kind)
            for token_id, kind in zip(completion_ids, kinds, strict=True)
        ),
        decoded=tokenizer.decode(completion_ids),
        thinking_tokens=kinds.count("think"),
        answer_tokens=kinds.count("answer"),
        gold=gold,
        correct=correct,
    )
