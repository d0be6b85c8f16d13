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

from nanogpt_edit.common.device import product_dtype
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.sizes import check_fits, machine_bytes
from nanogpt_edit.engine.batch import Batch, vocabulary_of
from nanogpt_edit.engine.completion import Completion, Request, completion_bytes
from nanogpt_edit.engine.decode_cache import DecodeCache
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.engine.slots import COLUMNS, SlotBatch, Slots
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache

CACHE_SHARE = 1 / 4  # of a CPU's memory, used or free: the same rows are to run together whatever else runs
SLACK_COLUMNS = 64  # decode steps between two moves of the cache contents to the front
PACKING_PAYS = 16  # steps after which packed weights have saved the time it takes to pack them


class Engine:
    """Generates with `model` as its weights are at the time of the call."""

    def __init__(
        self, model: GPT, *, max_slots: int = 512, cache_bytes: int | None = None, in_slots: bool | None = None
    ) -> None:
        """`max_slots` rows run at once at most, fewer if their cache would exceed `cache_bytes` (None: a quarter of
        the machine's memory, on a GPU half of what is free when first used). `in_slots` says whether rows have slots
        (`slots.py`); None: on a GPU.

        What the cache leaves of `cache_bytes` may hold the weights once more, in an order that a CPU reads faster
        (`PackedWeights`).
        """
        self.model, self.max_slots = model, max_slots
        on_gpu = model.device.type == "cuda"
        self.in_slots = on_gpu if in_slots is None else in_slots
        free = torch.cuda.mem_get_info(model.device)[0] // 2 if on_gpu else int(machine_bytes() * CACHE_SHARE)
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
        waiting = deque(
            Request(p, s, keys[p], prompt, sampling, stop_ids) for p, prompt in enumerate(prompts) for s in range(n)
        )
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
    ) -> Batch | SlotBatch:
        own = min(sampling.max_new_tokens, self.model.config.block_size - min(map(len, prompts)))
        longest_prompt = max(map(len, prompts))
        if not self.in_slots:
            return self.open(wanted, new_tokens=own, longest_prompt=longest_prompt)
        slots = self.slots_for(wanted, own=own, longest_prompt=longest_prompt)
        most_rows, vocab_size = min(wanted, len(slots.finished)), vocabulary_of(self.model)
        return SlotBatch(self.model, slots, sampling, stop_ids, vocab_size=vocab_size, most_rows=most_rows)

    def open(self, rows: int, *, new_tokens: int, longest_prompt: int) -> Batch:
        """An empty batch for up to `rows` rows at once, fewer where memory holds no more; it lives until the next.

        Where nobody knows how long prompts will be, `longest_prompt` is the length that memory is to hold of every
        row's, and `Batch.room_for` says which of those that come fit.
        """
        cache = self.cache_for(rows, own=new_tokens + SLACK_COLUMNS, longest_prompt=longest_prompt)
        return Batch(
            self.model,
            cache,
            slots=min(rows, cache.slots),
            new_tokens=new_tokens,
            prompt_bytes=self.cache_bytes - cache.nbytes,
            packing_bytes=self.cache_bytes - cache.nbytes if new_tokens >= PACKING_PAYS else 0,
        )

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
        if device.type == "cpu":
            dtype = self.model.dtype  # what attention is computed in there (`attention.py`)
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
            cache = self._cache = DecodeCache(config, rows=rows, capacity=own, device=device, dtype=dtype)
        cache.slots = rows
        cache.clear()
        return cache
