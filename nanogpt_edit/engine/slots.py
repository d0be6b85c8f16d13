"""Decoding on a GPU: every row has a slot, and a step of all of them is one recorded CUDA graph.

A step of decoding is some hundred kernels of a few microseconds there, and Python takes ten times as long to launch
them as they take to run. So nothing here changes its shape or its place from step to step: each slot has its own keys
and values, prompt included, and what is known of its row lies in tensors that a step changes in place. The first step
of a shape (how many slots, how many columns of the cache) runs as written below; the second is recorded while it is
launched, and from then on the card repeats it by itself. Only every few steps does the host look which rows have
finished, gives them out and fills their slots again.

Shapes: S slots, R of them in use, L layers, K key/value heads, H query heads, C columns, E head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from nanogpt_edit.engine.completion import Completion, Request
from nanogpt_edit.engine.packed_weights import CastWeights
from nanogpt_edit.engine.prefill import Prefilled, parts_of_like_length, prefill
from nanogpt_edit.engine.sampling import draw_tokens, stream_keys, uniforms_at
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache

LOOK_STEPS = 8  # steps between two looks at which rows have finished
COLUMNS = 128  # of the cache are read in multiples of this
FEWEST_ROWS = 8  # of a shape; the others have twice as many each

Shape = tuple[int, int]
Kind = tuple[Shape, Sampling, frozenset[int], int]
"""What a recorded step is for: its shape, how tokens are drawn, which of them stop, and how many there are."""


class SlotCache(KVCache):
    """A `KVCache` in which every row has a length of its own."""

    def begin(self, place: Tensor, columns: int) -> None:
        """The next tokens of the first R rows go to column `place` (R,), and see the first `columns` up to it."""
        self._place = place[:, None, None, None]
        seen = torch.arange(columns, device=place.device) <= place[:, None]  # (R, columns)
        self._bias = torch.zeros(seen.shape, device=place.device).masked_fill_(~seen, -torch.inf)[:, None, None]
        self._columns = columns

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """One new token per row: q (R, H, 1, E) -> (R, H, 1, E)."""
        rows, heads, _, size = q.shape
        seen = []
        for own, new in ((self.keys[layer, :rows], keys), (self.values[layer, :rows], values)):
            own.scatter_(2, self._place.expand_as(new), new.to(own.dtype))
            seen.append(own[:, :, : self._columns])  # (R, K, columns, E)
        grouped = q.reshape(rows, keys.shape[1], -1, size).to(self.keys.dtype) * size**-0.5  # (R, K, H/K, E)
        weights = (grouped @ seen[0].transpose(-1, -2) + self._bias).softmax(dim=-1)
        return (weights.to(self.keys.dtype) @ seen[1]).reshape(rows, heads, 1, size)


class Slots:
    """What is allocated and recorded for a model's decoding; it outlasts a call, and serves all that fit in it."""

    def __init__(self, model: GPT, *, slots: int, columns: int, new_tokens: int, dtype: torch.dtype) -> None:
        device = model.device
        self.new_tokens = new_tokens
        self.cache = SlotCache(model.config, rows=slots, capacity=columns, device=device, dtype=dtype)
        self.weights = CastWeights(model)
        self.place, self.newest, self.key, self.age, self.limit = torch.zeros(5, slots, dtype=torch.long, device=device)
        self.finished = torch.ones(slots, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(slots, new_tokens + 1, dtype=torch.long, device=device)  # a column to spare: see step
        self.logprobs = torch.zeros(slots, new_tokens + 1, device=device)
        self.stop_ids: dict[frozenset[int], Tensor] = {}
        self.graphs: dict[Kind, torch.cuda.CUDAGraph | None] = {}
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def serves(self, *, slots: int, columns: int, new_tokens: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Is there room, and is it of the right kind?"""
        keys = self.cache.keys
        room = keys.shape[1] >= slots and self.cache.capacity >= columns and self.new_tokens >= new_tokens
        return room and (keys.dtype, keys.device) == (dtype, device)


class SlotBatch:
    """The rows of one call; see `Batch` in `batch.py`, which does the same on a CPU."""

    def __init__(
        self,
        model: GPT,
        slots: Slots,
        sampling: Sampling,
        stop_ids: frozenset[int],
        *,
        vocab_size: int,
        most_rows: int,
    ) -> None:
        self.model, self.slots, self.sampling = model, slots, sampling
        self.vocab_size, self.stops = vocab_size, stop_ids
        ids = torch.tensor(sorted(stop_ids), dtype=torch.long, device=model.device)
        self.stop_ids = slots.stop_ids.setdefault(stop_ids, ids)  # a recorded step reads them where they were
        self.running: dict[int, tuple[Request, int]] = {}  # by slot: what was asked for, and the step it began at
        self.steps, self.most_rows = 0, most_rows
        slots.finished.fill_(True)
        slots.weights.refresh()

    @property
    def rows(self) -> int:
        return len(self.running)

    @property
    def free(self) -> int:
        return self.most_rows - self.rows

    def admit(self, requests: list[Request]) -> None:
        """Read the prompts of `requests`, and draw the first token of each."""
        empty = iter(slot for slot in range(self.most_rows) if slot not in self.running)
        asked: dict[int, list[Request]] = {}
        for request in requests:
            asked.setdefault(request.prompt_index, []).append(request)
        prompts = {index: each[0].prompt for index, each in asked.items()}
        for part in parts_of_like_length(prompts, self.model.device):
            owners = [(row, request) for row, prompt in enumerate(part) for request in asked[prompt]]
            chosen = [next(empty) for _ in owners]
            read = prefill(self.model, [prompts[index] for index in part], self.slots.cache.keys.dtype)
            self._begin(read, [row for row, _ in owners], [request for _, request in owners], chosen)
            self.running |= {slot: (request, self.steps) for slot, (_, request) in zip(chosen, owners, strict=True)}

    def _begin(self, read: Prefilled, rows: list[int], requests: list[Request], chosen: list[int]) -> None:
        state, device = self.slots, self.model.device
        row, slot = torch.tensor(rows, device=device), torch.tensor(chosen, device=device)
        width = read.prefix.capacity
        state.cache.keys[:, slot, :, :width] = read.prefix.keys[:, row]
        state.cache.values[:, slot, :, :width] = read.prefix.values[:, row]
        numbers = [(self.sampling.seed, each.prompt_key, each.sample_index) for each in requests]
        key = stream_keys(*torch.tensor(numbers, device=device).unbind(1))
        age = torch.zeros_like(slot)
        logits = read.logits[row, : self.vocab_size]
        drawn, logprobs = draw_tokens(logits, uniforms_at(key, age), self.sampling)
        lengths = read.lengths[row]
        state.place[slot], state.newest[slot], state.key[slot], state.age[slot] = lengths, drawn, key, age + 1
        state.limit[slot] = (self.model.config.block_size - lengths).clamp_(max=self.sampling.max_new_tokens)
        state.tokens[slot, 0], state.logprobs[slot, 0] = drawn, logprobs
        state.finished[slot] = self._is_stop(drawn) | (state.limit[slot] <= 1)

    def step(self, *, refill: bool) -> Iterator[Completion]:
        """Give out rows that have finished, then advance the others by LOOK_STEPS tokens."""
        yield from self._remove_finished()
        if not self.running or (refill and self.free):
            return
        if not refill:
            self._close_ranks()
        rows = shape_of(max(self.running) + 1, least=FEWEST_ROWS, most=len(self.slots.finished))
        reach = max(len(r.prompt) + self.steps - began for r, began in self.running.values())
        columns = min(-(-(reach + LOOK_STEPS) // COLUMNS) * COLUMNS, self.slots.cache.capacity)
        with self.slots.weights.used():
            for _ in range(LOOK_STEPS):
                self._launch((rows, columns))
        self.steps += LOOK_STEPS

    def _launch(self, shape: Shape) -> None:
        """One step; a CUDA graph from the second of a shape on."""
        graphs = self.slots.graphs
        asked = (shape, replace(self.sampling, seed=0, max_new_tokens=1), self.stops, self.vocab_size)
        if self.slots.pool is None or asked not in graphs:
            graphs[asked] = None
            return self._advance(shape)
        graph = graphs[asked]
        if graph is None:
            graph = graphs[asked] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.slots.pool):
                self._advance(shape)
        graph.replay()

    def _advance(self, shape: Shape) -> None:
        """The next token of the first R slots. One that has finished stays where it is; nobody reads what it writes."""
        state, (rows, columns) = self.slots, shape
        place, newest, age, finished = (each[:rows] for each in (state.place, state.newest, state.age, state.finished))
        state.cache.begin(place, columns)
        states = self.model.hidden(newest[:, None], view=state.cache, position_ids=place[:, None])
        logits = self.model.logits(states[:, 0])[:, : self.vocab_size]
        drawn, logprobs = draw_tokens(logits, uniforms_at(state.key[:rows], age), self.sampling)
        state.tokens[:rows].scatter_(1, age[:, None], drawn[:, None])
        state.logprobs[:rows].scatter_(1, age[:, None], logprobs[:, None])
        newest.copy_(drawn)
        age += ~finished
        place += ~finished
        finished |= self._is_stop(drawn) | (age >= state.limit[:rows])

    def _is_stop(self, drawn: Tensor) -> Tensor:
        return (drawn[:, None] == self.stop_ids).any(dim=-1)

    def _remove_finished(self) -> Iterator[Completion]:
        state, over = self.slots, self.slots.finished.tolist()
        leaving = [slot for slot in self.running if over[slot]]
        if not leaving:
            return
        at = torch.tensor(leaving, device=self.model.device)
        ages, tokens, logprobs = (each[at].tolist() for each in (state.age, state.tokens, state.logprobs))
        for slot, age, ids, nats in zip(leaving, ages, tokens, logprobs, strict=True):
            request, _ = self.running.pop(slot)
            yield Completion(
                prompt_index=request.prompt_index,
                sample_index=request.sample_index,
                token_ids=tuple(ids[:age]),
                logprobs=tuple(nats[:age]),
                finish_reason="stop" if ids[age - 1] in self.stops else "length",
            )

    def _close_ranks(self) -> None:
        """Move the rows to the first slots, once that makes a step smaller."""
        least = shape_of(self.rows, least=FEWEST_ROWS, most=len(self.slots.finished))
        if least >= shape_of(max(self.running) + 1, least=FEWEST_ROWS, most=len(self.slots.finished)):
            return
        state, device = self.slots, self.model.device
        holes = [slot for slot in range(least) if slot not in self.running]
        moving = [slot for slot in self.running if slot >= least]
        old, new = torch.tensor(moving, device=device), torch.tensor(holes[: len(moving)], device=device)
        for cached in (state.cache.keys, state.cache.values):
            cached[:, new] = cached[:, old]
        for each in (state.place, state.newest, state.key, state.age, state.limit):
            each[new] = each[old]
        state.tokens[new], state.logprobs[new] = state.tokens[old], state.logprobs[old]
        state.finished[new], state.finished[old] = state.finished[old], True
        for before, after in zip(moving, holes, strict=False):
            self.running[after] = self.running.pop(before)


def shape_of(rows: int, *, least: int, most: int) -> int:
    """The smallest power of two times `least` that holds `rows`, at most `most`."""
    while least < rows:
        least *= 2
    return min(least, most)
