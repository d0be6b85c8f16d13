"""Text in, text out: the engine between a tokenizer's two ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.samples import prompt_ids
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of


@dataclass(frozen=True)
class Generation:
    """One completion as text: `Generation("2 + 2?", "<think>…</think><answer>4</answer>", (404, …), "stop")`."""

    prompt: str
    text: str
    """The completion alone, reasoning tags included."""
    token_ids: tuple[int, ...]
    """What was sampled, the stop token included."""
    finish_reason: str
    """stop (the model ended it) or length (it was cut)."""


@checked
def generate(
    model: GPT,
    prompts: str | Sequence[str],
    *,
    n: int = 1,
    temperature: float = 0.7,
    top_k: int | None = 50,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> list[Generation]:
    """`n` completions of each prompt, ordered by prompt; generation ends at `</answer>` or the end of the text.

    The text depends on the seed and the prompt's place in the list, not on how many run at once.
    Raises UserError for a model without a tokenizer, for an empty or over-long prompt, and for a setting of the wrong
    type or size.
    """
    check_samples(n)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    tokenizer = tokenizer_of(model)
    completions = Engine(model).generate(
        [prompt_ids(prompt, tokenizer) for prompt in prompts],
        n=n,
        sampling=Sampling(temperature, top_k, top_p, max_new_tokens, seed),
        stop_ids=tokenizer.stop_ids,
    )
    return [
        Generation(
            prompt=prompts[completion.prompt_index],
            text=tokenizer.decode([i for i in completion.token_ids if i not in tokenizer.end_ids]),
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
        )
        for completion in completions
    ]


def check_samples(n: int) -> None:
    """Raise UserError where fewer than one completion of each prompt is asked for."""
    if n < 1:
        raise UserError(
            f"is {n}; it must be at least 1, for it is how many completions of each prompt are made.", field="n"
        )
