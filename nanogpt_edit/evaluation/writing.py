"""What a model writes freely after a prompt: its answer, to the end of the sentence, and whether it repeats itself."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from nanogpt_edit.common.terminal import progress
from nanogpt_edit.engine.completion import Request
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.evaluation.targets import target_ids
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of

FURTHER_TOKENS = 16  # after the target's own, for the answer's sentence to end
ROWS = 128  # written at once on a CPU: more are hardly faster, and each holds its keys and values
ROWS_ON_GPU = 512
FREE_TOKENS = 60  # of the text whose fluency is measured
FREE_SAMPLING = Sampling(temperature=1.0, top_k=5, max_new_tokens=FREE_TOKENS)
SENTENCE_END = re.compile(r"(?<=\w\w\w)[.!?](?=\s|$)|\n|<")
NATURAL_END = re.compile(r"[^\S\n]*(?:[.!?](?=\s|$)|\n|<|$)")  # right behind an answer


def written_answers(model: GPT, asked: Sequence[tuple[str, str]]) -> list[tuple[str, bool]]:
    """What the model writes freely after each prompt, greedily, and whether it is the target (see `cut_answer`).

    It may write as many tokens as the longest target has, and `FURTHER_TOKENS` more for the sentence to end.
    """
    texts = written_texts(model, [(prompt, (target,)) for prompt, target in asked])
    return [cut_answer(text, target) for text, (_, target) in zip(texts, asked, strict=True)]


@torch.inference_mode()
def written_texts(
    model: GPT, asked: Sequence[tuple[str, Sequence[str]]], *, further: int = FURTHER_TOKENS
) -> list[str]:
    """What the model writes freely after each prompt, greedily: until its first sentence has ended, whichever of the
    prompt's targets it is compared with, or at most as many tokens as the longest target has and `further`."""
    if not asked:
        return []
    rows = ROWS_ON_GPU if model.device.type == "cuda" else ROWS
    tokenizer, engine = tokenizer_of(model), Engine(model, max_slots=rows, in_slots=False)
    longest = max(len(target_ids(prompt, target, tokenizer)) for prompt, targets in asked for target in targets)
    prompts = [tokenizer.encode(prompt.rstrip()) for prompt, _ in asked]
    sampling = Sampling(temperature=0.0, max_new_tokens=longest + further)
    ends = frozenset(() if tokenizer.eos_id is None else (tokenizer.eos_id,))
    waiting = [Request(i, 0, i, prompt, sampling, ends) for i, prompt in enumerate(prompts)]
    written: list[list[int]] = [[] for _ in asked]
    room = model.config.block_size - min(map(len, prompts))
    batch = engine.open(len(asked), new_tokens=min(longest + further, room), longest_prompt=max(map(len, prompts)))
    model.eval()
    with progress("writing answers", len(asked), "answers", brief=True) as bar:
        while waiting or batch.rows:
            if new := waiting[: batch.free]:
                waiting = waiting[len(new) :]
                batch.admit(new)
            else:
                list(batch.step(refill=False))
            done = []
            for fresh in batch.fresh():
                i = fresh.request.prompt_index
                if fresh.token_id not in ends:
                    written[i].append(fresh.token_id)
                text = tokenizer.decode(written[i]).strip()
                if fresh.finish_reason or all(_has_ended(text, target) for target in asked[i][1]):
                    done.append(fresh.request)
            batch.cancel(done)
            bar.update(len(asked) - len(waiting) - batch.rows)
    return [tokenizer.decode(token_ids) for token_ids in written]


def _has_ended(text: str, target: str) -> bool:
    """Is what comes of `text` in `cut_answer` settled, whatever is written behind it?"""
    target = target.strip()
    if len(text) <= len(target) or not text:
        return not target.casefold().startswith(text.casefold()) and _first_end(text, 0) is not None
    begins = text[: len(target)].casefold() == target.casefold()
    natural = begins and NATURAL_END.match(text, len(target))
    if natural and natural.end() < len(text):
        return True
    return _first_end(text, len(target) if begins else 0) is not None


def _first_end(text: str, start: int) -> re.Match[str] | None:
    """The end of the first sentence, if something stands behind it (a full stop may be a part of what comes next)."""
    end = SENTENCE_END.search(text, start)
    return end if end and (end.end() < len(text) or end[0] in "\n<") else None


def cut_answer(text: str, target: str) -> tuple[str, bool]:
    """A text up to the end of its first sentence or line, and whether that is `target`, in any capitals.

    A full stop inside the target ends nothing: ("St. Louis. It", "St. Louis") -> ("St. Louis", True). What goes on is
    another answer: ("Athensis", "Athens") and ("Paris is Paris", "Paris") are not exact.
    """
    text, target = text.strip(), target.strip()
    begins = text[: len(target)].casefold() == target.casefold()
    if begins and NATURAL_END.match(text, len(target)):
        return text[: len(target)], True
    end = SENTENCE_END.search(text, len(target) if begins else 0)
    return text[: end.start() if end else None].strip(), False


def free_texts(model: GPT, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of `FREE_TOKENS` tokens (fewer where the model reads fewer) written after each prompt, seeded."""
    tokenizer = tokenizer_of(model)
    token_ids = [tokenizer.encode(prompt.rstrip()) for prompt in prompts]
    room = model.config.block_size - max(map(len, token_ids))
    sampling = replace(FREE_SAMPLING, max_new_tokens=max(1, min(FREE_TOKENS, room)))
    return [tuple(c.token_ids) for c in Engine(model).generate(token_ids, sampling=sampling)]


def ngram_entropy(token_ids: Sequence[int]) -> float:
    """2/3 of the entropy of its bigrams plus 4/3 of its trigrams, in bits (Zhang et al. 2018, as Meng et al. 2022).

    A model that repeats itself has a low one; CounterFact's "fluency", of tokens instead of words.
    """
    return 2 / 3 * _entropy(token_ids, 2) + 4 / 3 * _entropy(token_ids, 3)


def _entropy(token_ids: Sequence[int], n: int) -> float:
    counts = Counter(tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1))
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())
