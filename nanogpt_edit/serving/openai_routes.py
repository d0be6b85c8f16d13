"""/v1: the part of OpenAI's API that a language model on its own can answer, whole or streamed.

A completion ends as `ne.generate` ends it: at `</answer>`, at the end of a text, or after `max_tokens`. With the same
seed its texts are those of `ne.generate`: sample s of prompt p has the random numbers of (seed, p, s).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.engine.batch import look_at_prompt
from nanogpt_edit.engine.completion import Request
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.chat_template import Message, render_chat
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer, tokenizer_of
from nanogpt_edit.serving.json_body import JsonRoute
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.openai_replies import DONE, Head, Json, Scored, event, to_json, usage
from nanogpt_edit.serving.openai_schemas import (
    MOST_STOPS,
    MOST_TEXTS,
    ChatMessage,
    ChatReply,
    ChatRequest,
    CompletionReply,
    CompletionRequest,
    ErrorReply,
    ModelCard,
    ModelList,
    Sampled,
)
from nanogpt_edit.serving.running import EventStream, Gone, Running, unless_gone
from nanogpt_edit.serving.scheduler import Scheduler
from nanogpt_edit.serving.texts import Writing, offsets_of

Read = TypeVar("Read")
LONG_BYTES = 8192  # of a request whose text is read in another thread: it would keep the others waiting
TOKENS_BY_DEFAULT = 16  # of a completion, as at OpenAI's
CLIENT_HAS_LEFT = 499  # nginx's word for it; nobody reads it
REFUSALS: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorReply} for status in (400, 401, 403, 404, 408, 413, 415, 429)
}


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


class OpenAI:
    """The routes' common ground: the models, the scheduler, and a clock."""

    def __init__(self, shelf: Shelf, scheduler: Scheduler) -> None:
        self.shelf, self.scheduler, self.started = shelf, scheduler, int(time.time())
        self.prompts_so_far = 0

    async def opened(self, name: str | None) -> tuple[str, GPT]:
        """The model that is asked for, loaded in another thread. Raises UnknownModel, and as `load` does."""
        if not (names := self.shelf.names()):
            raise UserError("there is no model yet; the run that is watched has made none.")
        name = names[0] if name is None else name
        if self.shelf.is_open(name):
            return name, self.shelf.open(name)
        return name, await run_in_threadpool(self.shelf.open, name)

    def understand(
        self, asked: Sampled, name: str, model: GPT, prompts: list[list[int]], new_tokens: int, alternatives: int | None
    ) -> Asked:
        """Raises UserError for what the model or the server has no room for."""
        tokenizer, n = tokenizer_of(model), asked.n or 1
        if n * len(prompts) > MOST_TEXTS:
            raise UserError(f"is {n} for {len(prompts)} prompts; {MOST_TEXTS} texts can be asked for.", field="n")
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        if len(stops) > MOST_STOPS or not all(stops):
            raise UserError("holds an empty text; leave it out.", field="stop")
        room = min(model.config.block_size, self.scheduler.room.prompt_tokens + 1)
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
            sampling=self.sampling(asked, new_tokens) if new_tokens else None,
            stops=stops,
            alternatives=alternatives,
            with_ids=asked.return_token_ids,
            with_usage=asked.stream_options is not None and asked.stream_options.include_usage,
        )

    def sampling(self, asked: Sampled, new_tokens: int) -> Sampling:
        """OpenAI's defaults. Raises UserError for a setting that is out of bounds."""
        most = self.scheduler.room.new_tokens
        if new_tokens > most:
            raise UserError(f"is {new_tokens:,}; {most:,} can be asked for here.", field="max_tokens")
        return Sampling(
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_k=asked.top_k if asked.top_k and asked.top_k > 0 else None,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            max_new_tokens=new_tokens,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
        )

    def running(self, asked: Asked, *, each_token: bool) -> Running:
        return Running(self.scheduler, asked.name, asked.requests, each_token=each_token)

    async def write(self, asked: Asked) -> list[Writing]:
        """All texts, whole."""
        writings = asked.writings()
        async for _ in self.pieces(asked, writings, each_token=bool(asked.stops)):
            pass
        return writings

    async def pieces(
        self, asked: Asked, writings: Sequence[Writing], *, each_token: bool
    ) -> AsyncIterator[list[tuple[int, str]]]:
        """What can be shown of which text, as it is written."""
        if asked.sampling is None:
            return
        running = self.running(asked, each_token=each_token)
        place = {request: place for place, request in enumerate(running.requests)}
        try:
            async for written in running:
                shown: dict[int, str] = {}
                for fresh in written:
                    i = place[fresh.request]
                    shown[i] = shown.get(i, "") + writings[i].add(fresh)
                running.stop([each for each in running.open if writings[place[each]].finish_reason])
                yield list(shown.items())
        except TimeoutError:
            for fresh in (each for held in running.job.held.values() for each in held):
                writings[place[fresh.request]].add(fresh)
            yield [(i, writing.cut()) for i, writing in enumerate(writings) if writing.finish_reason is None]
        finally:
            running.stop(list(running.open))

    async def look_at_prompts(self, asked: Asked) -> None:
        """Score the prompts, where what is asked for shows them with probabilities."""
        for prompt in asked.prompts:
            look = partial(look_at_prompt, prompt=prompt, alternatives=asked.alternatives or 0)
            looks = await asyncio.wrap_future(self.scheduler.ask(asked.name, look)) if len(prompt) > 1 else []
            asked.looks.append(Scored(prompt, [None, *looks], offsets_of(asked.tokenizer, prompt)))


class TooLong(UserError):
    """A prompt that the model or the server has no room for."""


def routes(shelf: Shelf, scheduler: Scheduler) -> APIRouter:
    """The router of /v1."""
    router, here = APIRouter(prefix="/v1", route_class=JsonRoute), OpenAI(shelf, scheduler)

    @router.get("/models", response_model=ModelList)
    async def models() -> Response:
        return json_response({"object": "list", "data": [card(name) for name in shelf.names()]})

    @router.get("/models/{name:path}", response_model=ModelCard, responses={404: {"model": ErrorReply}})
    async def model(name: str) -> Response:
        shelf.is_open(name)  # raises for an unknown one
        return json_response(card(name))

    def card(name: str) -> Json:
        parent = shelf.parent(name)
        return {"id": name, "object": "model", "created": here.started, "owned_by": "nanogpt_edit", "parent": parent}

    @router.post("/completions", response_model=CompletionReply, responses=REFUSALS)
    async def completions(body: CompletionRequest, request: HttpRequest) -> Response:
        asked = await completion_asked(here, body, request)
        head = Head(f"cmpl-{secrets.token_hex(12)}", int(time.time()), asked.name)
        if body.stream:
            return await streamed(request, completion_events(here, asked, head))
        return await answered(request, whole_completion(here, asked, head))

    @router.post("/chat/completions", response_model=ChatReply, responses=REFUSALS)
    async def chat(body: ChatRequest, request: HttpRequest) -> Response:
        asked = await chat_asked(here, body, request)
        head = Head(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), asked.name)
        if body.stream:
            return await streamed(request, chat_events(here, asked, head))
        return await answered(request, whole_chat(here, asked, head))

    return router


async def completion_asked(here: OpenAI, body: CompletionRequest, request: HttpRequest) -> Asked:
    """What a request to /v1/completions means. Raises UserError."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise UserError("must be n: the best of several texts is not chosen here.", field="best_of")
    name, model = await here.opened(body.model)
    tokenizer = tokenizer_of(model)
    new_tokens = TOKENS_BY_DEFAULT if body.max_tokens is None else body.max_tokens
    prompts = await apart(request, partial(to_prompts, body.prompt, tokenizer))
    asked = here.understand(body, name, model, prompts, new_tokens, body.logprobs)
    asked.echo = bool(body.echo)
    if asked.echo and body.logprobs is not None:
        await here.look_at_prompts(asked)
    return asked


async def chat_asked(here: OpenAI, body: ChatRequest, request: HttpRequest) -> Asked:
    """What a request to /v1/chat/completions means. Raises UserError."""
    if body.top_logprobs is not None and not body.logprobs:
        raise UserError("needs logprobs: true.", field="top_logprobs")
    name, model = await here.opened(body.model)
    tokenizer = tokenizer_of(model)
    prompt = await apart(request, partial(to_prompt, body.messages, tokenizer))
    room = min(model.config.block_size - len(prompt), here.scheduler.room.new_tokens)
    new_tokens = body.max_completion_tokens or body.max_tokens or max(room, 1)
    alternatives = (body.top_logprobs or 0) if body.logprobs else None
    return here.understand(body, name, model, [prompt], new_tokens, alternatives)


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


async def whole_completion(here: OpenAI, asked: Asked, head: Head) -> Json:
    """The answer to a request that is not streamed."""
    writings = await here.write(asked)
    choices: list[Json] = []
    for i, writing in enumerate(writings):
        prompt = asked.prompts[i // asked.n]
        before = asked.tokenizer.decode(prompt) if asked.echo else ""
        scored = Scored.written(writing, at=len(before))
        shown = asked.looks[i // asked.n] + scored if asked.looks else scored
        choices.append(
            {
                "index": i,
                "text": before + writing.text,
                "logprobs": None if asked.alternatives is None else shown.completion_logprobs(asked.tokenizer),
                "finish_reason": writing.finish_reason or "length",
            }
            | _ids(asked, shown if asked.echo and asked.looks else scored, prompt)
        )
    return head.chunk("text_completion", choices, usage=asked.usage(writings))


def _ids(asked: Asked, scored: Scored, prompt: Sequence[int] | None) -> Json:
    if not asked.with_ids:
        return {}
    return scored.details(asked.tokenizer) | ({} if prompt is None else {"prompt_token_ids": list(prompt)})


async def completion_events(here: OpenAI, asked: Asked, head: Head) -> AsyncGenerator[bytes, None]:
    """The events of a streamed completion."""

    def choice(i: int, text: str, scored: Scored, reason: str | None, prompt: Sequence[int] | None) -> Json:
        logprobs = None if asked.alternatives is None else scored.completion_logprobs(asked.tokenizer)
        plain: Json = {"index": i, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return plain | _ids(asked, scored, prompt)

    writings, begun, told = asked.writings(), set[int](), [0] * (len(asked.prompts) * asked.n)
    before = [asked.tokenizer.decode(prompt) if asked.echo else "" for prompt in asked.prompts]
    if asked.echo:
        for i in range(len(writings)):
            prompt, scored = asked.prompts[i // asked.n], Scored([], [], [])
            begun.add(i)
            reason = "length" if asked.sampling is None else None
            scored = asked.looks[i // asked.n] if asked.looks else scored
            yield event(head.chunk("text_completion", [choice(i, before[i // asked.n], scored, reason, prompt)]))
    async for pieces in here.pieces(asked, writings, each_token=True):
        for i, text in pieces:
            scored = Scored.written(writings[i], since=told[i], at=len(before[i // asked.n]))
            prompt_ids = None if i in begun else asked.prompts[i // asked.n]
            begun.add(i)
            told[i] = len(writings[i].token_ids)
            if text or asked.with_ids or asked.alternatives is not None or writings[i].finish_reason:
                reply = choice(i, text, scored, writings[i].finish_reason, prompt_ids)
                yield event(head.chunk("text_completion", [reply]))
    if asked.with_usage:
        yield event(head.chunk("text_completion", [], usage=asked.usage(writings)))
    yield DONE


async def whole_chat(here: OpenAI, asked: Asked, head: Head) -> Json:
    """The answer to a conversation that is not streamed."""
    writings = await here.write(asked)
    choices: list[Json] = []
    for i, writing in enumerate(writings):
        scored = Scored.written(writing)
        choices.append(
            {
                "index": i,
                "message": {"role": "assistant", "content": writing.text, "refusal": None},
                "logprobs": None if asked.alternatives is None else scored.chat_logprobs(asked.tokenizer),
                "finish_reason": writing.finish_reason or "length",
            }
            | _ids(asked, scored, asked.prompts[0])
        )
    return head.chunk("chat.completion", choices, usage=asked.usage(writings))


async def chat_events(here: OpenAI, asked: Asked, head: Head) -> AsyncGenerator[bytes, None]:
    """The events of a streamed conversation."""
    writings, told = asked.writings(), [0] * asked.n
    for i in range(asked.n):
        choice: Json = {"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        choice |= {"prompt_token_ids": asked.prompts[0]} if asked.with_ids else {}
        yield event(head.chunk("chat.completion.chunk", [choice]))
    async for pieces in here.pieces(asked, writings, each_token=True):
        for i, text in pieces:
            scored = Scored.written(writings[i], since=told[i])
            told[i] = len(writings[i].token_ids)
            if not (text or asked.with_ids or asked.alternatives is not None or writings[i].finish_reason):
                continue
            choice = {
                "index": i,
                "delta": {"content": text} if text else {},
                "logprobs": None if asked.alternatives is None else scored.chat_logprobs(asked.tokenizer),
                "finish_reason": writings[i].finish_reason,
            }
            yield event(head.chunk("chat.completion.chunk", [choice | _ids(asked, scored, None)]))
    if asked.with_usage:
        yield event(head.chunk("chat.completion.chunk", [], usage=asked.usage(writings)))
    yield DONE


async def answered(request: HttpRequest, answer: Coroutine[Any, Any, Json]) -> Response:
    """An answer given at once, unless the client leaves before."""
    try:
        return json_response(await unless_gone(request.receive, answer))
    except Gone:
        return Response(status_code=CLIENT_HAS_LEFT)


async def streamed(request: HttpRequest, events: AsyncGenerator[bytes, None]) -> Response:
    """An answer given as it is written."""
    try:
        return await EventStream(events).begin(request.receive)
    except Gone:
        return Response(status_code=CLIENT_HAS_LEFT)


def json_response(value: Json) -> Response:
    """JSON in UTF-8."""
    return Response(to_json(value), media_type="application/json")
