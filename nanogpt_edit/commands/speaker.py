"""The model a verb is given, with the tokenizer without which it can neither read nor write."""

from __future__ import annotations

from nanogpt_edit.checkpoint.checkpoint import load
from nanogpt_edit.common.device import choose_device
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer


def load_speaker(source: str, device: str) -> tuple[GPT, Tokenizer]:
    """The model and its tokenizer. Raises UserError naming `source` when it has none, or is no model."""
    model = load(source, device=choose_device(device))
    if model.tokenizer is None:
        raise UserError(f"{source}: the model carries no tokenizer; give its directory the tokenizer.json it needs.")
    return model, model.tokenizer
