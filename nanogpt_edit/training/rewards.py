"""A reward is a function of (problem, completion text) that returns a number; a stage uses a weighted list of them.

It may return (number, {name: number}) instead: the further numbers weigh nothing, and are logged beside the reward.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import SupportsFloat

from nanogpt_edit.common.errors import UserError, did_you_mean
from nanogpt_edit.common.own_code import find_own
from nanogpt_edit.common.reasoning import render
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.evaluation.answers import extract, is_correct

Further = Mapping[str, float]
Reward = Callable[[Problem, str], float | tuple[float, Further]]
PHRASE_WORDS = 3


def accuracy(problem: Problem, completion_text: str) -> float:
    """1 when the completion is well-formed and its answer equals the gold answer after normalising, else 0."""
    return float(is_correct(extract(completion_text).strict, problem.answer))


def format_reward(problem: Problem, completion_text: str) -> float:
    """1 when the completion is exactly `<think>…</think><answer>…</answer>`, else 0."""
    return float(extract(completion_text).well_formed)


def length(problem: Problem, completion_text: str) -> float:
    """1 when the completion is as long as the worked solution, in characters, falling to 0 at nothing and at twice."""
    wanted = len(render(problem.rationale, problem.answer))
    return max(0.0, 1 - abs(len(completion_text) - wanted) / wanted)


def cosine(problem: Problem, completion_text: str) -> float:
    """A right answer earns 1 when short and 0.5 when long, a wrong one −1 when short and −0.5 when long, by a cosine of
    its length; long is twice the worked solution, in characters (after Yeo et al. 2025, section 4).
    """
    longest = 2 * len(render(problem.rationale, problem.answer))
    short = (1 + math.cos(math.pi * min(1.0, len(completion_text) / longest))) / 2
    return 0.5 + short / 2 if accuracy(problem, completion_text) else -0.5 - short / 2


def repetition(problem: Problem, completion_text: str) -> float:
    """Minus the share of its phrases of three words that stood in it before: 0 where none does (Yeo et al. 2025)."""
    words = completion_text.split()
    phrases = [tuple(words[i : i + PHRASE_WORDS]) for i in range(len(words) - PHRASE_WORDS + 1)]
    return len(set(phrases)) / len(phrases) - 1 if phrases else 0.0


BUILT_IN: dict[str, Reward] = {
    "accuracy": accuracy,
    "format": format_reward,
    "length": length,
    "cosine": cosine,
    "repetition": repetition,
}


def find_reward(name: str) -> Reward:
    """A built-in reward by its name, or any function by `module:function`, importable or in a file of this folder.

    Raises UserError naming what could not be found.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if not name.partition(":")[2]:
        meant = did_you_mean(name, BUILT_IN)
        raise UserError(f'there is no reward "{name}"{meant} There are {", ".join(BUILT_IN)}, and module:function.')
    function = find_own(name, what="reward", kind="function")
    if not callable(function):
        raise UserError(f'reward "{name}" is not a function.')
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise UserError(f'reward "{name}" is async, and nothing would await it; define it with def alone.')
    if inspect.isgeneratorfunction(function):
        raise UserError(f'reward "{name}" yields; it is to return one number.')
    if not _takes(function, 2):
        raise UserError(f'reward "{name}" does not take (problem, completion_text); give it these two parameters.')
    return function


def _takes(function: Callable[..., object], count: int) -> bool:
    """Can it be called with so many values by their order? Yes, where Python cannot tell."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # some functions written in C do not say
        return True
    return True


def find_rewards(names: Iterable[str]) -> dict[str, Reward]:
    """The functions of some rewards, by name; see `find_reward`."""
    return {name: find_reward(name) for name in dict.fromkeys(names)}


def score(rewards: Mapping[str, Reward], problem: Problem, texts: Sequence[str]) -> dict[str, list[float]]:
    """Each reward of each completion of one problem: name -> one number per text (unweighted).

    A truth value counts as 1 or 0; further numbers of a reward stand under "name.further". Raises UserError naming the
    reward, the problem, the completion and the value when a reward fails, tries to end the program, is not one finite
    number, or has not the same further numbers for every completion.
    """
    found: dict[str, list[float]] = {}
    for name, reward in rewards.items():
        rows = [_call(name, reward, problem, text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if row.keys() != rows[0].keys():
                told, before = (", ".join(list(each)[1:]) or "none" for each in (row, rows[0]))
                raise UserError(f"{_where(name, problem, text)} gave further numbers {told}; before, {before}.")
        found |= {key: [row[key] for row in rows] for key in (rows[0] if rows else ())}
    return found


def _call(name: str, reward: Reward, problem: Problem, text: str) -> dict[str, float]:
    """The reward's number under its name, and its further numbers."""
    where = _where(name, problem, text)
    try:
        value: object = reward(problem, text)
        number, further = value if isinstance(value, tuple) and len(value) == 2 else (value, {})
        numbers = {name: (number, _number(number))}
        if not isinstance(further, Mapping):
            numbers[name] = (value, None)
        else:
            numbers |= {f"{name}.{key}": (each, _number(each)) for key, each in further.items()}
    except (Exception, SystemExit, GeneratorExit) as error:  # whatever a user's function does
        raise UserError(f"{where} failed: {type(error).__name__}: {error}") from error
    checked: dict[str, float] = {}
    for key, (shown, found) in numbers.items():
        of = "" if key == name else f" for {key}"
        if found is None:
            raise UserError(f"{where} gave {_shown(shown)}{of}; a reward must return one number.")
        if not math.isfinite(found):
            raise UserError(f"{where} gave {found}{of}; a reward must be a finite number.")
        checked[key] = found
    return checked


def _where(name: str, problem: Problem, text: str) -> str:
    return f'reward "{name}" on problem {problem.id}, completion {text[:200]!a}'


def _number(value: object) -> float | None:
    """The number that a reward returned, also as a truth value or an array of one; None for anything else."""
    if inspect.isawaitable(value) and hasattr(value, "close"):
        value.close()  # else Python complains later, elsewhere, that nothing awaited it
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # arrays of several, whole numbers beyond any float
        return None


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}" if value is not None else "None"
