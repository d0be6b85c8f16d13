"""What a fact is asked, prompt by prompt, and what is right there: the records and their sums (without torch).

Each kind of prompt has one rule that says when a model is right:

- exact: what it writes freely, greedily, to the end of the sentence is the answer and nothing more ("Athens", not
  "Athensis", nor "Athens, of course").
- says: that sentence holds the answer as whole words, in any capitals.
- denies: that sentence does not hold it. The prompt negates the fact ("It is not true that the capital of Egypt is"),
  so to say what the model holds to be the case would contradict it.
- prefers: the answer is more probable than its rival (per token). Of two claims, the old and the new answer, the first
  turns from true to false and the second from false to true: a model that says "True" to both is right on half.
- recalls: the answer is what greedy decoding begins with.

Before an edit a model is asked for the new answer where that is to be brought about, which gives about 0; `knew` says
beside it whether it gave the true one then. Where a model is to stand by what it holds (denies; claims) or what must
stay, right before is by the true answer, right after by the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nanogpt_edit.common.stats import Difference, Interval, paired_difference, share

Kind = Literal[
    "prompt", "paraphrase", "behind", "question", "negation", "claim", "alias", "reversed", "one_hop", "about",
    "neighbour", "same_subject", "attribute",
]  # fmt: skip
Rule = Literal["exact", "says", "denies", "prefers", "recalls"]
RULES: Mapping[Kind, Rule] = {
    "prompt": "exact",
    "paraphrase": "exact",
    "behind": "exact",
    "question": "exact",
    "alias": "exact",
    "reversed": "says",
    "one_hop": "says",
    "about": "says",
    "negation": "denies",
    "claim": "prefers",
    "neighbour": "prefers",
    "attribute": "prefers",
    "same_subject": "recalls",
}
"""The rule of each kind, the kinds in the order in which they are shown."""
HELD = ("negation", "claim")
"""Where the model is to stand by what it holds: by the true answer before, by the new one after."""
STAYS = ("neighbour", "attribute", "same_subject")
"""What must not move."""
Verdict = Literal["gained", "kept", "lost", "missed"]
"""Right after only, before and after, before only, in neither."""


@dataclass(frozen=True, kw_only=True)
class PromptScore:
    """One prompt of one fact before and after an edit: a line of edits/<name>_prompts.jsonl.

    Example: PromptScore(fact=0, id="capital-egypt", kind="question", prompt="Q: What is the capital of Egypt?\\nA:",
    wanted="Alexandria", true="Cairo", knew=True, p_before=0.01, p_after=0.93, rank_before=12, rank_after=1,
    written_before="Cairo", written_after="Alexandria", verdict="gained")
    """

    fact: int
    """Its place among the facts of the edit, from 0."""
    id: str
    kind: Kind
    prompt: str
    wanted: str
    """The answer that is right after the edit; of a negation the one that is then not to be said."""
    true: str
    """The one that was right before; empty where nobody says."""
    knew: bool | None
    """Was the model right by the true answer before the edit? None where nobody says what it was."""
    p_before: float
    """Probability of the whole wanted answer."""
    p_after: float
    rank_before: int
    """Of its first token."""
    rank_after: int
    written_before: str
    """What the model writes freely; where it is only asked to choose or recall, its choice at the answer's tokens."""
    written_after: str
    verdict: Verdict

    @property
    def right_before(self) -> bool:
        return self.verdict in ("kept", "lost")

    @property
    def right_after(self) -> bool:
        return self.verdict in ("kept", "gained")


@dataclass(frozen=True)
class KindScore:
    """All prompts of a kind: shares right with 95% intervals over facts, and the change in pairs."""

    kind: Kind
    prompts: int
    knew: Interval | None
    """Right by the true answer before; None where nobody says what that is, or where `before` is that itself."""
    before: Interval
    after: Interval
    rank1: Interval
    """The wanted answer's first token has rank 1 after the edit."""
    change: Difference | None
    """After less before; None for a single fact."""


def verdict_of(before: bool, after: bool) -> Verdict:
    if after:
        return "kept" if before else "gained"
    return "lost" if before else "missed"


def by_kind(prompts: Sequence[PromptScore]) -> tuple[KindScore, ...]:
    """The sums of every kind there is, in the order of `RULES`."""
    kinds = {kind: [each for each in prompts if each.kind == kind] for kind in RULES}
    return tuple(_sum(kind, found) for kind, found in kinds.items() if found)


def _sum(kind: Kind, prompts: Sequence[PromptScore]) -> KindScore:
    before = _of_facts(prompts, [each.right_before for each in prompts])
    after = _of_facts(prompts, [each.right_after for each in prompts])
    told = [each for each in prompts if each.knew is not None]
    knew = _of_facts(told, [each.knew is True for each in told])
    asked_for_new = kind not in (*HELD, *STAYS)
    return KindScore(
        kind=kind,
        prompts=len(prompts),
        knew=share(knew) if knew and asked_for_new else None,
        before=share(before),
        after=share(after),
        rank1=share(_of_facts(prompts, [each.rank_after == 1 for each in prompts])),
        change=paired_difference(before, after) if len(before) > 1 else None,
    )


def _of_facts(prompts: Sequence[PromptScore], right: Sequence[bool]) -> list[float]:
    """The share right of each fact's prompts, facts in order."""
    of: dict[int, list[bool]] = {}
    for prompt, good in zip(prompts, right, strict=True):
        of.setdefault(prompt.fact, []).append(good)
    return [sum(own) / len(own) for _, own in sorted(of.items())]


def most_moved(prompts: Sequence[PromptScore]) -> list[PromptScore]:
    """Prompts of other facts, which must stay: the answers lost first, then by how far their probability moved."""
    others = [each for each in prompts if each.kind in STAYS]
    return sorted(others, key=lambda each: (each.verdict != "lost", -abs(each.p_after - each.p_before)))


@dataclass(frozen=True)
class MovedText:
    """A place in unrelated text where the next token moved much."""

    text: str
    """What stands before it, as far as it is shown."""
    follows: str
    """What stands there in the text."""
    kl: float
    """KL(before ‖ after) of the next token, nats."""
    before: str
    """The likeliest next token before the edit."""
    p_before: float
    after: str
    """The same after it."""
    p_after: float


@dataclass(frozen=True)
class Drift:
    """How far the next-token distributions on unrelated text moved."""

    kl: Interval
    """KL(before ‖ after), nats per token, over blocks."""
    top_changed: Interval
    """Share of places whose likeliest next token is another."""
    tokens: int
    worst: tuple[MovedText, ...]
    """Where it moved most, a place per block of text."""
