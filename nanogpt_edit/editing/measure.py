"""One model's state of mind about some facts: what it would say, how probable each answer is, how it writes on.

`scores.py` compares two such states, before an edit and after.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling import Sampling
from nanogpt_edit.evaluation.targets import TargetScore, score_targets, target_ids
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of

FURTHER_TOKENS = 16  # after the target's own, for the answer's sentence to end
FREE_TOKENS = 60  # of the text whose fluency is measured
FREE_SAMPLING = Sampling(temperature=1.0, top_k=5, max_new_tokens=FREE_TOKENS)
SENTENCE_END = re.compile(r"(?<=\w\w\w)[.!?](?=\s|$)|\n|<")
NATURAL_END = re.compile(r"[^\S\n]*(?:[.!?](?=\s|$)|\n|<|$)")  # right behind an answer


@dataclass(frozen=True)
class FactState:
    """One fact under one model: `paraphrases` and `neighbourhood` hold (wanted, other) targets per prompt."""

    new: TargetScore
    true: TargetScore
    paraphrases: tuple[tuple[TargetScore, TargetScore], ...]
    neighbourhood: tuple[tuple[TargetScore, TargetScore], ...]
    answer: str
    """What the model writes freely, greedily, to the end of the sentence."""
    exact: bool = False
    """The answer is the new one, with its natural end and nothing added."""
    entropy: float | None = None
    """n-gram entropy of a text the model writes after the prompt, in bits (see `ngram_entropy`); None: not asked."""


@progress("measuring facts")
def measure_facts(model: GPT, facts: Sequence[Fact], *, fluency: bool = False) -> tuple[FactState, ...]:
    """The state of every fact in `model`; `fluency` lets the model write on after each prompt, for the entropy.

    Raises UserError for a fact without a true answer: nothing could be compared with the new one.
    """
    for fact in facts:
        if not all(answer.strip() for answer in (fact.target_true, *(n.target_true for n in fact.neighbourhood))):
            raise UserError(f'"{fact.prompt}" has no true answer (target_true) to compare with; fill it in.')
    wanted = [pair for fact in facts for pair in _pairs(fact)]
    scores = dict(zip(wanted, score_targets(model, wanted), strict=True))
    answers = written_answers(model, [(fact.prompt, fact.target_new) for fact in facts])
    texts = free_texts(model, [fact.prompt for fact in facts]) if fluency else []
    entropies: list[float | None] = [ngram_entropy(text) for text in texts]
    return tuple(
        FactState(
            new=scores[fact.prompt, fact.target_new],
            true=scores[fact.prompt, fact.target_true],
            paraphrases=tuple((scores[p, fact.target_new], scores[p, fact.target_true]) for p in fact.paraphrases),
            neighbourhood=tuple(
                (scores[n.prompt, n.target_true], scores[n.prompt, fact.target_new]) for n in fact.neighbourhood
            ),
            answer=answer,
            exact=exact,
            entropy=entropy,
        )
        for fact, (answer, exact), entropy in zip(facts, answers, entropies or [None] * len(facts), strict=True)
    )


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


def _pairs(fact: Fact) -> list[tuple[str, str]]:
    """Every prompt with every target that is asked of it."""
    both = (fact.target_new, fact.target_true)
    own = [(prompt, target) for prompt in (fact.prompt, *fact.paraphrases) for target in both]
    return own + [(n.prompt, target) for n in fact.neighbourhood for target in (n.target_true, fact.target_new)]
