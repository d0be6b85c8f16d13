"""Ordinary text where none is given: what the model itself writes when it begins a text with nothing to go on.

A model is a distribution over texts, and samples of it at temperature 1 are what it takes ordinary text to be; so the
keys of an edit can be protected with nothing downloaded, for a model whose training text nobody has.
"""

from __future__ import annotations

import math

from nanogpt_edit.common.terminal import progress
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import RestrictedSampling
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import END_OF_TEXT_NAMES, Tokenizer, tokenizer_of

OPENING = "The"  # of a text, for a model of which no token says that one begins
DOCUMENT_TOKENS = 64
AT_ONCE = 64  # documents: more are little faster on a CPU, and the first one would be long in coming
TOP_K = 50  # rare tokens lead a small model astray, and it goes on from there


def own_text(model: GPT, *, tokens: int, seed: int) -> list[str]:
    """Documents of together about `tokens` tokens, sampled from the model (seeded)."""
    tokenizer = tokenizer_of(model)
    opening = opening_ids(tokenizer)
    length = min(DOCUMENT_TOKENS, model.config.block_size - len(opening))
    documents = math.ceil(tokens / length)
    sampling = RestrictedSampling(
        temperature=1.0,
        top_k=TOP_K,
        max_new_tokens=length,
        seed=seed,
        banned_ids=tokenizer.reasoning_ids,
    )
    engine = Engine(model, max_slots=AT_ONCE)
    stream = engine.stream([opening], n=documents, sampling=sampling, stop_ids=tokenizer.end_ids)
    with progress("writing text of its own", documents, unit="documents") as bar:
        written = sorted(bar.counted(stream), key=lambda each: each.sample_index)
    texts = (tokenizer.decode([i for i in each.token_ids if i not in tokenizer.end_ids]) for each in written)
    return [text for text in texts if text.strip()]


def opening_ids(tokenizer: Tokenizer) -> list[int]:
    """What stands before a text: the token that ended the one before it, or else a first word."""
    ends = (name for name in END_OF_TEXT_NAMES if name in tokenizer.markup)
    return tokenizer.encode(next(ends, OPENING))
