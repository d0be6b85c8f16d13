"""What a model writes freely after a prompt: its answer, to the end of the sentence, and whether it repeats itself."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.evaluation.targets import target_ids
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of

FURTHER_TOKENS = 16  # after the target's own, for the answer's sentence to end
FREE_TOKENS = 60  # of the text whose fluency is measured
FREE_SAMPLING = Sampling(temperature=1.0, top_k=5, max_new_tokens=FREE_TOKENS)
SENTENCE_END = re.compile(r"(?<=\w\w\w)[.!?](?=\s|$)|\n|<")
NATURAL_END = re.compile(r"[^\S\n]*(?:[.!?](?=\s|$)|\n|<|$)")  # right behind an answer


def written_answers(model: GPT, asked: Sequence[tuple[str, str]]) -> list[tuple[str, bool]]:
    """What the model writes freely after each prompt, greedily, and whether it is the target (see `cut_answer`).

    It may write as many tokens as the longest target has, and `FURTHER_TOKENS` more for the sentence to end.
    """
    if not asked:
        return []
    tokenizer = tokenizer_of(model)
    longest = max(len(target_ids(prompt, target, tokenizer)) for prompt, target in asked)
    completions = Engine(model).generate(
        [tokenizer.encode(prompt.rstrip()) for prompt, _ in asked],
        sampling=Sampling(temperature=0.0, max_new_tokens=longest + FURTHER_TOKENS),
        stop_ids=frozenset(() if tokenizer.eos_id is None else (tokenizer.eos_id,)),
    )
    texts = [tokenizer.decode([i for i in c.token_ids if i != tokenizer.eos_id]) for c in completions]
    return [cut_answer(text, target) for text, (_, target) in zip(texts, asked, strict=True)]


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
