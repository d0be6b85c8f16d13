"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from nanogpt_edit.common.errors import UserError, at_least
from nanogpt_edit.common.records import Settings, check_fields
from nanogpt_edit.engine.sampling_config import check_temperature

ALONE_TOKENS = 512  # a base model ends no answer: without a bound each sample would fill the whole block_size


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """How a checkpoint is measured."""

    problems: int = 400
    """Test problems (all there are, if fewer); 0 measures none, as for a model that nothing teaches to reason."""
    samples: int = 16
    """Completions of each."""
    edited_samples: int = 4
    """Completions of each for the edited model, where only the change is of interest."""
    arithmetic_samples: int = 8
    """Completions of each of the simple arithmetic problems."""
    asked_as: str = "{}"
    """How a problem is put, {} standing for its question; a model that nothing has taught to reason may answer only
    when it is told that an answer comes next ("Question: {}\\nAnswer:")."""
    temperature: float = 0.7
    """Divides the logits before sampling."""
    top_k: int | None = 50
    """Only the k most probable tokens can be drawn."""
    max_new_tokens: int | None = None
    """A completion is cut after this many tokens (None: in a run a quarter more than 99 of 100 worked solutions have,
    alone 512, or what block_size leaves)."""
    phrasings: int | None = None
    """In a run: in how many of its phrasings each true fact is asked (None: in all)."""
    sanity_tokens: int = 64
    """Simple arithmetic and non-math prompts get no more than this many tokens: a short answer needs less, and a model
    that never ends one would write on to the limit above every time."""
    max_slots: int = 512
    """Completions written at once; speed and memory only, the text is the same."""
    text: str | None = None
    """Held-out text for the perplexity: a file, a folder, or a hub data set, of which its test split is read (None:
    in a run the validation problems' questions, alone not measured)."""
    every_form: bool = True
    """In a run: ask edited facts in every form (in other places, denied, followed further, other facts of the subject),
    and read how far unrelated text moved: the larger part of scoring an edit."""
    perplexity_tokens: int = 16_384
    """Held-out text read for the perplexity."""
    seed: int = 0
    """Chooses the samples, and the resamples of lengths."""

    def __post_init__(self) -> None:
        check_fields(self)
        counts = ("samples", "edited_samples", "arithmetic_samples", "max_slots", "perplexity_tokens")
        at_least(1, self, *counts, "max_new_tokens", "top_k", "phrasings", "sanity_tokens")
        at_least(0, self, "seed", "problems")
        check_temperature(self.temperature)
        if self.asked_as.count("{}") != 1:
            raise UserError(
                f'is "{self.asked_as}"; it must hold {{}} once, where the question stands.', field="asked_as"
            )
