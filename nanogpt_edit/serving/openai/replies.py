"""What has been written, in the words of OpenAI's API: whole answers, and the chunks of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from nanogpt_edit.engine.completion import Look
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.serving.openai.texts import Writing
from nanogpt_edit.serving.wire import Json


@dataclass(frozen=True)
class Head:
    """What the answer and every chunk of it begin with."""

    id: str
    created: int
    model: str

    def chunk(self, object: str, choices: Sequence[Json], **more: object) -> Json:
        return {
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        } | more


@dataclass(frozen=True)
class Scored:
    """Tokens and what the model thought of them; None of a prompt's first. `offsets` are characters of the text."""

    token_ids: Sequence[int]
    looks: Sequence[Look | None]
    offsets: Sequence[int]

    @classmethod
    def written(cls, writing: Writing, *, since: int = 0, at: int = 0) -> Scored:
        """The tokens of a text from number `since` on, where the text begins at character `at`."""
        offsets = [at + offset for offset in writing.offsets[since:]]
        return cls(writing.token_ids[since:], writing.looks[since:], offsets)

    def __add__(self, other: Scored) -> Scored:
        return Scored([*self.token_ids, *other.token_ids], [*self.looks, *other.looks], [*self.offsets, *other.offsets])

    def completion_logprobs(self, tokenizer: Tokenizer) -> Json:
        """OpenAI's `logprobs` of a completion."""
        return {
            "tokens": [token_text(tokenizer, token_id) for token_id in self.token_ids],
            "token_logprobs": [None if look is None else look.logprob for look in self.looks],
            "top_logprobs": [None if look is None else _by_text(tokenizer, look) for look in self.looks],
            "text_offset": list(self.offsets),
        }

    def chat_logprobs(self, tokenizer: Tokenizer) -> Json:
        """OpenAI's `logprobs` of a chat completion."""
        content = []
        for token_id, look in zip(self.token_ids, self.looks, strict=True):
            assert look is not None  # a prompt is never shown in a chat
            tops = zip(look.top_ids, look.top_logprobs, strict=True)
            top = [_chat_token(tokenizer, top_id, nats) for top_id, nats in tops]
            content.append(_chat_token(tokenizer, token_id, look.logprob) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def details(self, tokenizer: Tokenizer) -> Json:
        """Of `return_token_ids`: the ids, and the alternatives by id, most probable first."""
        found: Json = {"token_ids": list(self.token_ids)}
        if any(look is not None for look in self.looks):
            found["top_tokens"] = [_by_id(tokenizer, look) for look in self.looks]
        return found


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """OpenAI's `usage`."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


@lru_cache(maxsize=100_000)
def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    r"""One token as text; a part of a character as "\xf0"."""
    return tokenizer.token_text(token_id)


def _by_text(tokenizer: Tokenizer, look: Look) -> dict[str, float]:
    tops = zip(look.top_ids, look.top_logprobs, strict=True)
    return {token_text(tokenizer, top_id): nats for top_id, nats in tops}


def _by_id(tokenizer: Tokenizer, look: Look | None) -> list[Json]:
    tops = () if look is None else zip(look.top_ids, look.top_logprobs, strict=True)
    return [{"id": top_id, "token": token_text(tokenizer, top_id), "logprob": nats} for top_id, nats in tops]


def _chat_token(tokenizer: Tokenizer, token_id: int, nats: float) -> Json:
    text = token_text(tokenizer, token_id)
    return {"token": text, "logprob": nats, "bytes": list(text.encode())}
