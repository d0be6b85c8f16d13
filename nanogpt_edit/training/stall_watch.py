"""What a person is told while GRPO learns little or nothing, and whether the policy has collapsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nanogpt_edit.common import distributed
from nanogpt_edit.common.files import read_jsonl
from nanogpt_edit.common.terminal import say
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.rollouts import RolloutGroup
from nanogpt_edit.training.trainer import logged

QUIET_STEPS = 20  # from one sentence about a stall to the next
LARGEST_SAMPLER_GAP = (
    0.05  # nats; float32 stays under 1e-3, bfloat16 of a small model under this, of a deep one near 0.5
)


class StallWatch:
    """Looks at every step of a run. `log` is the stage's own log: a resumed run decides by it as an unbroken one."""

    def __init__(self, config: GRPOConfig, log: Path) -> None:
        self.config, self.log = config, log
        self.quiet_until = self.short_steps = 0
        self.gap_said = LARGEST_SAMPLER_GAP / 2

    def look(self, step: int, kept: Sequence[RolloutGroup], metrics: Mapping[str, float]) -> None:
        """Say what held the step back: too few groups that refill could find, or no signal in any of them; and where
        sampler and trainer part, again only when twice as far."""
        if metrics["sampler_gap"] > 2 * self.gap_said:
            self.gap_said = metrics["sampler_gap"]
            say(
                f"grpo: step {step}: sampler and trainer disagree by {self.gap_said:.3f} nats on a token they should "
                f"agree on; the update is off-policy by that much. Rounding in bfloat16 does that in a deep model; in "
                f"float32 something is wrong. Every step's is in the log."
            )
        if self.config.dynamic_sampling == "refill" and len(kept) < self.config.problems_per_step:
            self.short_steps += 1
            if self.short_steps == 1:
                say(
                    f"grpo: step {step}: after {self.config.max_resample_rounds} further rounds {len(kept)} of "
                    f"{self.config.problems_per_step} groups carry signal; the step is that much smaller. More such "
                    f"steps are counted."
                )
        if step >= self.quiet_until and (reason := why_stalled(metrics)):
            say(f"grpo: step {step}: {reason}")
            self.quiet_until = step + QUIET_STEPS

    def sees_collapse(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Has the well-formed share fallen below `stop_below` after it was above? Then say so."""
        share, bound = metrics["well_formed"], self.config.stop_below
        if share >= bound or not self._was_well_formed():
            return False
        say(
            f"grpo: step {step}: only {share:.0%} of the completions are well-formed (stop_below is {bound:.0%}); the "
            f"policy has collapsed. The run stops and keeps its best weights; try a lower learning_rate or a higher "
            f"kl_coef."
        )
        return True

    def close(self, *, kept: Mapping[str, float] | None) -> None:
        """Say how many steps refill could not fill, when it was more than the one that was said at once, and where
        validation was better at the start than with the best weights `kept` (their step and score)."""
        if self.short_steps > 1:
            say(
                f"grpo: {self.short_steps} steps were smaller than asked for: too few groups carried signal "
                f"(dynamic_sampling)."
            )
        if kept is not None and kept["step"] > 0 and distributed.is_first():
            start = read_jsonl(self.log, log=True)[0].get("val_pass_at_1")
            if isinstance(start, float) and start > kept["score"]:  # a log that somebody has changed ends no run
                say(
                    f"grpo: pass@1 on validation was {start:.1%} before the first step and is {kept['score']:.1%} with "
                    f"what is kept. What was there before counts by the lower end of its 95% interval; more "
                    f"evaluate_problems make it narrower."
                )

    def _was_well_formed(self) -> bool:
        bound = self.config.stop_below
        found = distributed.is_first() and any(share >= bound for share in logged(self.log, "well_formed"))
        return any(distributed.all_gather(found))  # only the first process knows that its line is written


def why_stalled(metrics: Mapping[str, float]) -> str | None:
    """In words, why a step had nothing to learn from; None when it had."""
    if metrics["truncated"] == 1:
        return "every completion was cut at its length limit; raise grpo.max_new_tokens."
    if metrics["groups_dropped"] < 1:
        return None
    if metrics["well_formed"] == 0:
        return (
            "no completion is well-formed (<think>…</think><answer>…</answer>), so no answer earns anything; "
            "teach the format first, by SFT."
        )
    return (
        f"in every group all rewards are equal (mean {metrics['reward']:.2f}), so there is nothing to learn from; the "
        f"problems are too easy or too hard for this model."
    )
