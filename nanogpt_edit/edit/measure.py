"""One model's state of mind about some facts: what it would say, how probable each answer is, how it writes on.

All prompts and targets of all facts go through the model in a few batched passes, logits at target positions only.
`scores.py` compares two such states, before an edit and after.

Shapes: R rows (a prompt with a target), T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from nanogpt_edit.edit.contexts import pad_rows
from nanogpt_edit.edit.facts import Fact, join, target_ids
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling import Sampling
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of

BATCH_TOKENS = 8192
ANSWER_TOKENS = 10
FREE_TOKENS = 60  # of the text whose fluency is measured
FREE_SAMPLING = Sampling(temperature=1.0, top_k=5, max_new_tokens=FREE_TOKENS)
SENTENCE_END = re.compile(r"(?<=\w\w\w)[.!?](?=\s|$)|\n|<")


@dataclass(frozen=True)
class TargetScore:
    """How a model likes one target after one prompt."""

    p_first: float
    """Probability of the target's first token."""
    rank: int
    """Its rank among all tokens; 1 is the model's own choice."""
    p_target: float
    """Probability of the whole target."""
    p_token: float
    """Geometric mean probability per target token; what targets are compared by."""
    token_accuracy: float
    """Share of the target's tokens that are the model's choice, given those before."""


@dataclass(frozen=True)
class FactState:
    """One fact under one model: `paraphrases` and `neighbourhood` hold (wanted, other) targets per prompt."""

    new: TargetScore
    true: TargetScore
    paraphrases: tuple[tuple[TargetScore, TargetScore], ...]
    neighbourhood: tuple[tuple[TargetScore, TargetScore], ...]
    answer: str
    """What the model says, greedily, to the end of the sentence."""
    entropy: float | None = None
    """n-gram entropy of a text the model writes after the prompt, in bits (see `ngram_entropy`); None: not asked."""


def measure_facts(model: GPT, facts: Sequence[Fact], *, fluency: bool = False) -> tuple[FactState, ...]:
    """The state of every fact in `model`; `fluency` lets the model write on after each prompt, for the entropy."""
    wanted = [pair for fact in facts for pair in _pairs(fact)]
    scores = dict(zip(wanted, _score_targets(model, wanted), strict=True))
    prompts = [fact.prompt for fact in facts]
    answers = greedy_answers(model, prompts)
    entropies = [ngram_entropy(text) for text in free_texts(model, prompts)] if fluency else [None] * len(facts)
    return tuple(
        FactState(
            new=scores[fact.prompt, fact.target_new],
            true=scores[fact.prompt, fact.target_true],
            paraphrases=tuple((scores[p, fact.target_new], scores[p, fact.target_true]) for p in fact.paraphrases),
            neighbourhood=tuple(
                (scores[n.prompt, n.target_true], scores[n.prompt, fact.target_new]) for n in fact.neighbourhood
            ),
            answer=answer,
            entropy=entropy,
        )
        for fact, answer, entropy in zip(facts, answers, entropies, strict=True)
    )


def greedy_answers(model: GPT, prompts: Sequence[str], *, max_tokens: int = ANSWER_TOKENS) -> list[str]:
    """What the model says after each prompt, greedily, up to the end of the sentence or line."""
    tokenizer = tokenizer_of(model)
    completions = Engine(model).generate(
        [tokenizer.encode(prompt.rstrip()) for prompt in prompts],
        sampling=Sampling(temperature=0.0, max_new_tokens=max_tokens),
        stop_ids=frozenset(() if tokenizer.eos_id is None else (tokenizer.eos_id,)),
    )
    texts = [tokenizer.decode([i for i in c.token_ids if i != tokenizer.eos_id]) for c in completions]
    return [SENTENCE_END.split(text.strip(), maxsplit=1)[0].strip() for text in texts]


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


def _pairs(fact: Fact) -> list[tuple[str, str]]:
    """Every prompt with every target that is asked of it."""
    both = (fact.target_new, fact.target_true)
    own = [(prompt, target) for prompt in (fact.prompt, *fact.paraphrases) for target in both]
    return own + [(n.prompt, target) for n in fact.neighbourhood for target in (n.target_true, fact.target_new)]


@torch.no_grad()
def _score_targets(model: GPT, pairs: Sequence[tuple[str, str]]) -> list[TargetScore]:
    tokenizer = tokenizer_of(model)
    rows: list[tuple[list[int], tuple[int, ...]]] = []
    for prompt, target in pairs:
        rows.append((tokenizer.encode(join(prompt, target)[0]), target_ids(prompt, target, tokenizer)))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    scores: dict[int, TargetScore] = {}
    while order:
        longest = sum(map(len, rows[order[-1]]))
        count = max(1, BATCH_TOKENS // longest)
        batch, order = order[-count:], order[:-count]
        for index, score in zip(batch, _score_batch(model, [rows[i] for i in batch], tokenizer.pad_id), strict=True):
            scores[index] = score
    return [scores[i] for i in range(len(rows))]


def _score_batch(model: GPT, rows: Sequence[tuple[list[int], tuple[int, ...]]], pad_id: int) -> list[TargetScore]:
    token_ids = pad_rows([(*prompt, *target[:-1]) for prompt, target in rows], pad_id=pad_id, device=model.device)
    states = model.hidden(token_ids)  # (R, T, D)
    where = [(row, len(prompt) - 1 + j) for row, (prompt, target) in enumerate(rows) for j in range(len(target))]
    row, column = torch.tensor(where, device=model.device).T
    wanted = torch.tensor([t for _, target in rows for t in target], device=model.device)
    logits = model.logits(states[row, column]).float()  # (all target tokens, V)
    own = logits.gather(-1, wanted[:, None])
    logprobs = (own.squeeze(-1) - logits.logsumexp(-1)).tolist()
    ranks = (1 + (logits > own).sum(-1)).tolist()
    scores, at = [], 0
    for _, target in rows:
        mine, mine_ranks = logprobs[at : at + len(target)], ranks[at : at + len(target)]
        at += len(target)
        scores.append(
            TargetScore(
                p_first=math.exp(mine[0]),
                rank=mine_ranks[0],
                p_target=math.exp(sum(mine)),
                p_token=math.exp(sum(mine) / len(mine)),
                token_accuracy=sum(rank == 1 for rank in mine_ranks) / len(mine_ranks),
            )
        )
    return scores
