"""`nanogpt-edit sample MODEL --prompt …`: what a model writes, as text or token by token."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console

from nanogpt_edit.commands.arguments import Sample
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.commands.speaker import load_speaker
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.samples import prompt_ids
from nanogpt_edit.engine.generate import generate
from nanogpt_edit.evaluation.transcript import completion_text, count_tokens, transcript_text
from nanogpt_edit.model.chat_template import Message, render_chat


def sample(arguments: list[str]) -> int:
    """The verb `sample`."""
    chosen = parse(Sample, arguments, verb="sample")
    if chosen.n < 1:
        raise UserError(f"n is {chosen.n}; ask for at least 1 completion.")
    if chosen.system is not None and not chosen.chat:
        raise UserError("--system is given, but not --chat, so nothing would read it; add --chat.")
    model, tokenizer = load_speaker(chosen.model, chosen.device)
    prompt = chosen.prompt
    if chosen.chat:
        system = [] if chosen.system is None else [Message("system", chosen.system)]
        prompt = render_chat(tokenizer, [*system, Message("user", chosen.prompt)])
    console = Console(highlight=False, soft_wrap=True)
    for number, found in enumerate(generate(model, prompt, n=chosen.n, **asdict(chosen.sampling)), start=1):
        thinking, answer = count_tokens(found.token_ids, tokenizer)
        counts = (
            f"{thinking} thinking and {answer} answer tokens of {len(found.token_ids)}, ended by {found.finish_reason}"
        )
        console.print(f"── {number} of {chosen.n} · {counts}", style="bold", markup=False)
        if chosen.transcript:
            console.print(transcript_text(prompt_ids(prompt, tokenizer), found.token_ids, tokenizer))
        elif console.is_terminal:
            console.print(completion_text(found.text))
        else:
            print(found.text)
    return 0
