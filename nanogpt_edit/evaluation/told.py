"""Completions of an evaluation token by token: how likely each token was, and how sure the model was of its place.

A handful of each checkpoint, for a reader who wants to see where it hesitates. Their texts are encoded again, and
scored in one pass under the full softmax at temperature 1, whatever they were sampled with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nanogpt_edit.data.samples import prompt_ids
from nanogpt_edit.evaluation.records import EvalRecord, ToldCompletion
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.head import head_logprobs
from nanogpt_edit.model.tokenizer import tokenizer_of

DIGITS = 5


def to_tell(records: Sequence[EvalRecord]) -> list[EvalRecord]:
    """The first right and the first wrong completion of the problems and of the arithmetic."""
    chosen = []
    for skill in ("problems", "arithmetic"):
        for correct in (True, False):
            chosen += [each for each in records if (each.skill, each.correct) == (skill, correct) and each.text][:1]
    return chosen


@torch.inference_mode()
def tell(model: GPT, records: Sequence[EvalRecord], *, form: str = "{}") -> list[ToldCompletion]:
    """Each completion with the log-probability and the entropy of its tokens; problems were put as `form` says.

    What lies beyond the model's window is left out.
    """
    tokenizer = tokenizer_of(model)
    was_training, told = model.training, []
    model.eval()
    for record in records:
        prompt = prompt_ids(form.replace("{}", record.prompt.strip()), tokenizer)
        written = tokenizer.encode(record.text)[: max(0, model.config.block_size - len(prompt))]
        ids = torch.tensor([*prompt, *written], device=model.device)
        states = model.hidden(ids[None, :-1])[0, len(prompt) - 1 :]  # (T, D): each looks at the token before its own
        logprobs, entropy = head_logprobs(states, model.head_weight, ids[len(prompt) :], temperature=1.0)
        told.append(
            ToldCompletion(
                skill=record.skill,
                problem_id=record.problem_id,
                sample_index=record.sample_index,
                prompt=record.prompt,
                gold=record.gold,
                correct=record.correct,
                token_texts=tuple(tokenizer.token_text(token) for token in written),
                logprobs=tuple(round(value, DIGITS) for value in logprobs.tolist()),
                entropy=tuple(round(value, DIGITS) for value in entropy.tolist()),
            )
        )
    model.train(was_training)
    return told
