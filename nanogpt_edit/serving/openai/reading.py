"""What a request to /v1 means: which texts are to be written, for whom, and how they are shown."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.engine.completion import Request
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.chat_template import Message, render_chat
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer, tokenizer_of
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.openai.replies import Scored, usage
from nanogpt_edit.serving.openai.schemas import (
    MOST_STOPS,
    MOST_TEXTS,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Sampled,
)
from nanogpt_edit.serving.openai.texts import Writing
from nanogpt_edit.serving.room import Room
from nanogpt_edit.serving.wire import Json

Read = TypeVar("Read")
LONG_BYTES = 8192  # of a request whose text is read in another thread: it would keep the others waiting
TOKENS_BY_DEFAULT = 16  # of a completion, as at OpenAI's


class TooLong(UserError):
    """A prompt that the model or the server has no room for."""


@dataclass
class Asked:
    """A request that has been understood: which texts are to be written, and how they are shown."""

    name: str
    model: GPT
    tokenizer: Tokenizer
    prompts: list[list[int]]
    first: int
    """The first prompt's number; the others follow. No prompt has had them: rows that share one share its keys."""
    n: int
    sampling: Sampling | None
    """None: nothing is written."""
    stops: list[str]
    alternatives: int | None
    with_ids: bool
    with_usage: bool
    echo: bool = False
    looks: list[Scored] = field(default_factory=list)
    """Of each prompt, where they are shown."""

    @property
    def requests(self) -> list[Request]:
        if self.sampling is None:
            return []
        stop_ids = self.tokenizer.stop_ids
        return [
            Request(self.first + p, s, p, prompt, self.sampling, stop_ids, self.alternatives)
            for p, prompt in enumerate(self.prompts)
            for s in range(self.n)
        ]

    def writings(self) -> list[Writing]:
        return [Writing(self.tokenizer, self.stops) for _ in range(len(self.prompts) * self.n)]

    def usage(self, writings: Sequence[Writing]) -> Json:
        return usage(sum(map(len, self.prompts)), sum(len(each.token_ids) for each in writings))


class Reader:
    """Reads requests for the models of a shelf, where there is so much room."""

    def __init__(self, shelf: Shelf, room: Room) -> None:
        self.shelf, self.room = shelf, room
        self.prompts_so_far = 0

    async def completion(self, body: CompletionRequest, request: HttpRequest) -> Asked:
        """What a request to /v1/completions means. Raises UserError."""
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise UserError("must be n: the best of several texts is not chosen here.", field="best_of")
        name, model = await self._opened(body.model)
        tokenizer = tokenizer_of(model)
        new_tokens = TOKENS_BY_DEFAULT if body.max_tokens is None else body.max_tokens
        prompts = await apart(request, partial(to_prompts, body.prompt, tokenizer))
        asked = self._understand(body, name, model, prompts, new_tokens, body.logprobs)
        asked.echo = bool(body.echo)
        return asked

    async def chat(self, body: ChatRequest, request: HttpRequest) -> Asked:
        """What a request to /v1/chat/completions means. Raises UserError."""
        if body.top_logprobs is not None and not body.logprobs:
            raise UserError("needs logprobs: true.", field="top_logprobs")
        name, model = await self._opened(body.model)
        tokenizer = tokenizer_of(model)
        prompt = await apart(request, partial(to_prompt, body.messages, tokenizer))
        room = min(model.config.block_size - len(prompt), self.room.new_tokens)
        new_tokens = body.max_completion_tokens or body.max_tokens or max(room, 1)
        alternatives = (body.top_logprobs or 0) if body.logprobs else None
        return self._understand(body, name, model, [prompt], new_tokens, alternatives)

    async def _opened(self, name: str | None) -> tuple[str, GPT]:
        """The model that is asked for, loaded in another thread. Raises UnknownModel, and as `load` does."""
        if not (names := self.shelf.names()):
            raise UserError("there is no model yet; the run that is watched has made none.")
        name = names[0] if name is None else name
        if self.shelf.is_open(name):
            return name, self.shelf.open(name)
        return name, await run_in_threadpool(self.shelf.open, name)

    def _understand(
        self, asked: Sampled, name: str, model: GPT, prompts: list[list[int]], new_tokens: int, alternatives: int | None
    ) -> Asked:
        """Raises UserError for what the model or the server has no room for."""
        tokenizer, n = tokenizer_of(model), asked.n or 1
        if n * len(prompts) > MOST_TEXTS:
            raise UserError(f"is {n} for {len(prompts)} prompts; {MOST_TEXTS} texts can be asked for.", field="n")
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        if len(stops) > MOST_STOPS or not all(stops):
            raise UserError("holds an empty text; leave it out.", field="stop")
        room = min(model.config.block_size, self.room.prompt_tokens + 1)
        for p, prompt in enumerate(prompts):
            which = f"prompt {p}" if len(prompts) > 1 else "the prompt"
            if not prompt:
                raise UserError(f"{which} is empty; give at least one token.")
            if len(prompt) + (new_tokens > 0) > room:
                raise TooLong(f"{which} has {len(prompt):,} tokens; this model takes {room - 1:,} here. Shorten it.")
            if max(prompt) >= tokenizer.vocab_size:
                raise UserError(f"{which} holds the id {max(prompt)}; the model's last is {tokenizer.vocab_size - 1}.")
        self.prompts_so_far += len(prompts)
        return Asked(
            name=name,
            model=model,
            tokenizer=tokenizer,
            prompts=prompts,
            first=self.prompts_so_far - len(prompts),
            n=n,
            sampling=self._sampling(asked, new_tokens) if new_tokens else None,
            stops=stops,
            alternatives=alternatives,
            with_ids=asked.return_token_ids,
            with_usage=asked.stream_options is not None and asked.stream_options.include_usage,
        )

    def _sampling(self, asked: Sampled, new_tokens: int) -> Sampling:
        """OpenAI's defaults. Raises UserError for a setting that is out of bounds."""
        most = self.room.new_tokens
        if new_tokens > most:
            raise UserError(f"is {new_tokens:,}; {most:,} can be asked for here.", field="max_tokens")
        return Sampling(
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_k=asked.top_k if asked.top_k and asked.top_k > 0 else None,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            max_new_tokens=new_tokens,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
        )


async def apart(request: HttpRequest, read: Callable[[], Read]) -> Read:
    """What `read` finds, in another thread where the request is long."""
    if int(request.headers.get("content-length", LONG_BYTES)) < LONG_BYTES:
        return read()
    return await run_in_threadpool(read)


def to_prompts(prompt: str | list[int] | list[str] | list[list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    """Each prompt as token ids; a text as it stands, its spaces too."""
    several: Sequence[object] = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    return [tokenizer.encode(each) if isinstance(each, str) else list(map(int, _list(each))) for each in several]


def _list(ids: object) -> list[int]:
    assert isinstance(ids, list)
    return ids


def to_prompt(messages: Sequence[ChatMessage], tokenizer: Tokenizer) -> list[int]:
    """A conversation as the model's template writes it. Raises UserError where it has none, or refuses."""
    return tokenizer.encode(render_chat(tokenizer, [to_message(each) for each in messages]))


def to_message(message: ChatMessage) -> Message:
    """The text of a message, its parts one after the other."""
    content = message.content or ""
    return Message(message.role, content if isinstance(content, str) else "".join(part.text for part in content))
