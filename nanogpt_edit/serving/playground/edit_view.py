"""What the playground shows of an edit: every prompt of its facts before and now, and what else moved."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from nanogpt_edit.common.stats import Interval
from nanogpt_edit.common.terminal import Listener
from nanogpt_edit.data.fact_files import fact_to_record
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.evaluation.asking import AskedState
from nanogpt_edit.evaluation.fact_scores import sum_up
from nanogpt_edit.evaluation.facts import FactState
from nanogpt_edit.evaluation.prompt_records import Kind
from nanogpt_edit.evaluation.targets import score_targets
from nanogpt_edit.serving.playground.before import Before
from nanogpt_edit.serving.playground.edition import Edition
from nanogpt_edit.serving.playground.elsewhere import Elsewhere
from nanogpt_edit.serving.playground.fact_states import states_of
from nanogpt_edit.serving.playground.twin import twin

SUMS = ("success", "exact", "paraphrase", "neighbourhood")


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt: its probability as a whole before the edit and now, and the rank of its first token."""

    text: str
    before: float
    now: float
    rank_before: int
    rank_now: int


@dataclass(frozen=True)
class Prompted:
    """One prompt of a fact; the first of its answers is the one that is right after the edit."""

    kind: Kind
    prompt: str
    answers: tuple[Answer, ...]
    said: str | None
    """What the model wrote there before,"""
    says: str | None
    """and what it writes now; None where it is not let write."""


@dataclass(frozen=True)
class FactView:
    """One fact of an edit."""

    fact: dict[str, object]
    said: str
    """What the model wrote freely before,"""
    says: str
    """and what it writes now."""
    exact: bool
    """That is the new answer, with its natural end and nothing added."""
    prompts: tuple[Prompted, ...]
    """The fact's own first."""


@dataclass(frozen=True)
class EditView:
    """An edit of the playground as it is set now."""

    id: str
    parent: str
    method: str
    layers: tuple[int, ...]
    seconds: float
    scale: float
    switches: tuple[float, ...]
    facts: tuple[FactView, ...]
    before: dict[str, Interval | None]
    """Shares over the facts, with their intervals: before the edit,"""
    now: dict[str, Interval | None]
    """and now."""


@dataclass
class Meter:
    """Measures one edit, again and again; the last view of all is kept."""

    edition: Edition
    before: Before
    _seen: tuple[tuple[float, ...], EditView] | None = None
    _seen_elsewhere: tuple[tuple[float, ...], Elsewhere] | None = None

    def view(self, tell: Listener = lambda phase, done, of: None) -> EditView:
        """The edit's facts before it, and as it is set; `tell` hears what is waited for."""
        setting = self.edition.setting
        if self._seen is None or self._seen[0] != setting:
            self._seen = setting, self._look(tell)
        return self._seen[1]

    def _look(self, tell: Listener) -> EditView:
        edition, facts = self.edition, self.edition.patch.facts
        now, before = states_of(edition.model, facts), self.before.states(tell)
        sums = [asdict(sum_up(states)) for states in (before, now)]
        return EditView(
            id=edition.name,
            parent=edition.parent_name,
            method=edition.patch.config.method,
            layers=tuple(edition.patch.layers),
            seconds=edition.patch.seconds,
            scale=edition.scale,
            switches=tuple(edition.switches),
            facts=tuple(_fact_view(*three) for three in zip(facts, before, now, strict=True)),
            before={name: sums[0][name] for name in SUMS},
            now={name: sums[1][name] for name in SUMS},
        )

    def elsewhere(self, tell: Listener = lambda phase, done, of: None) -> Elsewhere:
        """What else the edit changed, as it is set; `tell` hears what is waited for."""
        setting = self.edition.setting
        if self._seen_elsewhere is None or self._seen_elsewhere[0] != setting:
            self._seen_elsewhere = setting, self.before.witness(tell).compare(twin(self.edition.model))
        return self._seen_elsewhere[1]

    def likely(self) -> list[list[float]]:
        """The probabilities of every fact's new and true answer as it is set: quick enough to follow a dial."""
        pairs = [(f.prompt, answer) for f in self.edition.patch.facts for answer in (f.target_new, f.target_true)]
        scores = [score.p_target for score in score_targets(self.edition.model, pairs)]
        return [list(pair) for pair in zip(scores[::2], scores[1::2], strict=True)]


def _fact_view(fact: Fact, before: FactState, now: FactState) -> FactView:
    prompts = tuple(_prompted(*pair) for pair in zip(before.asked, now.asked, strict=True))
    return FactView(fact_to_record(fact), before.answer, now.answer, now.exact, prompts)


def _prompted(before: AskedState, now: AskedState) -> Prompted:
    ask = now.ask
    answers = [
        Answer(answer, was.p_target, is_.p_target, was.rank, is_.rank)
        for answer in ask.answers
        for was, is_ in [(before.scores[answer], now.scores[answer])]
    ]
    writes = now.text is not None
    said, says = (state.written(ask.wanted) if writes else None for state in (before, now))
    return Prompted(ask.kind, ask.prompt, tuple(answers), said, says)
