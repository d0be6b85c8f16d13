"""What an edit changes in text that has nothing to do with it: how far the whole distribution of the next token moves.

At every place of some text, KL(before ‖ after) = Σ p(token) · (log p(token) − log q(token)), in nats: 0 where nothing
has changed, whatever comes next there. The head is not edited, so the states below it are kept of the model before, and
both distributions are made of them a block at a time.

Shapes: N blocks, T tokens, D model width, V vocabulary, M places at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_edit.common.stats import quantity, share
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.evaluation.prompt_records import Drift, MovedText
from nanogpt_edit.evaluation.targets import LOGIT_NUMBERS
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer, tokenizer_of

DRIFT_TOKENS = 4096  # of the text; more narrow the interval and take longer
SHOWN = 12  # places where the next token moved most
SHOWN_CONTEXT = 16  # tokens in front of each


@dataclass(frozen=True)
class Reading:
    """What a model makes of some text: its blocks (N, T) and the states (N, T, D) that the next tokens come from."""

    blocks: Tensor
    states: Tensor


@torch.inference_mode()
def read(model: GPT, text: Tensor) -> Reading:
    """The states of `model` on the first `DRIFT_TOKENS` of `text` (N, T + 1)."""
    blocks = text[: max(1, DRIFT_TOKENS // (text.shape[1] - 1))]
    states = []
    model.eval()
    with progress("reading unrelated text", len(blocks), "blocks", brief=True) as bar:
        for part in blocks.split(8):
            states.append(model.hidden(part[:, :-1].to(model.device)))
            bar.update(sum(map(len, states)))
    return Reading(blocks, torch.cat(states))


@torch.inference_mode()
def drift(model: GPT, before: Reading, after: Reading) -> Drift:
    """How far the next-token distributions are apart; intervals over blocks. Both share the head of `model`."""
    tokenizer, (n, width) = tokenizer_of(model), before.states.shape[:2]
    kl, changed, top = [], [], []
    room = max(1, LOGIT_NUMBERS // model.config.vocab_size // 2)
    old_states, new_states = (each.states.flatten(0, 1).split(room) for each in (before, after))
    for old, new in zip(old_states, new_states, strict=True):
        old, new = (model.logits(part).float().log_softmax(-1) for part in (old, new))  # (M, V)
        (p_old, first_old), (p_new, first_new) = (logprobs.max(-1) for logprobs in (old, new))
        kl.append((old.exp() * (old - new)).sum(-1).clamp(min=0))
        changed.append(first_old != first_new)
        top.append(torch.stack((first_old.double(), p_old.exp().double(), first_new.double(), p_new.exp().double())))
    moved, tops = torch.cat(kl).double().view(n, width), torch.cat(top, dim=1).T.view(n, width, 4)  # (N, T), (N, T, 4)
    nats, places = moved.max(1)
    return Drift(
        kl=quantity(moved.mean(1).tolist()),
        top_changed=share(torch.cat(changed).double().view(n, width).mean(1).tolist()),
        tokens=n * width,
        worst=tuple(
            _moved(tokenizer, before.blocks[row].tolist(), int(places[row]), float(nats[row]), tops[row, places[row]])
            for row in nats.argsort(descending=True)[:SHOWN].tolist()
        ),
    )


def _moved(tokenizer: Tokenizer, block: Sequence[int], place: int, nats: float, top: Tensor) -> MovedText:
    """The place of a block whose next token moved most."""
    first_old, p_old, first_new, p_new = top.tolist()
    return MovedText(
        text=tokenizer.decode(block[max(0, place + 1 - SHOWN_CONTEXT) : place + 1]),
        follows=tokenizer.decode([block[place + 1]]),
        kl=nats,
        before=tokenizer.decode([int(first_old)]),
        p_before=p_old,
        after=tokenizer.decode([int(first_new)]),
        p_after=p_new,
    )
