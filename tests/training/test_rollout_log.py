"""The file of a step's rollouts: every completion, some of them token by token, the same bytes again."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny_stages import PROBLEMS, tiny_model, tiny_tokenizer

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import write_jsonl
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.training.grpo import grpo
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.losses import group_advantages
from nanogpt_edit.training.records import read_log, read_rollouts, rollout_files
from nanogpt_edit.training.rollout_log import write_rollouts
from nanogpt_edit.training.rollouts import RolloutGroup, RolloutSampler
from nanogpt_edit.training.update import GroupDetail

CONFIG = GRPOConfig(
    steps=2, problems_per_step=3, group_size=4, max_new_tokens=5, rewards={"tiny_stages:letters": 1.0}, keep="last"
)


def groups() -> list[RolloutGroup]:
    return RolloutSampler.of(Engine(tiny_model()), CONFIG, seed=0).sample_groups(PROBLEMS[:3], draw=0)


def details(trained: list[RolloutGroup]) -> list[GroupDetail]:
    return [
        GroupDetail(
            group.number,
            entropy=tuple((0.5,) * len(each.token_ids) for each in group.completions),
            clipped=tuple((0,) * len(each.token_ids) for each in group.completions),
        )
        for group in trained
    ]


def write(folder: Path, sampled: list[RolloutGroup], *, detailed: int) -> list[dict[str, object]]:
    # The first group was not trained on, as one without signal.
    write_rollouts(folder, 7, sampled, details(sampled[1:]), tiny_tokenizer(), detailed=detailed)
    return read(folder / "step_000007.jsonl.gz")


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def test_every_completion_is_there_with_what_it_was_worth(tmp_path: Path) -> None:
    sampled = groups()
    lines = write(tmp_path, sampled, detailed=0)
    assert [(line["group"], line["sample"]) for line in lines] == [(g, s) for g in range(3) for s in range(4)]
    assert [line["in_loss"] for line in lines] == [False] * 4 + [True] * 8
    for line in lines:
        group, sample = sampled[line["group"]], line["sample"]  # type: ignore[index]
        assert line["text"] == tiny_tokenizer().decode(group.completions[sample].token_ids)  # type: ignore[index]
        assert line["reward"] == group.total[sample].item()  # type: ignore[index]
        assert line["advantage"] == group_advantages(group.total[None])[0, sample].item()  # type: ignore[index]
        assert line["gold"] == group.problem.answer
        assert "token_texts" not in line


def test_what_is_written_is_read(tmp_path: Path) -> None:
    lines = write(tmp_path, groups(), detailed=3)
    (path,) = rollout_files(tmp_path).values()
    read_back = [
        {name: value for name, value in asdict(each).items() if value is not None} for each in read_rollouts(path)
    ]
    assert json.loads(json.dumps(read_back)) == lines
    assert [len(each.told) for each in read_rollouts(path)] == [len(line.get("token_texts", ())) for line in lines]


@pytest.mark.parametrize("name", ["logprobs", "entropy", "clipped"])
def test_one_number_per_token_is_asked_for(tmp_path: Path, name: str) -> None:
    lines = write(tmp_path, groups(), detailed=3)
    told = next(line for line in lines if "token_texts" in line)
    told[name] = told[name][:-1]  # type: ignore[index]
    path = tmp_path / "step_000007.jsonl.gz"
    write_jsonl(path, lines)
    with pytest.raises(UserError, match=f"jsonl.gz:{lines.index(told) + 1}: {name} has 4 values for 5 tokens"):
        read_rollouts(path)


def test_of_a_step_logged_twice_the_last_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "grpo.jsonl"
    lines = [{"step": 1, "kl": 0.5}, {"step": 0, "kl": None}, {"step": 1, "kl": 2}]
    write_jsonl(path, lines)
    assert read_log(path) == {0.0: {"kl": None}, 1.0: {"kl": 2.0}}
    for line, said in (({"kl": 1}, '"step" must be a number'), ({"step": 2, "kl": "x"}, '"kl" must be a number')):
        write_jsonl(path, [*lines, line])
        with pytest.raises(UserError, match=f"grpo.jsonl:4: {said}"):
            read_log(path)


def test_the_best_and_the_worst_of_the_trained_groups_are_told_token_by_token(tmp_path: Path) -> None:
    sampled = groups()
    lines = [line for line in write(tmp_path, sampled, detailed=3) if "token_texts" in line]
    best, worst, next_best = int(sampled[1].total.argmax()), int(sampled[1].total.argmin()), sampled[2].total.argmax()
    assert {(line["group"], line["sample"]) for line in lines} == {(1, best), (1, worst), (2, int(next_best))}
    for line in lines:
        completion = sampled[line["group"]].completions[line["sample"]]  # type: ignore[index]
        assert line["token_texts"] == [tiny_tokenizer().token_text(token_id) for token_id in completion.token_ids]
        assert line["logprobs"] == [round(value, 5) for value in completion.logprobs]
        assert line["entropy"] == [0.5] * len(completion.token_ids)
        assert line["clipped"] == [0] * len(completion.token_ids)


def test_the_same_rollout_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one", groups(), detailed=2)
    write(tmp_path / "other", groups(), detailed=2)
    one, other = (tmp_path / name / "step_000007.jsonl.gz" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_a_run_leaves_a_file_per_step(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "grpo.jsonl"
    grpo(tiny_model(), PROBLEMS[5:], PROBLEMS[:5], CONFIG, seed=1, state=tmp_path / "state", log=log)
    files = sorted((tmp_path / "logs" / "rollouts").iterdir())
    assert [file.name for file in files] == ["step_000000.jsonl.gz", "step_000001.jsonl.gz"]
    for file in files:
        lines = read(file)
        assert len(lines) == 12
        told = [line for line in lines if "entropy" in line]
        assert len(told) == min(8, 2 * len({line["group"] for line in lines if line["in_loss"]}))
        assert all(0 < value < 6 for line in told for value in line["entropy"])  # type: ignore[attr-defined]
