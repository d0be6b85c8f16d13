"""Conversations as tokens: every message of the assistant is a target, behind exactly what it would be asked with.

Each reply is put behind the text that the template makes of the turns before it, as generation would be given it, and
the two are cut into tokens apart: what is trained is what is asked later, token by token. A reply ends with the token
that ends it in generation; what the template writes behind that is no target.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.reasoning import TAGS
from nanogpt_edit.data.chats import Chat
from nanogpt_edit.data.samples import Sample
from nanogpt_edit.model.chat_template import render_chat
from nanogpt_edit.model.tokenizer import Tokenizer


def to_chat_sample(chat: Chat, tokenizer: Tokenizer) -> Sample:
    """The whole conversation in the model's template, with the assistant's messages as targets.

    Raises UserError where the template writes the turns before a reply in another way once the reply is there: then
    no training on whole conversations is what generation asks.
    """
    _refuse_markup(chat, tokenizer)
    done = ""
    token_ids: list[int] = []
    loss_mask: list[int] = []

    def add(ids: Sequence[int], *, target: int) -> None:
        token_ids.extend(ids)
        loss_mask.extend([target] * len(ids))

    for place, message in enumerate(chat.messages):
        if message.role != "assistant":
            continue
        asked = render_chat(tokenizer, chat.messages[:place], reply=True)
        told = render_chat(tokenizer, chat.messages[: place + 1], reply=False)
        if not (asked.startswith(done) and told.startswith(asked)):
            raise UserError(
                f"{chat.id}: the chat template writes the turns before message {place + 1} in another way once its "
                "reply is there, so what would be trained is not what is asked; use a template that does not "
                '(sft.chat_template = "plain").'
            )
        add(tokenizer.encode(asked[len(done) :]), target=0)
        reply = tokenizer.encode(told[len(asked) :])
        ends = next((i + 1 for i, token in enumerate(reply) if token in tokenizer.stop_ids), len(reply))
        add(reply[:ends], target=1)
        add(reply[ends:], target=0)
        done = told
    return Sample(token_ids=tuple(token_ids), loss_mask=tuple(loss_mask))


def _refuse_markup(chat: Chat, tokenizer: Tokenizer) -> None:
    """What a message says must not be read as the template's own tokens; the assistant may write reasoning tokens."""
    for message in chat.messages:
        allowed = TAGS if message.role == "assistant" else ()
        if held := [text for text in tokenizer.markup if text in message.content and text not in allowed]:
            raise UserError(f"{chat.id}: a message holds {held[0]}, a special token of the model's; take it out.")


@checked
def to_chat_samples(
    chats: Sequence[Chat], tokenizer: Tokenizer, *, block_size: int
) -> tuple[list[Sample], tuple[str, ...]]:
    """(samples, notes): every conversation that fits in `block_size` tokens; notes say how many did not.

    Raises UserError when none is left, and for what `to_chat_sample` refuses.
    """
    samples = [to_chat_sample(chat, tokenizer) for chat in chats]
    kept = [sample for sample in samples if len(sample.token_ids) <= block_size and any(sample.loss_mask[1:])]
    longest = max((len(sample.token_ids) for sample in samples), default=0)
    if not kept:
        raise UserError(
            f"None of {len(chats):,} conversations fits in block_size {block_size} (the longest has {longest:,} "
            "tokens); use a model with a larger one, or shorter conversations."
        )
    if len(kept) == len(samples):
        return kept, ()
    return kept, (
        f"{len(samples) - len(kept):,} of {len(samples):,} conversations were left out because they exceed block_size "
        f"{block_size} (the longest has {longest:,} tokens).",
    )
