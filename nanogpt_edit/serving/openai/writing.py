"""What is written for a request to /v1, whole or as it comes, in the words of OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial

from nanogpt_edit.engine.batch import look_at_prompt
from nanogpt_edit.engine.completion import Fresh
from nanogpt_edit.serving.openai.reading import Asked
from nanogpt_edit.serving.openai.replies import Head, Scored
from nanogpt_edit.serving.openai.texts import Writing, offsets_of
from nanogpt_edit.serving.running import Running
from nanogpt_edit.serving.scheduler import Scheduler
from nanogpt_edit.serving.wire import DONE, Json, event


async def write(scheduler: Scheduler, asked: Asked) -> list[Writing]:
    """All texts, whole."""
    writings = asked.writings()
    async for _ in pieces(scheduler, asked, writings, each_token=bool(asked.stops)):
        pass
    return writings


async def pieces(
    scheduler: Scheduler, asked: Asked, writings: Sequence[Writing], *, each_token: bool
) -> AsyncIterator[list[tuple[int, str]]]:
    """What can be shown of which text, as it is written."""
    if asked.sampling is None:
        return
    running = Running(scheduler, asked.name, asked.requests, each_token=each_token)
    place = {request: place for place, request in enumerate(running.requests)}
    try:
        async for written in running:
            by_row: dict[int, list[Fresh]] = {}
            for fresh in written:
                by_row.setdefault(place[fresh.request], []).append(fresh)
            shown = [(i, writings[i].add(some)) for i, some in by_row.items()]
            running.stop([each for each in running.open if writings[place[each]].finish_reason])
            yield shown
    except TimeoutError:
        for request, held in running.job.held.items():
            writings[place[request]].add(held)
        yield [(i, writing.cut()) for i, writing in enumerate(writings) if writing.finish_reason is None]
    finally:
        running.stop(list(running.open))


async def look_at_prompts(scheduler: Scheduler, asked: Asked) -> None:
    """Score the prompts, where what is asked for shows them with probabilities."""
    if not asked.echo or asked.alternatives is None:
        return
    for prompt in asked.prompts:
        look = partial(look_at_prompt, prompt=prompt, alternatives=asked.alternatives)
        looks = await asyncio.wrap_future(scheduler.ask(asked.name, look)) if len(prompt) > 1 else []
        asked.looks.append(Scored(prompt, [None, *looks], offsets_of(asked.tokenizer, prompt)))


async def whole_completion(scheduler: Scheduler, asked: Asked, head: Head) -> Json:
    """The answer to a request that is not streamed."""
    writings = await write(scheduler, asked)
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


async def completion_events(scheduler: Scheduler, asked: Asked, head: Head) -> AsyncGenerator[bytes, None]:
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
    async for shown in pieces(scheduler, asked, writings, each_token=True):
        for i, text in shown:
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


async def whole_chat(scheduler: Scheduler, asked: Asked, head: Head) -> Json:
    """The answer to a conversation that is not streamed."""
    writings = await write(scheduler, asked)
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


async def chat_events(scheduler: Scheduler, asked: Asked, head: Head) -> AsyncGenerator[bytes, None]:
    """The events of a streamed conversation."""
    writings, told = asked.writings(), [0] * asked.n
    for i in range(asked.n):
        choice: Json = {"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        choice |= {"prompt_token_ids": asked.prompts[0]} if asked.with_ids else {}
        yield event(head.chunk("chat.completion.chunk", [choice]))
    async for shown in pieces(scheduler, asked, writings, each_token=True):
        for i, text in shown:
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
