"""The rows that run together, open to new ones between any two steps.

Every row has its own prompt, settings and stream of random numbers, so that its text is what it would be alone. All
rows advance one token per step. `Engine.stream` fills a batch from a list; a server fills it as people ask, hands out
each token (`fresh`) and takes rows back whose reader has left (`cancel`).

Shapes: R running rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.engine.completion import Completion, FinishReason, Fresh, Look, Manner, Request
from nanogpt_edit.engine.decode_cache import DecodeCache
from nanogpt_edit.engine.packed_weights import PackedWeights
from nanogpt_edit.engine.prefill import parts_of_like_length, prefill
from nanogpt_edit.engine.sampling import draw_tokens, stream_keys, uniforms_at
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache

LOOKED_AT = 128  # places of a prompt at once: a row of logits each
LEAVE_SHARE = 1 / 8  # finished rows are removed once they are this share of the batch


@dataclass(frozen=True)
class Group:
    """Rows that are drawn together: which they are, as numbers and as an index."""

    manner: Manner
    rows: Sequence[int]
    at: slice | Tensor


class Batch:
    """The running rows: what each was asked for, has written, and may still write."""

    def __init__(
        self, model: GPT, cache: DecodeCache, *, slots: int, new_tokens: int, prompt_bytes: int, packing_bytes: int
    ) -> None:
        """At most `slots` rows at once, of at most `new_tokens` tokens each.

        `prompt_bytes` may hold the keys and values of prompts (`room_for`).
        `packing_bytes` may hold the weights once more (`PackedWeights`): they must not change while the batch lives.
        """
        self.model, self.cache, self.slots, self.max_new = model, cache, slots, new_tokens
        self.vocab_size, self.device, self.prompt_bytes = vocabulary_of(model), model.device, prompt_bytes
        self.weights = PackedWeights(model, max_bytes=packing_bytes)
        self.last_logits: dict[int, Tensor] = {}  # of the running prompts: what follows their last token, (V,)
        self.stop_ids: dict[frozenset[int], Tensor] = {}
        self.requests: list[Request] = []
        self.groups: list[Group] = []
        self.told: list[int] = []  # how many tokens of each row `fresh` has given out
        self.looks: list[Look | None] = []
        self.key, self.age, self.limit = (self._integers(0) for _ in range(3))
        self.finished, self.stopped = torch.zeros(2, 0, dtype=torch.bool, device=self.device)
        self.tokens = self._integers(0, self.max_new + 1)  # one column to spare for rows that wait to leave
        self.logprobs = torch.zeros(0, self.max_new + 1, device=self.device)

    def _integers(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.long, device=self.device)

    @property
    def rows(self) -> int:
        return len(self.requests)

    @property
    def free(self) -> int:
        return self.slots - self.rows

    def room_for(self, requests: Sequence[Request]) -> int:
        """How many of `requests`, the first ones, can be admitted: each has a slot, and its prompt memory beside the
        others. A prompt alone always has it."""
        token_bytes = KVCache.row_bytes(self.model.config, capacity=1, dtype=self.cache.keys.dtype)
        lengths = dict(zip(self.cache.prompt_indices, self.cache.prompt_lengths.tolist(), strict=True))
        for place, request in enumerate(requests[: self.free]):
            lengths[request.prompt_index] = len(request.prompt)
            if len(lengths) > 1 and len(lengths) * max(lengths.values()) * token_bytes > self.prompt_bytes:
                return place
        return min(len(requests), self.free)

    def admit(self, requests: list[Request]) -> None:
        """Prefill the prompts of `requests` that are not running yet, and draw the first token of each request."""
        running = set(self.cache.prompt_indices)
        new_prompts = {each.prompt_index: each.prompt for each in requests if each.prompt_index not in running}
        for part in parts_of_like_length(new_prompts, self.device):
            self._prefill({index: new_prompts[index] for index in part})
        self.cache.add_rows([request.prompt_index for request in requests])
        new, before = len(requests), self.rows
        self.requests += requests
        self.told += [0] * new
        self.looks += [None] * new
        self.key = torch.cat((self.key, self._keys(requests)))
        self.age = torch.cat((self.age, self._integers(new)))
        self.limit = torch.cat((self.limit, torch.tensor([*map(self._limit, requests)], device=self.device)))
        self.finished = torch.cat((self.finished, self.finished.new_zeros(new)))
        self.stopped = torch.cat((self.stopped, self.stopped.new_zeros(new)))
        self.tokens = torch.cat((self.tokens, self._integers(new, self.max_new + 1)))
        self.logprobs = torch.cat((self.logprobs, self.logprobs.new_zeros(new, self.max_new + 1)))
        logits = torch.stack([self.last_logits[request.prompt_index] for request in requests])
        self._draw(slice(before, None), logits, self._grouped(requests))
        self.groups = self._grouped(self.requests)

    def _prefill(self, prompts: dict[int, Sequence[int]]) -> None:
        """Run prompts through the model together and hand their keys and values to the cache."""
        read = prefill(self.model, list(prompts.values()), self.cache.keys.dtype)
        self.cache.add_prompts(list(prompts), read.prefix, read.lengths)
        self.last_logits |= zip(prompts, read.logits, strict=True)

    def _keys(self, requests: Sequence[Request]) -> Tensor:
        """(rows,) what chooses each row's random numbers."""
        numbers = [(each.sampling.seed, each.prompt_key, each.sample_index) for each in requests]
        return stream_keys(*torch.tensor(numbers, device=self.device).unbind(1))

    def _limit(self, request: Request) -> int:
        room = self.model.config.block_size - len(request.prompt)
        return min(room, self.max_new, request.sampling.max_new_tokens)

    def _grouped(self, requests: Sequence[Request]) -> list[Group]:
        rows_of: dict[Manner, list[int]] = {}
        for row, request in enumerate(requests):
            rows_of.setdefault(request.manner, []).append(row)
        alone = len(rows_of) == 1
        return [
            Group(manner, rows, slice(None) if alone else torch.tensor(rows, device=self.device))
            for manner, rows in rows_of.items()
        ]

    def step(self, *, refill: bool) -> Iterator[Completion]:
        """Give out rows that have finished, then advance the others by one token."""
        if not self.rows:
            return
        leaving = int(self.finished.sum())
        if leaving and (leaving == self.rows or leaving >= self.rows * LEAVE_SHARE):
            yield from self._remove_finished()
            if refill or not self.rows:
                return
        if self.cache.length == self.cache.capacity:
            self.cache.forget_columns(int(self.cache.start[~self.finished].min()))
        newest = self.tokens.gather(1, (self.age - 1)[:, None])  # (R, 1)
        # A row that has finished but not left yet may run past the last position; nobody reads what it writes.
        positions = self.cache.positions().clamp_(max=self.model.config.block_size - 1)
        with self.weights.used():
            states = self.model.hidden(newest, view=self.cache, position_ids=positions[:, None])
            logits = self.model.logits(states[:, 0])
        self._draw(slice(None), logits, self.groups)

    def _draw(self, rows: slice, logits: Tensor, groups: Sequence[Group]) -> None:
        """Draw the next token of `rows`, write it down, and mark the rows that are finished with it."""
        age, finished, logits = self.age[rows], self.finished[rows], logits[:, : self.vocab_size]
        uniforms = uniforms_at(self.key[rows], age)
        first = self.rows - len(age)
        for group in groups:
            at, last = group.at, age[group.at, None]
            drawn, logprobs = draw_tokens(logits[at], uniforms[at], group.manner.sampling)
            place = torch.arange(first, self.rows, device=self.device)[at]
            self.tokens[place, last[:, 0]] = drawn
            self.logprobs[place, last[:, 0]] = logprobs
            self.stopped[place] |= torch.isin(drawn, self._stops(group.manner.stop_ids)) & ~finished[at]
            if group.manner.alternatives is not None:
                looks = look_at(logits[at], drawn, alternatives=group.manner.alternatives)
                for row, look in zip(group.rows, looks, strict=True):
                    self.looks[first + row] = look
        age += ~finished
        finished |= self.stopped[rows] | (age >= self.limit[rows])

    def _stops(self, stop_ids: frozenset[int]) -> Tensor:
        if stop_ids not in self.stop_ids:
            self.stop_ids[stop_ids] = torch.tensor(sorted(stop_ids), dtype=torch.long, device=self.device)
        return self.stop_ids[stop_ids]

    def fresh(self) -> Iterator[Fresh]:
        """The token that each row has written since this was last called; to be called after every `admit` and `step`,
        for of two tokens the newer is told."""
        if not self.rows:
            return
        newest = self.tokens.gather(1, (self.age - 1)[:, None])[:, 0]
        found = torch.stack((self.age, newest, self.finished.long(), self.stopped.long())).tolist()
        for row, (age, token, finished, stopped) in enumerate(zip(*found, strict=True)):
            if age > self.told[row]:
                self.told[row] = age
                yield Fresh(self.requests[row], token, self.looks[row], _reason(stopped) if finished else None)

    def cancel(self, requests: Collection[Request]) -> None:
        """Take back what nobody waits for any more: these rows are gone before the next step."""
        staying = [row for row, request in enumerate(self.requests) if request not in requests]
        if len(staying) < self.rows:
            self._keep(torch.tensor(staying, dtype=torch.long, device=self.device))

    def _remove_finished(self) -> Iterator[Completion]:
        finished = self.finished.nonzero().flatten()
        ages, stopped = self.age[finished].tolist(), self.stopped[finished].tolist()
        tokens, logprobs = self.tokens[finished].tolist(), self.logprobs[finished].tolist()
        leaving = [self.requests[row] for row in finished.tolist()]
        self._keep((~self.finished).nonzero().flatten())
        for i, request in enumerate(leaving):
            yield Completion(
                prompt_index=request.prompt_index,
                sample_index=request.sample_index,
                token_ids=tuple(tokens[i][: ages[i]]),
                logprobs=tuple(logprobs[i][: ages[i]]),
                finish_reason=_reason(stopped[i]),
            )

    def _keep(self, rows: Tensor) -> None:
        self.cache.keep(rows)
        kept = rows.tolist()
        self.requests, self.told, self.looks = (
            [self.requests[row] for row in kept],
            [self.told[row] for row in kept],
            [self.looks[row] for row in kept],
        )
        self.groups = self._grouped(self.requests)
        self.last_logits = {index: self.last_logits[index] for index in self.cache.prompt_indices}
        self.key, self.age, self.limit = self.key[rows], self.age[rows], self.limit[rows]
        self.finished, self.stopped = self.finished[rows], self.stopped[rows]
        self.tokens, self.logprobs = self.tokens[rows], self.logprobs[rows]


def _reason(stopped: bool) -> FinishReason:
    return "stop" if stopped else "length"


def look_at(logits: Tensor, chosen: Tensor, *, alternatives: int) -> list[Look]:
    """What `logits` (R, V) say of the tokens `chosen` (R,), and which `alternatives` they make likeliest."""
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
    top = logprobs.topk(min(alternatives, logprobs.shape[1]), dim=-1)
    return [
        Look(logprob, tuple(ids), tuple(nats))
        for logprob, ids, nats in zip(own, top.indices.tolist(), top.values.tolist(), strict=True)
    ]


@torch.inference_mode()
def look_at_prompt(model: GPT, prompt: Sequence[int], *, alternatives: int) -> list[Look]:
    """What the model thinks of each token of `prompt` after the first, given those before it: one `Look` fewer than
    tokens."""
    token_ids = torch.tensor(prompt, device=model.device)
    states = model.hidden(token_ids[None, :-1])[0]  # (T - 1, D)
    looks: list[Look] = []
    for begin in range(0, len(states), LOOKED_AT):
        some = slice(begin, begin + LOOKED_AT)
        logits = model.logits(states[some])[:, : vocabulary_of(model)]
        looks += look_at(logits, token_ids[1:][some], alternatives=alternatives)
    return looks


def vocabulary_of(model: GPT) -> int:
    """How many tokens there are; the embedding may be padded with further rows."""
    return model.config.vocab_size if model.tokenizer is None else model.tokenizer.vocab_size
