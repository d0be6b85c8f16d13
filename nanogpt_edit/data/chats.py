"""Conversations, and reading them in the forms that people have: files of records (`rows.py`), folders, the hub.

A record is known by its fields:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}          ShareGPT
    {"prompt": "…", "completion": "…"}                                  texts, or lists of messages
    {"instruction": "…", "input": "…", "output": "…"}                   Alpaca

Fields of other names are given these by a map ("messages=dialog", "prompt=ask completion=say"). A bad record stops the
reading with its file and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.records import Answering, check_fields
from nanogpt_edit.data import hub_datasets
from nanogpt_edit.data.rows import read_rows, reason_of_json, required_split
from nanogpt_edit.model.chat_template import Message

TURNS = ("messages", "conversations")
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "response"), ("instruction", "output"))
NAMES = ("messages", "prompt", "completion", "system")
# How others call the three roles.
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
EXAMPLE = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'


@dataclass(frozen=True)
class Chat(metaclass=Answering):
    """One conversation: `Chat((Message("user", "2 + 2?"), Message("assistant", "4")), "train:1")`."""

    messages: tuple[Message, ...]
    id: str
    """Where it came from, "<file stem>:<line>"."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not any(message.role == "assistant" and message.content.strip() for message in self.messages):
            raise UserError("no message of the assistant has a text, so there is nothing to learn from it.")


@checked
def read_chats(source: str | Path, *, split: str = "train", fields: str | None = None) -> tuple[Chat, ...]:
    """All conversations of one file (.jsonl, .json, .parquet; also .gz), or the `split` of a folder or hub data set.

    `fields` says where a record has what: "messages=dialog". Raises UserError naming file and line of a bad record, or
    the file when it is missing or empty.
    """
    path, named = Path(source), field_map(fields)
    if path.is_file() or (path.is_dir() and not hub_datasets.is_saved(path)):
        files = [path] if path.is_file() else required_split(path, split)
        known = (*named.values(), *TURNS, *(first for first, _ in PAIRS))
        return tuple(chat for file in files for chat in _chats(_rows_of(file, known), str(file), named))
    hub_datasets.check_name(str(source))
    found = hub_datasets.read_rows(str(source), split=split)
    numbered = ((f"{split}:{number}", row) for number, row in enumerate(found, start=1))
    return _chats(numbered, f"{source} {split}", named)


def _rows_of(file: Path, fields: Sequence[str]) -> Iterator[tuple[str, object]]:
    stem = file.name.partition(".")[0]
    return ((f"{stem}:{number}", row) for number, row in read_rows(file, fields=fields))


def field_map(text: str | None) -> dict[str, str]:
    """The map that "prompt=ask completion=say" writes: {"prompt": "ask", …}. Raises UserError for what is none."""
    pairs = [word.partition("=") for word in (text or "").replace(",", " ").split()]
    for ours, sign, theirs in pairs:
        if ours not in NAMES or not sign or not theirs:
            raise UserError(
                f'"{ours}{sign}{theirs}" is no name of ours, = and theirs, as in messages=dialog; ours are '
                f"{', '.join(NAMES)}."
            )
    return {ours: theirs for ours, _, theirs in pairs}


def split_chats(chats: Sequence[Chat], *, validation: int) -> tuple[tuple[Chat, ...], tuple[Chat, ...]]:
    """(train, validation): at most `validation` and at most a tenth of the conversations are set aside.

    Chosen by what they say, so that equal ones stay on one side. Raises UserError where there is only one.
    """
    texts = {_said(chat): sha256(_said(chat).encode()).digest() for chat in chats}
    if len(texts) < 2:
        raise UserError("one conversation cannot be divided into those to train and those to validate on; add more.")
    count = min(validation, max(1, len(texts) // 10))
    aside = set(sorted(texts, key=lambda text: texts[text])[:count])
    train, rest = ([c for c in chats if (_said(c) in aside) == kept] for kept in (False, True))
    return tuple(train), tuple(rest)


def _said(chat: Chat) -> str:
    return "\n".join(f"{message.role}: {message.content}" for message in chat.messages)


def _chats(rows: Iterable[tuple[str, object]], source: str, named: Mapping[str, str]) -> tuple[Chat, ...]:
    chats: list[Chat] = []
    for identifier, row in rows:
        try:
            chats.append(Chat(tuple(_messages(_renamed(row, named))), identifier))
        except UserError as error:
            raise UserError(f"{source}:{identifier.rpartition(':')[2]}: {error}") from None
    if not chats:
        raise UserError(f"{source}: no conversations in it. One is a line such as {EXAMPLE}.")
    return tuple(chats)


def _renamed(row: object, named: Mapping[str, str]) -> object:
    """A record with the fields of the map under our names. Raises UserError where it lacks one."""
    if not named or not isinstance(row, Mapping):
        return row
    for theirs in named.values():
        if theirs not in row:
            has = ", ".join(f'"{name}"' for name in list(row)[:8]) or "none"
            raise UserError(f'the record has no field "{theirs}" (it has {has}); mend the map (--sft.chats-fields).')
    kept = {name: value for name, value in row.items() if "prompt" not in named or name not in TURNS}
    return {**kept, **{ours: row[theirs] for ours, theirs in named.items()}}


def _messages(row: object) -> Iterator[Message]:
    """The turns of a record of any form."""
    if isinstance(row, Exception):
        raise UserError(f"not valid JSON ({reason_of_json(row)}).")
    if not isinstance(row, Mapping):
        raise UserError(f"a JSON object was expected, found {type(row).__name__}.")
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        yield Message("system", system)
    for field in TURNS:
        if field in row:
            yield from _turns(row[field], field)
            return
    for asked, answered in PAIRS:
        if asked in row and answered in row:
            yield from _side(row, asked, "user")
            yield from _side(row, answered, "assistant")
            return
    has = ", ".join(f'"{name}"' for name in list(row)[:8]) or "none"
    raise UserError(f"the record has no conversation: neither messages nor prompt and completion (it has {has}).")


def _side(row: Mapping[object, object], field: str, role: str) -> Iterator[Message]:
    """One side of a prompt and its completion: a text, or messages."""
    value = row[field]
    if isinstance(value, Sequence) and not isinstance(value, str):
        yield from _turns(value, field)
        return
    text = _text(value, field)
    further = row.get("input") if field == "instruction" else None
    yield Message(role, f"{text}\n\n{further}" if isinstance(further, str) and further.strip() else text)


def _turns(value: object, field: str) -> Iterator[Message]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f'field "{field}" should be a list of messages, found {type(value).__name__}.')
    for number, turn in enumerate(value, start=1):
        where = f"{field}[{number}]"
        if not isinstance(turn, Mapping):
            raise UserError(f"{where}: a message was expected, found {type(turn).__name__}.")
        role, text = (turn.get("role"), "content") if "role" in turn else (turn.get("from"), "value")
        if not isinstance(role, str) or text not in turn:
            raise UserError(f'{where}: a message has a "role" and a "content" (or a "from" and a "value").')
        yield Message(ROLES.get(role, role), _text(turn[text], f"{where}.{text}"))


def _text(value: object, where: str) -> str:
    """A text; the parts of one that comes in parts, as long as all are text."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, Sequence) else [value]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: text was expected, found {type(value).__name__}; only text can be learned from.")
    return "".join(map(str, texts))
