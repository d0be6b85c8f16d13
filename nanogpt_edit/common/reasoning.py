"""The form of a reasoned answer, `<think>` steps `</think><answer>` answer `</answer>`: written and read as text.

It lies on the ground because all rooms know it: the tags are tokens of every tokenizer, problems are rendered in them,
rewards and evaluation read them, the report colours by them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

TokenKind = Literal["think", "answer", "tag", "outside"]

AFTER: dict[str, TokenKind] = {"<think>": "think", "</think>": "outside", "<answer>": "answer", "</answer>": "outside"}
"""What follows each tag, up to the next one."""
TAGS = tuple(AFTER)
ANY_TAG = re.compile("|".join(TAGS))

# How SFT and GRPO pose a question, as a chat template: the last question alone, and then `<think>`. Neither a system's
# words nor earlier turns are ever trained on, so they are left out.
REASONING_TEMPLATE = """\
{%- set turn = namespace(text='') -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{%- set turn.text = message['content'] | trim -%}
  {%- elif message['role'] == 'assistant' -%}{%- set turn.text = turn.text + message['content'] -%}{%- endif -%}
{%- endfor -%}
{{- turn.text -}}{%- if add_generation_prompt -%}{{- '<think>' -}}{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a completion."""

    kind: TokenKind
    text: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """A completion as it was meant to be written."""

    thinking: str  # text after <think>, up to where it ends; "" without the tag
    answer: str  # text after <answer>, up to where it ends; "" without the tag
    well_formed: bool  # exactly <think>…</think><answer>…</answer>, each once, nothing outside


def render(thinking: str, answer: str) -> str:
    """A well-formed completion."""
    return f"<think>{thinking}</think><answer>{answer}</answer>"


def parse(text: str) -> Parsed:
    """Read a completion (which begins at `<think>`, without the prompt). Never raises."""
    thinking, answer = _after(text, "<think>"), _after(text, "<answer>")
    # Neither part holds a tag, so equality means: each tag once, in order, nothing outside.
    return Parsed(thinking, answer, well_formed=text == render(thinking, answer))


def split_completion(text: str) -> tuple[Part, ...]:
    """'<think>a</think>b' -> tag, think 'a', tag, outside 'b'. Stretches between the wrong tags are outside."""
    parts: list[Part] = []
    kind: TokenKind = "outside"
    start = 0
    for tag in ANY_TAG.finditer(text):
        parts += [Part(kind, text[start : tag.start()]), Part("tag", tag[0])]
        kind, start = AFTER[tag[0]], tag.end()
    parts.append(Part(kind, text[start:]))
    return tuple(part for part in parts if part.text)


def _after(text: str, tag: str) -> str:
    """Text after the first `tag`, up to the next of any tags."""
    _, present, rest = text.partition(tag)
    ends = [rest.find(end) for end in TAGS] if present else []
    return rest[: min((end for end in ends if end >= 0), default=len(rest))] if present else ""
