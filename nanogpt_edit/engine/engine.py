"""Prompts in, completions out: prefill once, decode together, refill the slots.

Each distinct prompt is run through the model once; all its samples look at the same keys and values
(`decode_cache.py`). All running rows advance one token per step. Finished rows leave the batch and waiting requests
take their place (continuous batching, Yu et al. 2022). The engine speaks token ids only.

Shapes: R running rows, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nanogpt_edit.common.device import product_dtype
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.sizes import check_fits
from nanogpt_edit.engine.completion import Completion, Request, completion_bytes
from nanogpt_edit.engine.decode_cache import DecodeCache
from nanogpt_edit.engine.packed_weights import PackedWeights
from nanogpt_edit.engine.prefill import parts_of_like_length, prefill
from nanogpt_edit.engine.sampling import draw_tokens, stream_keys, uniforms_at
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.engine.slots import COLUMNS, SlotBatch, Slots
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache

CACHE_BYTES = 4 << 30  # on a CPU
SLACK_COLUMNS = 64  # decode steps between two moves of the cache contents to the front
PACKING_PAYS = 16  # steps after which packed weights have saved the time it takes to pack them
LEAVE_SHARE = 1 / 8  # finished rows are removed once they are this share of the batch


class Engine:
    """Generates with `model` as its weights are at the time of the call."""

    def __init__(
        self, model: GPT, *, max_slots: int = 512, cache_bytes: int | None = None, in_slots: bool | None = None
    ) -> None:
        """`max_slots` rows run at once at most, fewer if their cache would exceed `cache_bytes` (None: 4 GiB, on a GPU
        half of what is free when first used). `in_slots` says whether rows have slots (`slots.py`); None: on a GPU.

        What the cache leaves of `cache_bytes` may hold the weights once more, in an order that a CPU reads faster
        (`PackedWeights`).
        """
        self.model, self.max_slots = model, max_slots
        on_gpu = model.device.type == "cuda"
        self.in_slots = on_gpu if in_slots is None else in_slots
        free = torch.cuda.mem_get_info(model.device)[0] // 2 if on_gpu else CACHE_BYTES
        self.cache_bytes = free if cache_bytes is None else cache_bytes
        self._cache: DecodeCache | None = None
        self._slots: Slots | None = None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int = 1,
        sampling: Sampling,
        stop_ids: frozenset[int] = frozenset(),
        prompt_keys: Sequence[int] | None = None,
    ) -> list[Completion]:
        """`n` completions of each prompt, ordered by prompt, then sample.

        `prompt_keys` are the numbers that choose each prompt's random stream (default: its position), so that the same
        problem gets the same text in any company. Raises UserError for an empty or over-long prompt.
        """
        finished = self.stream(prompts, n=n, sampling=sampling, stop_ids=stop_ids, prompt_keys=prompt_keys)
        return sorted(finished, key=lambda c: (c.prompt_index, c.sample_index))

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int = 1,
        sampling: Sampling,
        stop_ids: frozenset[int] = frozenset(),
        prompt_keys: Sequence[int] | None = None,
    ) -> Iterator[Completion]:
        """As `generate`, but each completion is given out as soon as it is finished."""
        if not prompts or n < 1:
            return
        self._check(prompts, n, sampling)
        keys = prompt_keys if prompt_keys is not None else range(len(prompts))
        waiting = deque(Request(p, s, keys[p]) for p in range(len(prompts)) for s in range(n))
        batch = self._batch(prompts, sampling, stop_ids, wanted=len(waiting))
        was_training = self.model.training
        self.model.eval()
        try:
            while waiting or batch.rows:
                if waiting and batch.free:
                    batch.admit([waiting.popleft() for _ in range(min(batch.free, len(waiting)))])
                yield from batch.step(refill=bool(waiting))
        finally:
            self.model.train(was_training)

    def _check(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> None:
        """Raise UserError for more completions than memory holds, and for a prompt that is empty or too long."""
        block_size = self.model.config.block_size
        check_fits(
            f"{n:,} completions" + (f" of each of {len(prompts):,} prompts" if len(prompts) > 1 else ""),
            n * len(prompts) * completion_bytes(min(sampling.max_new_tokens, block_size)),
            remedy="ask for fewer at a time",
        )
        for index, prompt in enumerate(prompts):
            which = f"prompt {index}" if len(prompts) > 1 else "the prompt"
            if not prompt:
                raise UserError(f"{which} is empty; give at least one token.")
            if len(prompt) >= block_size:
                raise UserError(
                    f"{which} has {len(prompt):,} tokens, the model's block_size is {block_size:,}; shorten it."
                )

    def _batch(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, stop_ids: frozenset[int], *, wanted: int
    ) -> _Batch | SlotBatch:
        if not self.in_slots:
            return _Batch(self, prompts, sampling, stop_ids, wanted=wanted)
        own = min(sampling.max_new_tokens, self.model.config.block_size - min(map(len, prompts)))
        slots = self.slots_for(wanted, own=own, longest_prompt=max(map(len, prompts)))
        most_rows, vocab_size = min(wanted, len(slots.finished)), vocabulary_of(self.model)
        return SlotBatch(self.model, slots, prompts, sampling, stop_ids, vocab_size=vocab_size, most_rows=most_rows)

    def slots_for(self, rows: int, *, own: int, longest_prompt: int) -> Slots:
        """Slots for up to `rows` rows of `own` new tokens; the last ones if they are large enough."""
        config, device, dtype = self.model.config, self.model.device, product_dtype(self.model.embed.weight)
        columns = min(-(-(longest_prompt + own) // COLUMNS) * COLUMNS, config.block_size)
        affordable = self.cache_bytes // KVCache.row_bytes(config, capacity=columns, dtype=dtype)
        rows = max(1, min(rows, self.max_slots, affordable))
        found = self._slots
        if found is None or not found.serves(slots=rows, columns=columns, new_tokens=own, dtype=dtype, device=device):
            self._slots = None  # free the old ones first
            found = self._slots = Slots(self.model, slots=rows, columns=columns, new_tokens=own, dtype=dtype)
        return found

    def cache_for(self, rows: int, *, own: int, longest_prompt: int) -> DecodeCache:
        """An empty cache for up to `rows` rows of `own` new tokens; the last one if it is large enough.

        `cache_bytes` bounds it: rows and their share of the prompts count together.
        """
        config, device, dtype = self.model.config, self.model.device, product_dtype(self.model.embed.weight)
        affordable = self.cache_bytes // KVCache.row_bytes(config, capacity=own + longest_prompt, dtype=dtype)
        rows = max(1, min(rows, self.max_slots, affordable))
        prompt_bytes = rows * KVCache.row_bytes(config, capacity=longest_prompt, dtype=dtype)
        cache = self._cache
        if (
            cache is None
            or cache.keys.shape[1] < rows
            or cache.capacity < own
            or (cache.keys.dtype, cache.keys.device) != (dtype, device)
            or cache.nbytes + prompt_bytes > self.cache_bytes
        ):
            self._cache = None  # free the old one first
            cache = DecodeCache(
                config, rows=rows, capacity=own, longest_prompt=longest_prompt, device=device, dtype=dtype
            )
            self._cache = cache
        cache.slots, cache.longest_prompt = rows, longest_prompt
        cache.clear()
        return cache


class _Batch:
    """The running rows: what each was asked for, has written, and may still write."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop_ids: frozenset[int],
        wanted: int,
    ) -> None:
        self.model, self.prompts, self.sampling = engine.model, prompts, sampling
        config, self.device = engine.model.config, engine.model.device
        self.vocab_size = vocabulary_of(engine.model)
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.long, device=self.device)
        self.max_new = min(sampling.max_new_tokens, config.block_size - min(map(len, prompts)))
        self.cache = engine.cache_for(wanted, own=self.max_new + SLACK_COLUMNS, longest_prompt=max(map(len, prompts)))
        self.slots = min(wanted, self.cache.slots)
        room = engine.cache_bytes - self.cache.nbytes if self.max_new >= PACKING_PAYS else 0
        self.weights = PackedWeights(self.model, max_bytes=room)
        self.last_logits: dict[int, Tensor] = {}  # of the running prompts: what follows their last token, (V,)
        self.requests: list[Request] = []
        self.key, self.age, self.limit = (self._integers(0) for _ in range(3))
        self.finished = torch.zeros(0, dtype=torch.bool, device=self.device)
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

    def admit(self, requests: list[Request]) -> None:
        """Prefill the prompts of `requests` that are not running yet, and draw the first token of each request."""
        running = set(self.cache.prompt_indices)
        new_prompts = [p for p in dict.fromkeys(request.prompt_index for request in requests) if p not in running]
        for part in parts_of_like_length(self.prompts, new_prompts):
            self._prefill(part)
        self.cache.add_rows([request.prompt_index for request in requests])
        lengths = torch.tensor([len(self.prompts[request.prompt_index]) for request in requests], device=self.device)
        key = stream_keys(
            self.sampling.seed,
            torch.tensor([request.prompt_key for request in requests], device=self.device),
            torch.tensor([request.sample_index for request in requests], device=self.device),
        )
        new, before = len(requests), self.rows
        self.requests += requests
        self.key = torch.cat((self.key, key))
        self.age = torch.cat((self.age, self._integers(new)))
        self.limit = torch.cat((self.limit, (self.model.config.block_size - lengths).clamp_(max=self.max_new)))
        self.finished = torch.cat((self.finished, self.finished.new_zeros(new)))
        self.tokens = torch.cat((self.tokens, self._integers(new, self.max_new + 1)))
        self.logprobs = torch.cat((self.logprobs, self.logprobs.new_zeros(new, self.max_new + 1)))
        logits = torch.stack([self.last_logits[request.prompt_index] for request in requests])
        self._draw(slice(before, None), logits)

    def _prefill(self, prompt_indices: list[int]) -> None:
        """Run prompts through the model together and hand their keys and values to the cache."""
        read = prefill(self.model, [self.prompts[index] for index in prompt_indices], self.cache.keys.dtype)
        self.cache.add_prompts(prompt_indices, read.prefix, read.lengths)
        self.last_logits |= zip(prompt_indices, read.logits, strict=True)

    def step(self, *, refill: bool) -> Iterator[Completion]:
        """Give out rows that have finished, then advance the others by one token."""
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
        self._draw(slice(None), logits)

    def _draw(self, rows: slice, logits: Tensor) -> None:
        """Draw the next token of `rows`, write it down, and mark the rows that are finished with it."""
        age = self.age[rows]
        drawn, logprobs = draw_tokens(logits[:, : self.vocab_size], uniforms_at(self.key[rows], age), self.sampling)
        self.tokens[rows].scatter_(1, age[:, None], drawn[:, None])
        self.logprobs[rows].scatter_(1, age[:, None], logprobs[:, None])
        age += ~self.finished[rows]
        self.finished[rows] |= torch.isin(drawn, self.stop_ids) | (age >= self.limit[rows])

    def _remove_finished(self) -> Iterator[Completion]:
        finished = self.finished.nonzero().flatten()
        ages = self.age[finished].tolist()
        stopped = torch.isin(self.tokens[finished, self.age[finished] - 1], self.stop_ids).tolist()
        tokens, logprobs = self.tokens[finished].tolist(), self.logprobs[finished].tolist()
        leaving = [self.requests[row] for row in finished.tolist()]
        self._keep((~self.finished).nonzero().flatten())
        for i, request in enumerate(leaving):
            yield Completion(
                prompt_index=request.prompt_index,
                sample_index=request.sample_index,
                token_ids=tuple(tokens[i][: ages[i]]),
                logprobs=tuple(logprobs[i][: ages[i]]),
                finish_reason="stop" if stopped[i] else "length",
            )

    def _keep(self, rows: Tensor) -> None:
        self.cache.keep(rows)
        self.requests = [self.requests[row] for row in rows.tolist()]
        self.last_logits = {index: self.last_logits[index] for index in self.cache.prompt_indices}
        self.key, self.age, self.limit = self.key[rows], self.age[rows], self.limit[rows]
        self.finished, self.tokens, self.logprobs = self.finished[rows], self.tokens[rows], self.logprobs[rows]


def vocabulary_of(model: GPT) -> int:
    """How many tokens there are; the embedding may be padded with further rows."""
    return model.config.vocab_size if model.tokenizer is None else model.tokenizer.vocab_size
