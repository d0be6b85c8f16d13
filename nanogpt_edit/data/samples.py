"""Word problems as tokens: the question a model is given, and the completion it is to learn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.records import Answering
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample(metaclass=Answering):
    """One training row: a question and its completion. Both fields have length T.

    Example: token_ids=(1532, …, 50257, …, 50260), loss_mask=(0, …, 1, …, 1)
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]  # 1 where the token is a target


def prompt_ids(problem: Problem | str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the bare question: what the model is given before it writes `<think>`."""
    question = problem if isinstance(problem, str) else problem.question
    return tokenizer.encode(question.strip())


def to_sample(problem: Problem, tokenizer: Tokenizer) -> Sample:
    """The question, then `<think>` rationale `</think><answer>` answer `</answer>`; targets from `<think>` on."""
    prompt = prompt_ids(problem, tokenizer)
    completion = [
        tokenizer.think_start,
        *tokenizer.encode(problem.rationale),
        tokenizer.think_end,
        tokenizer.answer_start,
        *tokenizer.encode(problem.answer),
        tokenizer.answer_end,
    ]
    return Sample(token_ids=(*prompt, *completion), loss_mask=(0,) * len(prompt) + (1,) * len(completion))


def refuse_markup(problems: Iterable[Problem], tokenizer: Tokenizer) -> None:
    """Raise UserError for a problem that holds the text of one of the tokenizer's special tokens: the end of a text in
    the middle of a solution would be learned as such."""
    markup = re.compile("|".join(map(re.escape, tokenizer.markup)))
    for problem in problems:
        found = markup.search(f"{problem.question}\n{problem.rationale}\n{problem.answer}")
        if found:
            raise UserError(
                f"problem {problem.id}: the text holds {found[0]}, a special token of the model's; take it out."
            )


def with_room(
    problems: Sequence[Problem], tokenizer: Tokenizer, *, room: int, block_size: int
) -> tuple[list[Problem], list[str]]:
    """(problems, notes): those whose question leaves `room` of `block_size` tokens; a note says how many do not.

    Raises UserError when none does, and for what `refuse_markup` refuses.
    """
    refuse_markup(problems, tokenizer)
    kept = [problem for problem in problems if len(prompt_ids(problem, tokenizer)) + room <= block_size]
    if problems and not kept:
        raise UserError(
            f"None of {len(problems):,} questions leaves room for a completion of {room} tokens in block_size "
            f"{block_size}; use a model with a larger one, or ask for shorter completions (max_new_tokens)."
        )
    if len(kept) == len(problems):
        return kept, []
    left_out = len(problems) - len(kept)
    return kept, [
        f"{left_out:,} of {len(problems):,} problems were left out because their question leaves no room for a "
        f"completion of {room} tokens in block_size {block_size}."
    ]


@checked
def to_samples(
    problems: Sequence[Problem], tokenizer: Tokenizer, *, block_size: int
) -> tuple[list[Sample], tuple[str, ...]]:
    """(samples, notes): every problem that fits in `block_size` tokens; notes say how many did not.

    Raises UserError when none is left, and for what `refuse_markup` refuses.
    """
    refuse_markup(problems, tokenizer)
    samples = [to_sample(problem, tokenizer) for problem in problems]
    kept = [sample for sample in samples if len(sample.token_ids) <= block_size]
    too_long = len(samples) - len(kept)
    if not kept:
        raise UserError(
            f"None of {len(samples):,} problems fits in block_size {block_size} tokens; use a model with a larger "
            f"block_size, or shorter problems."
        )
    if not too_long:
        return kept, ()
    longest = max(len(sample.token_ids) for sample in samples)
    return kept, (
        f"{too_long:,} of {len(samples):,} problems were left out because they exceed block_size {block_size} "
        f"(the longest has {longest:,} tokens).",
    )
