"""What an edit leaves in `edits/`, as the report reads it too (so nothing here needs torch).

A score that defaults to None is one that version 0.1.0 did not write; nor did it write prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nanogpt_edit.common.files import read_json, write_json, write_jsonl
from nanogpt_edit.common.records import Place, read_jsonl_as, to_dataclass
from nanogpt_edit.common.stats import Interval, share
from nanogpt_edit.evaluation.prompt_records import Drift, PromptScore, by_kind


@dataclass(frozen=True, kw_only=True)
class FactScore:
    """One fact before and after the edit: a line of edits/<name>.jsonl."""

    id: str
    relation: str
    prompt: str
    subject: str
    target_true: str
    target_new: str
    old_answer: str
    """Greedy text before the edit."""
    new_answer: str
    """Greedy text after it."""
    true_rank_before: int | None = None
    """Rank of the true answer's first token before the edit."""
    p_first_before: float
    p_first_after: float
    rank_before: int
    rank_after: int
    p_target_before: float
    p_target_after: float
    success: bool
    """The target's first token has rank 1."""
    behind_rank_before: int | None = None
    """The same token's rank where the prompt stands behind unrelated text."""
    behind_rank_after: int | None = None
    behind_p_first_before: float | None = None
    behind_p_first_after: float | None = None
    efficacy: bool
    """p(new) > p(true)."""
    efficacy_before: bool | None = None
    exact: bool | None = None
    """Written freely, the answer is the target, with its natural end and nothing added."""
    contains: bool
    """The greedy text contains the whole target."""
    token_accuracy: float
    paraphrase_before: float | None = None
    """Share of paraphrases with p(new) > p(true); None without paraphrases."""
    paraphrase_success: float | None
    """The same after it."""
    paraphrase_rank1_before: float | None = None
    """Share of paraphrases where the target's first token has rank 1."""
    paraphrase_rank1: float | None
    """The same after it."""
    neighbourhood_before: float | None
    """Share of neighbours with p(true) > p(new)."""
    neighbourhood_after: float | None
    neighbourhood_rank1_before: float | None
    """Share of neighbours whose true answer's first token has rank 1."""
    neighbourhood_rank1_after: float | None
    entropy_before: float | None
    """n-gram entropy of what the model writes on after the prompt, in bits."""
    entropy_after: float | None
    subject_lookup: str
    value_probability: float | None = None
    """Of the target's tokens (geometric mean), as far as the value optimisation came."""
    reason: str
    """For a failure: where it was lost. Empty for a success."""

    @property
    def known(self) -> bool | None:
        """Whether the model knew the fact: its true answer had rank 1 before the edit. None: nobody recorded it."""
        return None if self.true_rank_before is None else self.true_rank_before == 1

    @property
    def right(self) -> bool:
        """Whether the model writes the new answer, as far as the record tells."""
        return self.success and (self.contains if self.exact is None else self.exact)


OF_PART: Mapping[str, Callable[[FactScore], float | None]] = {
    "success": lambda fact: float(fact.success),
    "exact": lambda fact: None if fact.exact is None else float(fact.exact),
    "paraphrase_rank1": lambda fact: fact.paraphrase_rank1,
    "paraphrase": lambda fact: fact.paraphrase_success,
    "neighbourhood_before": lambda fact: fact.neighbourhood_before,
    "neighbourhood_after": lambda fact: fact.neighbourhood_after,
    "p_target_after": lambda fact: fact.p_target_after,
}
"""What is averaged over a part of the facts, by the name of the mean over all."""


@dataclass(frozen=True, kw_only=True)
class EditScores:
    """All facts of an edit, and the means with their 95% intervals over facts."""

    records: tuple[FactScore, ...]
    success: Interval
    behind_before: Interval | None = None
    """Share of facts whose target's first token has rank 1 where the prompt stands behind unrelated text."""
    behind: Interval | None = None
    """The same after the edit."""
    exact: Interval | None = None
    contains: Interval
    token_accuracy: Interval
    efficacy_before: Interval | None = None
    efficacy: Interval
    paraphrase_rank1_before: Interval | None = None
    paraphrase_rank1: Interval | None
    paraphrase_before: Interval | None = None
    paraphrase: Interval | None
    neighbourhood_before: Interval | None
    neighbourhood_after: Interval | None
    neighbourhood_rank1_before: Interval | None
    neighbourhood_rank1_after: Interval | None
    score: Interval | None
    """S, the harmonic mean of efficacy, paraphrase and neighbourhood after the edit."""
    p_target_before: Interval
    p_target_after: Interval
    entropy_before: Interval | None
    entropy_after: Interval | None
    perplexity_before: Interval | None
    """Of held-out text; None where none was given."""
    perplexity_after: Interval | None
    prompts: tuple[PromptScore, ...] = ()
    """Every prompt of every fact; empty where they were not asked."""
    drift: Drift | None = None
    """What became of unrelated text; None where none was read."""

    def by_known(self) -> dict[str, dict[str, Interval]]:
        """What came of the facts that the model knew before the edit, and of those that it did not: the means of each.

        A part without facts is left out, as are measures that no fact of it has.
        """
        parts = {
            name: [each for each in self.records if each.known is known]
            for name, known in (("known", True), ("unknown", False))
        }
        measured = {
            name: {what: [m for m in map(measure, part) if m is not None] for what, measure in OF_PART.items()}
            for name, part in parts.items()
        }
        return {
            name: {what: share(values) for what, values in means.items() if values}
            for name, means in measured.items()
            if parts[name]
        }

    def failures(self) -> dict[str, list[FactScore]]:
        """The facts that did not reach rank 1, by relation, the relation with most of them first."""
        groups: dict[str, list[FactScore]] = {}
        for record in self.records:
            if not record.success:
                groups.setdefault(record.relation or "no relation", []).append(record)
        return dict(sorted(groups.items(), key=lambda group: -len(group[1])))

    @property
    def means(self) -> dict[str, Interval | None]:
        """The intervals by name; None where no fact has what is measured."""
        others = ("records", "prompts", "drift")
        means = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in others}
        return means | ({} if self.drift is None else {"kl": self.drift.kl, "top_changed": self.drift.top_changed})


@dataclass(frozen=True)
class Tried:
    """What the preset `auto` tried: `Tried("covariance_weight", 307.2, said=0.86, disturbed=0.036, chosen=True)`."""

    setting: str
    """layers (by the last of them), clamp, or what protects ordinary text."""
    value: float
    said: float
    """Mean probability of the new answers that were looked at; for a protection, share of the edit's own prompts after
    which the whole new answer is the first choice."""
    disturbed: float | None = None
    """For a protection: KL of ordinary text before and after, nats per token."""
    chosen: bool = False


@dataclass(frozen=True)
class Edit:
    """An edit of a run: how it was made and what it did. `<name>.json` in `edits/`, with a line per fact in .jsonl and
    one per prompt in _prompts.jsonl."""

    name: str
    method: str
    layers: tuple[int, ...]
    seconds: float
    settings: Mapping[str, object]
    scores: EditScores
    tried: tuple[Tried, ...] = ()
    """How settings that nobody gave were chosen."""

    @property
    def n(self) -> int:
        """How many facts."""
        return len(self.scores.records)

    def save(self, folder: Path) -> None:
        """Write the records and, last, the intervals."""
        write_jsonl(folder / f"{self.name}.jsonl", map(asdict, self.scores.records))
        if self.scores.prompts:
            write_jsonl(folder / f"{self.name}_prompts.jsonl", map(asdict, self.scores.prompts))
        failures = {
            relation: [{"id": each.id, "prompt": each.prompt, "reason": each.reason} for each in group]
            for relation, group in self.scores.failures().items()
        }
        means = {name: None if mean is None else asdict(mean) for name, mean in self.scores.means.items()}
        head = {"n": self.n, "method": self.method, "layers": self.layers, "seconds": self.seconds}
        asked = {each.kind: asdict(each) for each in by_kind(self.scores.prompts)}
        told = {"asked": asked, "drift": None if self.scores.drift is None else asdict(self.scores.drift)}
        rest = {"failures": failures, "settings": dict(self.settings), "tried": [asdict(each) for each in self.tried]}
        write_json(folder / f"{self.name}.json", {**head, **means, **told, **rest})

    @classmethod
    def load(cls, path: Path) -> Edit:
        """What `save` wrote as `path`. Raises UserError naming file and field of what is damaged or missing."""
        table = read_json(path)
        means = {each.name for each in fields(EditScores)}
        scores: dict[str, object] = {name: value for name, value in table.items() if name in means}
        scores["records"] = read_jsonl_as(FactScore, path.with_suffix(".jsonl"))
        prompts = path.with_name(f"{path.stem}_prompts.jsonl")
        scores["prompts"] = read_jsonl_as(PromptScore, prompts) if prompts.exists() else ()
        kept = ("method", "layers", "seconds", "settings", "tried")
        head = {name: value for name, value in table.items() if name in kept}
        return to_dataclass(cls, {"name": path.stem, **head, "scores": scores}, Place(str(path)))
