"""Settings for a model that nobody has published any for: what an edit can find out by itself, in half its time again.

Finding values is dear, the closed form is cheap. So the layers come first, by their depth, by where the first token of
a text is an attention sink (`sinks.py`), and by a probe: a few facts, the bare prompts, a few steps at each place.
Values are found once, with more room (`clamp`) for facts that found none. Then the strength of protection (memit's λ,
alphaedit's ridge) is moved along a line: the weights are solved for, and it is asked how many of the edit's own prompts
say the whole new answer, and how far ordinary text has moved (KL, nats per token). The strongest protection under
which the own prompts hold, but for a few of a hundred, is taken: what it spares is more than what it costs. What an
edit is measured with (paraphrases, neighbours, held-out text) has no say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_edit.common.terminal import progress, say
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import LocatedFact, TokenRow
from nanogpt_edit.editing.covariance import in_words
from nanogpt_edit.editing.covariance_cache import covariances
from nanogpt_edit.editing.methods.memit import EditedLayer, LayerSolver, write_values
from nanogpt_edit.editing.records import Tried
from nanogpt_edit.editing.refine import OrdinaryText
from nanogpt_edit.editing.sinks import SinkNorms, sink_norms
from nanogpt_edit.editing.suffixes import Suffixes, clean_runs, texts_of
from nanogpt_edit.editing.values import FOUND, TargetValues, optimise_values
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT

DEPTHS = (0.36, 0.25, 0.5)
"""Of a last edited layer, the likeliest first: the published ones lie at 0.3 to 0.36 (GPT-J, GPT-2 XL, Llama)."""
COVARIANCE_BYTES = 2**30  # that C of all edited layers may take; their factors take as much again
PROBED_FACTS, PROBE_STEPS = 6, 10
PROBE_MARGIN = 0.05  # by how much a less likely place must be better
WIDENINGS = 2  # how often the clamp is doubled for those that found none within it
AT_BOUND = 0.99  # of the clamp, from which ‖δ‖ has come up against it
FACTOR, MOST_TRIALS = 3.0, 4  # steps along the line, and how many
HOLDS, HALF = 0.97, 0.5  # share of own prompts below which to try less protection, and only less
HOLD = 0.03  # share of own prompts that a stronger protection may cost
TEXT_ROWS = 16  # of ordinary text looked at in a trial: one for each fact up to so many, for the text costs most of it,
TEXT_TOKENS = 32  # and of few facts no more of them than so many for each
ROWS_AT_ONCE = 4  # of which, for their logits fill memory
SINK_TOKENS = 8  # of such a row, in which sinks are looked for
LOGIT_ROWS = 256  # tokens whose logits are held at once
SUITED: dict[str, object] = {
    "context_weight": 0.0,
    "refine_steps": 0,
    "learning_rate": 0.5,
    "steps": 25,
    "stop_probability": 0.95,
    "clamp": 2.0,
    "weight_decay": 0.5,
    "n_prefixes": 5,
    "covariance_tokens": 100_000,
    "full_stop": True,
    "rounds": 2,
}
"""What holds for pretrained models of any size, as far as they were tried; the defaults are those of `tiny`."""


@dataclass(frozen=True)
class Trial:
    """One strength on the line: `Trial(300.0, said=0.98, disturbed=0.012)`."""

    strength: float
    said: float
    """Share of the edit's own prompts after which every token of the new answer is the model's first choice."""
    disturbed: float
    """KL of ordinary text before and after, nats per token."""

    def describe(self) -> str:
        return f"{self.strength:g} ({self.said:.0%} of its own prompts, {self.disturbed:.3f} nats on other text)"


def choose_layers(
    model: GPT, facts: Sequence[LocatedFact], config: EditConfig, blocks: Tensor
) -> tuple[tuple[int, ...], tuple[Tried, ...]]:
    """Neighbours that end where values are found most easily; which, and why, is said. And what was tried."""
    norms = sink_norms(model, blocks[:TEXT_ROWS, :SINK_TOKENS])
    marks, best = probed(candidate_layers(norms), lambda last: _probe(model, facts, replace(config, layers=(last,))))
    share = len(facts) > 1 and config.traits.finds_values  # of one fact alone other text feels nothing
    chosen = group_up_to(best, model.config, share=share) if config.traits.many_layers else (best,)
    sinks = [layer for layer, each in enumerate(norms) if each.is_sink]
    told = ", ".join(f"{last} ({mark:.2f})" for last, mark in marks.items())
    say(
        f"Edit: layer{'s' * (len(chosen) > 1)} {in_words(chosen)} of {model.config.n_layer}. Probability of the new "
        f"answers after {PROBE_STEPS} steps with a value at layer {told}; the first token of a text is a sink "
        f"{'after layers ' + ', '.join(map(str, sinks)) if sinks else 'nowhere'}."
    )
    return chosen, tuple(Tried("layers", last, mark, chosen=last == best) for last, mark in marks.items())


def probed(lasts: Sequence[int], probe: Callable[[int], float]) -> tuple[dict[int, float], int]:
    """The marks of `lasts`, the likeliest first, up to where no other could be clearly better; and the best."""
    marks, best = dict[int, float](), lasts[0]
    for last in lasts:
        marks[last] = probe(last)
        if marks[last] > marks[best] + PROBE_MARGIN:
            best = last
        if marks[best] >= 1 - PROBE_MARGIN:
            break
    return marks, best


def candidate_layers(norms: Sequence[SinkNorms]) -> list[int]:
    """Where the last edited layer may lie, the likeliest first: nearest to each of `DEPTHS`, where first tokens are
    ordinary if that is anywhere between a sixth and a half of the depth. The model's last layer is none."""
    n = len(norms)
    allowed = range(min(n // 6, max(0, n - 2)), max(1, min(n - 1, n // 2 + 1)))
    ordinary = [layer for layer in allowed if not norms[layer].is_sink] or list(allowed)
    wanted = (depth * (n - 1) for depth in DEPTHS)
    return list(dict.fromkeys(min(ordinary, key=lambda layer: abs(layer - place)) for place in wanted))


def group_up_to(last: int, shape: GPTConfig, *, share: bool = True) -> tuple[int, ...]:
    """The layers up to `last` that change: a sixth of the model's, but two to five; where many facts `share` them, all
    whose C fit in `COVARIANCE_BYTES`, for the more layers share a change, the less of it other text feels
    (docs/editing.md)."""
    width = min(5, max(2, -(-shape.n_layer // 6)))
    if share:
        width = max(width, COVARIANCE_BYTES // (8 * shape.mlp_size**2))
    return tuple(range(max(0, last + 1 - width), last + 1))


def _probe(model: GPT, facts: Sequence[LocatedFact], config: EditConfig) -> float:
    """Mean probability of a few new answers after a few equal steps, in their bare prompts."""
    some = facts[:: -(-len(facts) // PROBED_FACTS)]
    some = [replace(fact, contexts=fact.contexts[:1], prompts=1) for fact in some]
    found = optimise_values(model, some, replace(config, steps=PROBE_STEPS, descent="adam")).probabilities
    return sum(found) / len(found)


def find_values(model: GPT, facts: Sequence[LocatedFact], config: EditConfig) -> tuple[TargetValues, tuple[Tried, ...]]:
    """Values of all facts; those that found none up to the clamp look again with a wider one, which is said."""
    values, tried = optimise_values(model, facts, config), list[Tried]()
    for widening in range(WIDENINGS):
        bound = config.clamp * 2**widening
        lost = [i for i in range(len(facts)) if is_held_back(values, i, bound)]
        if not lost:
            break
        wider = replace(config, clamp=2 * bound)
        again = optimise_values(model, [facts[i] for i in lost], wider)
        better = [j for j, i in enumerate(lost) if again.probabilities[j] > values.probabilities[i]]
        values = values.replaced({lost[j]: again.part(j, j + 1) for j in better})
        tried.append(Tried("clamp", wider.clamp, sum(again.probabilities) / len(lost), chosen=bool(better)))
        nearer = f"{len(better)} of them came nearer with a clamp of {wider.clamp:g}"
        say(f"Edit: {len(lost)} of {len(facts)} facts found no value of p {FOUND:g} within the clamp; {nearer}.")
    return values, tuple(tried)


def is_held_back(values: TargetValues, fact: int, clamp: float) -> bool:
    """Is it the clamp that kept this fact from a value? (Where ‖δ‖ is smaller, a wider one changes nothing.)"""
    return values.probabilities[fact] < FOUND and values.shifts[fact] > AT_BOUND * clamp


def choose_strength(
    model: GPT,
    facts: Sequence[LocatedFact],
    values: TargetValues,
    config: EditConfig,
    layers: Mapping[int, EditedLayer],
    solvers: Mapping[int, LayerSolver],
    blocks: Tensor,
) -> tuple[Trial, tuple[Tried, ...]]:
    """The strength of protection for `values`; the weights are left as they were. What was tried is said, and given."""
    name = config.traits.strength
    assert name is not None
    judge = _Judge.of(model, facts, config, blocks)

    def attempt(strength: float) -> Trial:
        for solver in solvers.values():
            solver.strength = strength
        write_values(model, facts, values.values, layers, solvers)
        trial = Trial(strength, *judge.look(model))
        for layer in layers.values():
            layer.clear()
        return trial

    with progress("choosing") as bar:
        trials: list[Trial] = []
        for trial in walk_the_line(getattr(config, name), attempt):
            trials.append(trial)
            bar.update(len(trials), said=trial.said, disturbed=trial.disturbed)
    best = best_of(trials)
    say(f"Edit: {name} {best.describe()}, chosen by its own prompts.{_next_best(trials, best)}")
    return best, tuple(Tried(name, each.strength, each.said, each.disturbed, each is best) for each in trials)


def walk_the_line(start: float, attempt: Callable[[float], Trial]) -> Iterator[Trial]:
    """Trials from `start` upward while the own prompts hold; downward while that helps, where they did not hold at once
    and stronger protection has only lost some."""
    first = before = attempt(start)
    yield first
    left = MOST_TRIALS - 1
    while left and first.said >= HALF:
        trial = attempt(before.strength * FACTOR)
        yield trial
        left -= 1
        if trial.said < first.said - HOLD:
            break
        before = trial
    if first.said >= HOLDS or before is not first:
        return
    while left:
        trial = attempt(before.strength / FACTOR)
        yield trial
        left -= 1
        if trial.said <= before.said + HOLD and trial.said >= HALF:
            return
        before = trial


def best_of(trials: Sequence[Trial]) -> Trial:
    """The strongest of those whose own prompts hold about as well as anywhere on the line; where most never do, the
    weakest of all."""
    most = max(trial.said for trial in trials)
    if most < HALF:
        return min(trials, key=lambda trial: trial.strength)
    return max((trial for trial in trials if trial.said >= most - HOLD), key=lambda trial: trial.strength)


def _next_best(trials: Sequence[Trial], best: Trial) -> str:
    others = [trial for trial in trials if trial is not best]
    near = max(others, key=lambda trial: (round(trial.said, 2), trial.strength), default=None)
    return "" if near is None else f" Next best: {near.describe()}."


@dataclass(frozen=True)
class _Judge:
    """A part of the edit's own prompts, and rows of ordinary text, run up to the first edited layer."""

    prompts: Suffixes
    text: OrdinaryText
    first: int

    @classmethod
    @torch.no_grad()
    def of(cls, model: GPT, facts: Sequence[LocatedFact], config: EditConfig, blocks: Tensor) -> _Judge:
        first = config.edited_layers[0]
        some = [replace(fact, contexts=own_prompts(fact)) for fact in facts]
        whole = texts_of(some, from_subject=False)
        prompts = Suffixes.of(model, whole, clean_runs(model, whole, last_layer=first - 1))
        text = blocks[: min(TEXT_ROWS, len(facts)), : TEXT_TOKENS * len(facts)]
        return cls(prompts, OrdinaryText.of(model, text, config), first)

    @torch.no_grad()
    def look(self, model: GPT) -> tuple[float, float]:
        """Share of the prompts after which the whole answer is the first choice, and KL of the text, nats per token."""
        choices = torch.cat([model.logits(part).argmax(-1) for part in self.prompts.states(model).split(LOGIT_ROWS)])
        wrong = (choices != self.prompts.wanted).float()
        missed = wrong.new_zeros(len(self.prompts.facts)).index_add(0, self.prompts.row, wrong)
        rows = torch.arange(len(self.text.states)).split(ROWS_AT_ONCE)
        kl = sum(len(some) * float(self.text.kl(model, some, self.first)) for some in rows) / len(self.text.states)
        return float((missed == 0).float().mean()), kl


def own_prompts(fact: LocatedFact) -> tuple[TokenRow, ...]:
    """The first context, the last without a generated text in front, and the last of all; each once."""
    chosen = {0, max(0, fact.prompts - 1), len(fact.contexts) - 1}
    return tuple(fact.contexts[i] for i in sorted(chosen))


def settled(
    model: GPT,
    facts: Sequence[LocatedFact],
    config: EditConfig,
    layers: Mapping[int, EditedLayer],
    solvers: Mapping[int, LayerSolver],
    blocks: Tensor,
    *,
    given: EditConfig,
) -> tuple[EditConfig, TargetValues | None, tuple[Tried, ...]]:
    """The settings with their strength chosen where it is not `given`, the values where all facts are solved for at
    once, and what was tried."""
    size = config.facts_at_once(len(facts))
    values, tried = find_values(model, facts[:size], config)
    name = config.traits.strength
    if name is not None and not given.is_given(name):
        best, line = choose_strength(model, facts[:size], values, config, layers, solvers, blocks)
        tried += line
        config = config.with_fields({name: best.strength})
    for solver in solvers.values():
        solver.strength = getattr(config, name) if name is not None else 0.0
    return replace(config, preset="given", given=None), values if size == len(facts) else None, tried


def suited(
    model: GPT, facts: Sequence[LocatedFact], config: EditConfig, blocks: Tensor | None
) -> tuple[EditConfig, tuple[Tried, ...]]:
    """The settings with what depends on the model's size, and the layers, in the place of what nobody gave; and what
    was tried."""
    width = model.config.mlp_size
    found = {**SUITED, "covariance_weight": width / 5, "prefix_tokens": min(10, model.config.block_size // 8)}
    if len(facts) == 1:  # found in fewer steps; of many at once the weights would take up less
        found |= {"descent": "polyak", "rounds": 1}
    ungiven = [name for name in found if not config.is_given(name)]
    config = config.with_fields({name: found[name] for name in ungiven})
    if blocks is not None and not config.is_given("layers"):
        layers, tried = choose_layers(model, facts, config, blocks)
        return replace(config, layers=layers), tried
    return config, ()


def gather_ahead(model: GPT, config: EditConfig, blocks: Tensor, cache_dir: Path) -> None:
    """Take the covariances of the layers that an edit by this config most likely comes to, and keep them for it."""
    config, _ = suited(model, (), config, None)
    [last, *_] = candidate_layers(sink_norms(model, blocks[:TEXT_ROWS, :SINK_TOKENS]))
    covariances(
        model.to(torch.promote_types(model.dtype, torch.float32)),  # as it is edited
        blocks,
        layers=group_up_to(last, model.config),
        max_tokens=config.covariance_tokens,
        tolerance=config.covariance_tolerance,
        cache_dir=cache_dir,
    )
