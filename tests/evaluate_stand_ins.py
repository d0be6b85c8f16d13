"""A model whose every probability is chosen, and records of completions and facts made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tiny_stages import tiny_model, tiny_tokenizer
from torch import Tensor

from nanogpt_edit.evaluation.records import EvalRecord, Recall
from nanogpt_edit.model.block import take_columns
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache


def bigram(odds: Mapping[int, Mapping[int, float]]) -> GPT:
    """A stand-in for a model: after token a, token b is odds[a][b] times as probable as a token that is not named."""
    size = tiny_tokenizer().vocab_size
    table = torch.ones(size, size)
    for last, row in odds.items():
        for token, weight in row.items():
            table[last, token] = weight

    class Bigram(GPT):
        def hidden(
            self,
            token_ids: Tensor,
            *,
            view: KVCache | None = None,
            columns: Tensor | None = None,
            **_: object,
        ) -> Tensor:
            if view is not None:
                view.advance(self.config.n_layer - 1, token_ids.shape[1])
            states = torch.nn.functional.one_hot(token_ids, size).float()
            return states if columns is None else take_columns(states, columns)

        def logits(self, states: Tensor) -> Tensor:
            return (states @ table).log()

    model = tiny_model()
    model.__class__ = Bigram
    return model


def token(text: str) -> int:
    (token_id,) = tiny_tokenizer().encode(text)
    return token_id


CERTAIN = 1e12


def writes(*pieces: str, after: str = "?") -> dict[int, dict[int, float]]:
    """Odds of a model that continues every question with these single-token pieces."""
    chain = [after, *pieces]
    return {token(last): {token(then): CERTAIN} for last, then in zip(chain, pieces, strict=False)}


def graded(problem: int, sample: int, answer: str | None, **changes: Any) -> EvalRecord:
    """A record of a problem whose right answer is 5."""
    text = "5 and so on" if answer is None else f"<think></think><answer>{answer}</answer>"
    record = EvalRecord(
        skill="problems",
        problem_id=f"test:{problem}",
        sample_index=sample,
        prompt="2 + 3?",
        gold="5",
        text=text,
        strict=answer,
        flexible=answer or "5",
        correct=answer == "5",
        well_formed=answer is not None,
        thinking_tokens=4,
        answer_tokens=1,
        finish_reason="stop",
    )
    return replace(record, **changes)


def all_graded(*answers: Sequence[str | None], **changes: Any) -> list[EvalRecord]:
    return [graded(p, s, answer, **changes) for p, group in enumerate(answers) for s, answer in enumerate(group)]


def recalled(group: str, subject: str, *hits: bool) -> list[Recall]:
    return [Recall(group, subject, f"{subject} {i}", "x", "x", 1, 0.5, 0.5, hit) for i, hit in enumerate(hits)]
