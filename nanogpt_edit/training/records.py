"""What training leaves in `logs/`, as the report reads it too (so nothing here needs torch)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_numbered_jsonl, write_jsonl
from nanogpt_edit.common.records import Place, read_jsonl_as, to_value

TOLD = ("token_texts", "logprobs", "entropy", "clipped")


@dataclass(frozen=True)
class Rollout:
    """One completion of a GRPO step, and what it was worth beside its group: a line of `logs/rollouts/`.

    The last four are there for the completions that are told token by token.
    """

    group: int
    problem_id: str
    question: str
    gold: str
    sample: int
    text: str
    rewards: Mapping[str, float]  # unweighted
    reward: float  # their weighted sum
    advantage: float
    finish_reason: str
    tokens: int
    in_loss: bool
    token_texts: tuple[str, ...] | None = None
    logprobs: tuple[float, ...] | None = None  # nats, when sampled
    entropy: tuple[float, ...] | None = None  # nats, of each token's place
    clipped: tuple[int, ...] | None = None  # -1 or 1 where the update was held back at the lower or the upper bound

    def __post_init__(self) -> None:
        for name in TOLD:
            values = getattr(self, name)
            if len(values or ()) != len(self.token_texts or ()):
                raise UserError(f"has {len(values or ())} values for {len(self.token_texts or ())} tokens.", field=name)

    @property
    def correct(self) -> bool:
        return self.rewards["accuracy"] == 1

    @property
    def told(self) -> list[tuple[str, float, float, int]]:
        """Text, log-probability, entropy and clipping of each token; none where it is not told token by token."""
        columns = self.token_texts or (), self.logprobs or (), self.entropy or (), self.clipped or ()
        return list(zip(*columns, strict=True))


def save_rollouts(folder: Path, step: int, rollouts: Iterable[Rollout]) -> None:
    """Write the step's file, atomically; the same rollouts give the same bytes."""
    lines = ({name: value for name, value in asdict(each).items() if value is not None} for each in rollouts)
    write_jsonl(folder / f"step_{step:06}.jsonl.gz", lines)


def read_rollouts(path: Path) -> list[Rollout]:
    """What `save_rollouts` wrote. Raises UserError naming file, line and field of what is no rollout."""
    return read_jsonl_as(Rollout, path)


def rollout_files(folder: Path) -> dict[int, Path]:
    """The file of each step that has one, in order."""
    files = sorted(folder.glob("step_*.jsonl.gz"))
    return {int(file.name.removeprefix("step_").partition(".")[0]): file for file in files}


def read_log(path: Path) -> dict[float, dict[str, float | None]]:
    """step -> what `logs/<stage>.jsonl` says of it: named numbers, None where one was not finite.

    Of a step written twice (a run killed and resumed) the last line counts. Raises UserError naming file and line.
    """
    by_step: dict[float, dict[str, float | None]] = {}
    for number, line in read_numbered_jsonl(path, log=True):
        place = Place(f"{path}:{number}")
        step = to_value(float, line.pop("step", None), "step", place)
        by_step[step] = {name: to_value(float | None, value, name, place) for name, value in line.items()}
    return dict(sorted(by_step.items()))
