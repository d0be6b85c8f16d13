"""What evaluations leave in `eval/`, as the report reads it too (so nothing here needs torch).

<stage>.json with its raw records beside it (.jsonl, _facts.jsonl, _text.jsonl) and some completions token by token
(_tokens.jsonl), compare_<after>-<before>.json, and transcript.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import write_json, write_jsonl
from nanogpt_edit.common.html import Shown
from nanogpt_edit.common.reasoning import TokenKind
from nanogpt_edit.common.records import read_json_as, read_jsonl_as
from nanogpt_edit.common.stats import Difference, Interval


@dataclass(frozen=True)
class EvalRecord:
    """One completion of one problem, graded: a line of `eval/<stage>.jsonl`.

    Example: EvalRecord(skill="problems", problem_id="test:1", sample_index=0, prompt="Janet’s ducks …", gold="18",
    text="<think>…</think><answer>18</answer>", strict="18", flexible="18", correct=True, well_formed=True,
    thinking_tokens=57, answer_tokens=1, finish_reason="stop")
    """

    skill: str  # problems, arithmetic, probes
    problem_id: str
    sample_index: int
    prompt: str
    gold: str
    text: str  # the completion, reasoning tags included
    strict: str | None  # the answer of a well-formed completion
    flexible: str | None  # the last number, however the completion looks
    correct: bool  # the strict answer equals gold
    well_formed: bool
    thinking_tokens: int
    answer_tokens: int
    finish_reason: str  # stop, length


@dataclass(frozen=True)
class Recall:
    """Does the model continue `prompt` with `target`? A line of `eval/<stage>_facts.jsonl`."""

    group: str  # which set of facts: recall, recall_edited, edited
    subject: str
    prompt: str
    target: str
    greedy: str  # the model's continuation, as many tokens as the target has
    rank: int  # of the target's first token; 1 is the most probable
    p_first: float
    p_target: float  # of the whole target
    recalled: bool  # greedy decoding writes the target


@dataclass(frozen=True)
class BlockNats:
    """How well one block of held-out text is predicted: a line of `eval/<stage>_text.jsonl`."""

    nats_per_token: float


@dataclass(frozen=True)
class ToldCompletion:
    """A completion token by token, under the model that wrote it: a line of `eval/<stage>_tokens.jsonl`."""

    skill: str
    problem_id: str
    sample_index: int
    prompt: str
    gold: str
    correct: bool
    token_texts: tuple[str, ...]
    logprobs: tuple[float, ...]  # nats, at temperature 1
    entropy: tuple[float, ...]  # nats, of each token's place

    def __post_init__(self) -> None:
        for name in ("logprobs", "entropy"):
            values = len(getattr(self, name))
            if values != len(self.token_texts):
                raise UserError(f"has {values} values for {len(self.token_texts)} tokens.", field=name)

    @property
    def told(self) -> list[tuple[str, float, float, int]]:
        """Text, log-probability and entropy of each token; none was held back in an update."""
        columns = zip(self.token_texts, self.logprobs, self.entropy, strict=True)
        return [(text, logprob, entropy, 0) for text, logprob, entropy in columns]


@dataclass(frozen=True)
class Measured:
    """The contents of `eval/<stage>.json`: `skills[skill][metric]`, and of what, with which settings."""

    stage: str
    fingerprint: str
    seconds: float
    settings: Mapping[str, object]
    skills: Mapping[str, Mapping[str, Interval]]
    text_sha256: str | None = None  # of the held-out text's tokens; None: an earlier version, or no text


@dataclass(frozen=True)
class Evaluation(Shown):
    """One checkpoint, measured: `metrics[skill][metric]` with the raw records behind it."""

    stage: str
    fingerprint: str
    seconds: float
    settings: Mapping[str, object]
    metrics: Mapping[str, Mapping[str, Interval]]
    records: tuple[EvalRecord, ...]
    recalls: tuple[Recall, ...]
    nats: tuple[float, ...]  # per token, of each block of held-out text
    text_sha256: str | None = None  # of that text's tokens

    def save(self, folder: Path) -> None:
        """Write the raw records and, last, `<stage>.json`."""
        write_records(folder / f"{self.stage}.jsonl", self.records)
        write_jsonl(folder / f"{self.stage}_facts.jsonl", map(asdict, self.recalls))
        write_jsonl(folder / f"{self.stage}_text.jsonl", [asdict(BlockNats(nats)) for nats in self.nats])
        measured = Measured(self.stage, self.fingerprint, self.seconds, self.settings, self.metrics, self.text_sha256)
        write_json(folder / f"{self.stage}.json", asdict(measured))

    @classmethod
    def load(cls, folder: Path, stage: str) -> Evaluation:
        """What `save` wrote. Raises UserError naming a file that is damaged or missing; metrics alone are refused."""
        found = read_json_as(Measured, folder / f"{stage}.json")
        return cls(
            stage=found.stage,
            fingerprint=found.fingerprint,
            seconds=found.seconds,
            settings=found.settings,
            metrics=found.skills,
            records=tuple(read_records(folder / f"{stage}.jsonl")),
            recalls=tuple(read_recalls(folder / f"{stage}_facts.jsonl")),
            nats=tuple(read_nats(folder / f"{stage}_text.jsonl")),
            text_sha256=found.text_sha256,
        )


def write_records(path: Path, records: Iterable[EvalRecord]) -> None:
    """Write one JSON object per record, atomically."""
    write_jsonl(path, map(asdict, records))


def read_records(path: Path) -> list[EvalRecord]:
    """Read `eval/<stage>.jsonl`. Raises UserError naming the file, line and field of a record that is not one."""
    return read_jsonl_as(EvalRecord, path)


def read_recalls(path: Path) -> list[Recall]:
    """Read `eval/<stage>_facts.jsonl`. Raises UserError naming file, line and field of what is not a recall."""
    return read_jsonl_as(Recall, path)


def read_nats(path: Path) -> list[float]:
    """Read `eval/<stage>_text.jsonl`. Raises UserError naming file and line when one is not a block's nats."""
    return [block.nats_per_token for block in read_jsonl_as(BlockNats, path)]


def write_told(path: Path, told: Iterable[ToldCompletion]) -> None:
    """Write one JSON object per completion, atomically."""
    write_jsonl(path, map(asdict, told))


def read_told(path: Path) -> list[ToldCompletion]:
    """Read `eval/<stage>_tokens.jsonl`. Raises UserError naming file, line and field of what is not one."""
    return read_jsonl_as(ToldCompletion, path)


@dataclass(frozen=True)
class Differences:
    """The contents of `eval/compare_<after>-<before>.json`."""

    metrics: Mapping[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints on the same problems: `metrics["pass_at_1"]` is after − before."""

    after: str
    before: str
    metrics: Mapping[str, Difference]

    @property
    def name(self) -> str:
        return f"{self.after}-{self.before}"

    def save(self, folder: Path) -> None:
        write_json(folder / f"compare_{self.name}.json", asdict(Differences(self.metrics)))

    @classmethod
    def load(cls, path: Path) -> Comparison:
        """What `save` wrote, whose name says which two were compared. Raises UserError naming a damaged field."""
        after, _, before = path.stem.removeprefix("compare_").partition("-")
        return cls(after, before, read_json_as(Differences, path).metrics)


@dataclass(frozen=True)
class Transcript(Shown):
    """One completion token by token: `eval/transcript.json`."""

    stage: str
    prompt: tuple[tuple[int, str], ...]  # id and text of each token
    completion: tuple[tuple[int, str, TokenKind], ...]
    decoded: str
    thinking_tokens: int
    answer_tokens: int
    gold: str
    correct: bool
