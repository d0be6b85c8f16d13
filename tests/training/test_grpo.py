"""GRPO on a two-layer model: what one step does, what it leaves out, and what it reports."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from evaluate_stand_ins import bigram, writes
from tiny_stages import PROBLEMS, tiny_model, tiny_tokenizer
from torch import Tensor

from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_jsonl
from nanogpt_edit.common.stats import Interval, share
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import prompt_ids
from nanogpt_edit.engine.completion import Completion
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.training import grpo as grpo_module
from nanogpt_edit.training import rewards as rewards_module
from nanogpt_edit.training import stall_watch
from nanogpt_edit.training.config import Keep
from nanogpt_edit.training.grpo import grpo
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.losses import GRPOTerms, group_advantages
from nanogpt_edit.training.parallel import Parallel
from nanogpt_edit.training.rollouts import RolloutGroup, RolloutSampler, describe, overlong
from nanogpt_edit.training.stall_watch import why_stalled
from nanogpt_edit.training.trainer import Trainer
from nanogpt_edit.training.update import UpdateSize, frozen, group_batches, group_terms, update

LETTERS = {"tiny_stages:letters": 1.0}


def config(**fields: object) -> GRPOConfig:
    defaults: dict[str, object] = {
        "steps": 4,
        "problems_per_step": 3,
        "group_size": 4,
        "max_new_tokens": 5,
        "rewards": LETTERS,
        "kl_coef": 0.0,
        "entropy_coef": 0.0,
        "final_entropy_coef": 0.0,
        "learning_rate": 1e-3,
        "schedule": "constant",
    }
    return GRPOConfig(**(defaults | fields))  # type: ignore[arg-type]


@torch.no_grad()
def logprobs_of(model: GPT, prompt: Sequence[int], completion: Sequence[int], *, temperature: float = 1.0) -> Tensor:
    """Of each token of a completion, by the simple path: one row, all logits."""
    logits = model(torch.tensor([[*prompt, *completion]]))[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(dim=-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def group_of(
    model: GPT,
    completions: Sequence[Sequence[int]],
    rewards: Sequence[float],
    *,
    ratios: Sequence[Sequence[float]] | None = None,
    prompt: Sequence[int] = (5, 6, 7),
    number: int = 0,
    takes_part: Sequence[bool] | None = None,
) -> RolloutGroup:
    """A rollout that was sampled when the tokens' probabilities were 1/ratio of what they are now."""
    sampled = []
    for sample, token_ids in enumerate(completions):
        old = logprobs_of(model, prompt, token_ids)
        if ratios is not None:
            old = old - torch.tensor(ratios[sample]).log()
        sampled.append(Completion(0, sample, tuple(token_ids), tuple(old.tolist()), "length"))
    return RolloutGroup(
        number=number,
        problem=PROBLEMS[0],
        prompt=tuple(prompt),
        completions=tuple(sampled),
        rewards={"accuracy": tuple(rewards), "format": tuple(rewards)},
        total=torch.tensor(rewards),
        advantages=group_advantages(torch.tensor([rewards]))[0],
        takes_part=tuple(takes_part or [True] * len(completions)),
    )


def sample_groups(engine: Engine, problems: Sequence[Problem], settings: GRPOConfig) -> list[RolloutGroup]:
    return RolloutSampler.of(engine, settings, seed=0).sample_groups(problems, draw=0)


def trainer_of(model: GPT, settings: GRPOConfig, folder: Path) -> Trainer:
    return Trainer(model, settings, label="grpo", state=folder / "state", log=folder / "log.jsonl")


def run(
    model: GPT, settings: GRPOConfig, folder: Path, *, validation: Sequence[Problem] = PROBLEMS[:5]
) -> list[dict[str, object]]:
    grpo(model, PROBLEMS[5:], validation, settings, seed=1, state=folder / "state", log=folder / "log.jsonl")
    return read_jsonl(folder / "log.jsonl")


# What a step does


def test_a_step_raises_the_rewarded_completion_and_lowers_the_others(tmp_path: Path) -> None:
    model = tiny_model().eval()
    completions = [[10, 11, 12], [20, 21], [30, 31, 32, 33]]
    group = group_of(model, completions, [0.0, 1.0, 0.0])
    before = [logprobs_of(model, group.prompt, ids).sum().item() for ids in completions]
    update(None, [group], config(), trainer_of(model, config(), tmp_path))
    after = [logprobs_of(model, group.prompt, ids).sum().item() for ids in completions]
    assert after[1] > before[1] + 0.01
    assert after[0] < before[0]
    assert after[2] < before[2]


def test_whole_steps_raise_the_reward(tmp_path: Path) -> None:
    settings = config(steps=25, problems_per_step=8, group_size=8, learning_rate=5e-3, keep="last")
    log = run(tiny_model(), settings, tmp_path)
    rewards = [float(line["reward"]) for line in log]  # type: ignore[arg-type]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
@pytest.mark.parametrize("padded", [False, True])
def test_on_the_first_update_trainer_and_sampler_agree(temperature: float, padded: bool, tmp_path: Path) -> None:
    # Padded: as GPT-2's 50,304 rows, of which the last have no token; here with logits that would matter.
    model = tiny_model(vocab_size=2 * tiny_tokenizer().vocab_size if padded else None)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() == 2 else 1)
    log = run(model, config(steps=3, temperature=temperature, keep="last"), tmp_path)
    assert [line["groups_dropped"] for line in log] == [0, 0, 0]
    assert all(0 < float(line["sampler_gap"]) < 1e-4 for line in log)  # type: ignore[arg-type]


def test_the_trainer_never_drops_out_what_the_sampler_did_not(tmp_path: Path) -> None:
    model = tiny_model()
    noisy = GPT(replace(model.config, dropout=0.5))
    noisy.load_state_dict(model.state_dict())
    noisy.tokenizer = model.tokenizer
    log = run(noisy, config(steps=2, kl_coef=0.1, keep="last"), tmp_path)
    assert all(float(line["sampler_gap"]) < 1e-4 for line in log)  # type: ignore[arg-type]
    assert log[0]["kl"] == pytest.approx(0, abs=1e-9)


def test_a_gap_between_sampler_and_trainer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and again when it has doubled: a deep model in bfloat16 has one at every step."""
    said: list[str] = []
    monkeypatch.setattr(stall_watch, "say", said.append)
    model, watch = tiny_model().eval(), stall_watch.StallWatch(config(), tmp_path / "log.jsonl")
    for step, ratio in enumerate((1.01, 1.2, 1.3, 1.5)):  # log 1.2 = 0.182, log 1.5 = 0.405
        group = group_of(model, [[10, 11], [20, 21]], [0.0, 1.0], ratios=[[1.0, 1.0], [1.0, ratio]])
        metrics = update(None, [group], config(), trainer_of(model, config(learning_rate=1e-12), tmp_path)).metrics
        assert metrics["sampler_gap"] == pytest.approx(math.log(ratio), abs=1e-4)
        watch.look(step, [group], describe([group]) | metrics)
    assert [text[:67] for text in said if "disagree" in text] == [
        "grpo: step 1: sampler and trainer disagree by 0.182 nats on a token",
        "grpo: step 3: sampler and trainer disagree by 0.405 nats on a token",
    ]


# The loss, term by term


def terms_of(model: GPT, groups: list[RolloutGroup], settings: GRPOConfig, reference: GPT | None = None) -> GRPOTerms:
    groups = [
        replace(group, advantages=group_advantages(group.total[None], advantage=settings.advantage)[0])
        for group in groups
    ]
    size, held = UpdateSize.of(groups), None if reference is None else frozen(reference)
    terms, _ = group_terms(model, held, groups, settings, size=size, entropy_coef=settings.entropy_coef)
    return terms


def test_token_and_sequence_means_by_hand() -> None:
    # Rewards 1 and 0: A = ±½ ("mean"). The first completion has ratios 1.1, 1, 0.9, the second 1.2; none is clipped.
    model = tiny_model().eval()
    group = group_of(model, [[10, 11, 12], [20]], [1.0, 0.0], ratios=[[1.1, 1.0, 0.9], [1.2]])
    # Per token: -(½ · 3 - ½ · 1.2) / 4 = -0.225.
    by_token = terms_of(model, [group], config(advantage="mean", group_size=2))
    assert by_token.policy == pytest.approx(-0.225, abs=1e-5)
    # Per completion first: means 1 and 1.2: -(½ · 1 - ½ · 1.2) / 2 = 0.05.
    by_sequence = terms_of(model, [group], config(advantage="mean", normalise="sequence", group_size=2))
    assert by_sequence.policy == pytest.approx(0.05, abs=1e-5)
    # z-scores: the sample's standard deviation of 1 and 0 is √½.
    z = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert terms_of(model, [group], config()).policy == pytest.approx(-0.225 * z / 0.5, abs=1e-5)


def test_two_groups_weigh_by_their_tokens_or_by_their_completions() -> None:
    # Group a: ratios 1.1 (two tokens) and 1; group b: 0.9 and 1.2 (three tokens). A = ±½ in both.
    model = tiny_model().eval()
    a = group_of(model, [[10, 11], [20]], [1.0, 0.0], ratios=[[1.1, 1.1], [1.0]])
    b = group_of(model, [[12], [22, 23, 24]], [1.0, 0.0], ratios=[[0.9], [1.2, 1.2, 1.2]], prompt=(8, 9))
    # Tokens: -½ (2.2 - 1 + 0.9 - 3.6) / 7 = 0.75 / 7; completions: -½ (1.1 - 1 + 0.9 - 1.2) / 4 = 0.1 / 4.
    assert terms_of(model, [a, b], config(advantage="mean")).policy == pytest.approx(0.75 / 7, abs=1e-5)
    sequence = config(advantage="mean", normalise="sequence", group_size=2)
    assert terms_of(model, [a, b], sequence).policy == pytest.approx(0.025, abs=1e-5)


def test_the_constant_of_dr_grpo_by_hand() -> None:
    # The sum over tokens is -(½ · 3 - ½ · 1.2) = -0.9; 2 completions of at most 5 tokens: divided by 10.
    model = tiny_model().eval()
    group = group_of(model, [[10, 11, 12], [20]], [1.0, 0.0], ratios=[[1.1, 1.0, 0.9], [1.2]])
    settings = config(advantage="mean", normalise="constant", group_size=2, max_new_tokens=5)
    assert terms_of(model, [group], settings).policy == pytest.approx(-0.09, abs=1e-5)


def test_metrics_are_means_over_tokens_whatever_the_loss_is_divided_by(tmp_path: Path) -> None:
    model = tiny_model().eval()
    group = group_of(model, [[10, 11, 12], [20]], [1.0, 0.0], ratios=[[1.5, 1.0, 0.9], [1.2]])
    found = {}
    for normalise in ("token", "constant"):
        settings = config(normalise=normalise)
        found[normalise] = update(None, [group], settings, trainer_of(copy.deepcopy(model), settings, tmp_path))
        assert found[normalise].metrics["clip_high_share"] == pytest.approx(0.25)
    assert found["constant"].metrics["entropy"] == pytest.approx(found["token"].metrics["entropy"], rel=1e-5)


@pytest.mark.parametrize("normalise", ["token", "sequence", "constant"])
def test_a_masked_completion_counts_in_the_mean_of_its_group_only(normalise: str) -> None:
    # Rewards 1, 0, 0.5 ("mean": A = ½, -½, 0). Without the second: ratios 1 over three and two tokens.
    model = tiny_model().eval()
    completions = [[10, 11, 12], [20, 21], [30, 31]]
    ratios = [[1.0] * 3, [1.2, 1.1], [1.0] * 2]
    group = group_of(model, completions, [1.0, 0.0, 0.5], ratios=ratios, takes_part=[True, False, True])
    found = terms_of(model, [group], config(advantage="mean", normalise=normalise))
    # -½ · 3 tokens, over 5 tokens; -½ over 2 completions; -½ · 3 over 2 completions of 5.
    expected = {"token": -0.3, "sequence": -0.25, "constant": -0.15}[normalise]
    assert found.policy == pytest.approx(expected, abs=1e-5)


def test_a_group_whose_completions_are_all_masked_has_no_signal(tmp_path: Path) -> None:
    model = tiny_model().eval()
    group = group_of(model, [[10, 11], [20]], [1.0, 0.0], takes_part=[False, False])
    assert not group.has_signal
    updated = update(None, [group], config(), trainer_of(model, config(), tmp_path))
    assert updated.metrics["updates"] == 0
    assert math.isnan(updated.metrics["loss"])


def test_truncated_completions_are_masked_when_asked() -> None:
    engine = Engine(tiny_model())
    for masked in (False, True):
        settings = config(max_new_tokens=3, mask_truncated=masked)
        (group,) = sample_groups(engine, PROBLEMS[:1], settings)
        truncated = [completion.finish_reason == "length" for completion in group.completions]
        assert any(truncated)
        assert list(group.takes_part) == [not (masked and cut) for cut in truncated]


def test_the_soft_overlong_penalty_by_hand() -> None:
    # Of 20 tokens the last fifth, 4, is the buffer: nothing up to 16, then a quarter per token, all of it at 20.
    assert [overlong(n, limit=20, share=0.2) for n in (1, 16, 17, 18, 19, 20)] == pytest.approx(
        [0, 0, -0.25, -0.5, -0.75, -1]
    )
    settings = config(max_new_tokens=4, overlong_penalty=2.0, overlong_share=0.5)
    (group,) = sample_groups(Engine(tiny_model()), PROBLEMS[:1], settings)
    for sample, completion in enumerate(group.completions):
        penalty = {4: -1.0, 3: -0.5}.get(len(completion.token_ids), 0.0)
        assert group.rewards["overlong"][sample] == penalty
        letters = group.rewards["tiny_stages:letters"][sample]
        assert group.total[sample].item() == pytest.approx(letters + 2 * penalty)


def test_clip_shares_are_shares_of_the_tokens() -> None:
    model = tiny_model().eval()
    ratios = [[1.5, 1.1, 0.5], [0.5, 1.5]]  # of a good completion: the first is clipped; of a bad one: the first
    group = group_of(model, [[10, 11, 12], [20, 21]], [1.0, 0.0], ratios=ratios)
    terms = terms_of(model, [group], config())
    assert (terms.clipped_high, terms.clipped_low) == pytest.approx((0.2, 0.2))
    wide = terms_of(model, [group], config(clip_high=0.6, clip_low=0.6))
    assert (wide.clipped_high, wide.clipped_low) == (0, 0)


def test_divergence_from_the_reference_by_the_simple_path() -> None:
    model, reference = tiny_model().eval(), tiny_model(seed=1).eval()
    completions = [[10, 11, 12], [20, 21]]
    group = group_of(model, completions, [1.0, 0.0])
    drift = torch.cat(
        [logprobs_of(reference, group.prompt, c) - logprobs_of(model, group.prompt, c) for c in completions]
    )
    expected = (drift.exp() - drift - 1).mean().item()
    assert expected > 1e-3
    terms = terms_of(model, [group], config(kl_coef=0.5), reference)
    assert terms.kl == pytest.approx(expected, rel=1e-4)
    assert terms.loss.item() == pytest.approx(terms.policy + 0.5 * expected, rel=1e-4)


def test_the_entropy_is_that_of_the_tokens_there_are() -> None:
    # Weights of zero: all tokens equally probable, also with twice as many rows in the embedding.
    for vocab_size in (None, 2 * tiny_tokenizer().vocab_size):
        model = tiny_model(vocab_size=vocab_size).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
        terms = terms_of(model, [group_of(model, [[1, 2], [3]], [1.0, 0.0])], config())
        assert terms.entropy == pytest.approx(math.log(tiny_tokenizer().vocab_size))


def test_micro_batches_do_not_change_the_gradient(tmp_path: Path) -> None:
    model, reference = tiny_model().eval(), tiny_model(seed=1).eval()
    lengths = ((3, 1), (8, 8), (2, 5), (1, 9))
    groups = [
        group_of(model, [[10 + i] * a, [20 + i] * b], [1.0, 0.0], prompt=(5,) * (i + 1))
        for i, (a, b) in enumerate(lengths)
    ]
    for normalise in ("token", "sequence"):
        found = []
        for max_tokens in (1, 16, 10_000):
            settings = config(normalise=normalise, micro_batch_tokens=max_tokens, kl_coef=0.1, entropy_coef=0.1)
            trainer = trainer_of(copy.deepcopy(model), settings, tmp_path)
            gradients: list[dict[str, Tensor]] = []
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(
                    trainer, "apply_gradients", lambda t=trainer, g=gradients: g.append(grads(t)) or 0.0
                )
                metrics = update(frozen(reference), groups, settings, trainer).metrics
            found.append((gradients[0], metrics))
        (_, first), (whole, _), _ = found
        for gradient, metrics in found[1:]:
            assert metrics == pytest.approx(first, rel=1e-4, abs=1e-7)
            for name in whole:
                torch.testing.assert_close(gradient[name], found[0][0][name], atol=1e-6, rtol=1e-3)


def grads(trainer: Trainer) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in trainer.model.named_parameters() if weight.grad is not None}


def test_groups_of_like_length_go_together_and_none_is_lost() -> None:
    model = tiny_model().eval()
    groups = [group_of(model, [[1] * n, [2]], [1.0, 0.0]) for n in (9, 1, 4, 9, 2)]
    batches = list(group_batches(groups, max_tokens=16))  # a prompt of 3, n, 1: 5, 6, 8, 13, 13
    assert [[max(len(c.token_ids) for c in group.completions) for group in batch] for batch in batches] == [
        [1, 2],
        [4],
        [9],
        [9],
    ]
    assert len(list(group_batches(groups, max_tokens=1000))) == 1


# Several updates per rollout


def test_updates_share_the_groups_of_a_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    original = Trainer.apply_gradients
    monkeypatch.setattr(Trainer, "apply_gradients", lambda self: steps.append(self.step) or original(self))
    log = run(tiny_model(), config(steps=2, updates_per_rollout=3, keep="last"), tmp_path)
    assert steps == [0, 0, 0, 1, 1, 1]
    assert all(float(line["sampler_gap"]) < 1e-4 for line in log)  # type: ignore[arg-type]  # of the first update only


def test_later_updates_see_a_ratio_that_is_no_longer_one(tmp_path: Path) -> None:
    model = tiny_model().eval()
    settings = config(updates_per_rollout=2, learning_rate=0.05)
    same = group_of(model, [[10, 11], [20, 21]], [1.0, 0.0])
    trainer = trainer_of(model, settings, tmp_path)
    metrics = update(None, [same, same], settings, trainer).metrics
    assert metrics["sampler_gap"] < 1e-4
    # The first update has moved the second one's tokens past the clip: both good ones, half of its four tokens, in the
    # mean over both updates a quarter.
    assert metrics["clip_high_share"] == pytest.approx(0.25)


def test_more_updates_than_groups_are_as_many_as_there_are_groups(tmp_path: Path) -> None:
    model = tiny_model().eval()
    groups = [group_of(model, [[10, 11], [20, 21]], [1.0, 0.0])]
    settings = config(updates_per_rollout=10**9)
    one = update(None, groups, settings, trainer_of(model, settings, tmp_path)).metrics
    assert one["grad_norm"] > 0
    assert one["loss"] == pytest.approx(0, abs=1e-6)  # ratio 1, advantages that cancel


# Groups without signal


def constant(problem: Problem, completion_text: str) -> float:
    return 0.5


def odd_problems(problem: Problem, completion_text: str) -> float:
    """Half of the problems carry signal: those whose answer is odd."""
    return float(int(problem.answer) % 2 and sum(map(ord, completion_text)) % 3)


def rollout(settings: GRPOConfig, *, step: int = 0) -> list[RolloutGroup]:
    return RolloutSampler.of(Engine(tiny_model()), settings, seed=0).rollout(PROBLEMS, step=step)


def test_a_completion_ends_where_its_text_ends() -> None:
    engine = Engine(bigram(writes("<think>", "7", "<|endoftext|>")))
    (group,) = sample_groups(engine, PROBLEMS[:1], config())
    texts = {(tiny_tokenizer().decode(each.token_ids), each.finish_reason) for each in group.completions}
    assert texts == {("<think>7<|endoftext|>", "stop")}


def test_a_step_without_signal_changes_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(stall_watch, "say", said.append)
    monkeypatch.setattr(stall_watch, "why_stalled", lambda metrics: f"dropped {metrics['groups_dropped']}")
    monkeypatch.setattr(stall_watch, "QUIET_STEPS", 2)
    model = tiny_model()
    settings = config(steps=3, rewards={f"{__name__}:constant": 1.0}, kl_coef=0.1, weight_decay=0.1, keep="last")
    log = run(model, settings, tmp_path)
    assert fingerprint(model) == fingerprint(tiny_model())
    assert [line["groups_dropped"] for line in log] == [1, 1, 1]
    assert [line["updates"] for line in log] == [0, 0, 0]
    for name in ("loss", "kl", "entropy", "grad_norm", "sampler_gap", "clip_low_share"):
        assert [line[name] for line in log] == [None] * 3, name  # not measured, which is not 0
    assert said == ["grpo: step 0: dropped 1.0", "grpo: step 2: dropped 1.0"]  # once, and again only after a while


def test_the_reasons_of_a_stall_in_words() -> None:
    fine = {"truncated": 0.9, "groups_dropped": 0.9, "reward": 0.1, "well_formed": 0.0}
    assert why_stalled(fine) is None
    reasons = [
        why_stalled(fine | changed)
        for changed in ({"truncated": 1.0}, {"groups_dropped": 1.0}, {"groups_dropped": 1.0, "well_formed": 0.5})
    ]
    for reason, words in zip(
        reasons,
        ("raise grpo.max_new_tokens", "no completion is well-formed", "all rewards are equal (mean 0.10)"),
        strict=True,
    ):
        assert reason is not None and words in reason


def test_groups_without_signal_do_not_dilute_the_others(tmp_path: Path) -> None:
    # The loss is a mean over the tokens of the groups that are left: adding dead groups changes no gradient.
    rewards = {f"{__name__}:odd_problems": 1.0}
    dropped = config(steps=1, problems_per_step=8, rewards=rewards, keep="last")
    log = run(tiny_model(), dropped, tmp_path / "skip")
    assert 0.2 < float(log[0]["groups_dropped"]) < 0.8  # type: ignore[arg-type]
    with_them = run(tiny_model(), replace(dropped, dynamic_sampling="off"), tmp_path / "off")
    share = 1 - float(log[0]["groups_dropped"])  # type: ignore[arg-type]
    ratio = float(with_them[0]["grad_norm"]) / float(log[0]["grad_norm"])  # type: ignore[arg-type]
    assert ratio == pytest.approx(share, rel=0.05)  # all completions have about five tokens


def test_refill_samples_until_the_step_is_full() -> None:
    settings = config(problems_per_step=4, rewards={f"{__name__}:odd_problems": 1.0}, dynamic_sampling="refill")
    groups = rollout(settings)
    assert len(groups) in (8, 12, 16)
    assert sum(group.has_signal for group in groups) >= 4
    assert sum(group.has_signal for group in groups[:-4]) < 4  # the last round was needed
    assert len({group.problem.id for group in groups}) == len(groups)  # further problems, not the same again


def test_refill_gives_up_after_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = config(problems_per_step=2, rewards={f"{__name__}:constant": 1.0}, dynamic_sampling="refill")
    assert len(rollout(never)) == 2 * (1 + 3)
    assert len(rollout(replace(never, max_resample_rounds=1))) == 4
    assert len(rollout(replace(never, dynamic_sampling="skip"))) == 2
    said: list[str] = []
    monkeypatch.setattr(stall_watch, "say", said.append)
    log = run(tiny_model(), replace(never, steps=3, keep="last"), tmp_path)
    assert log[0]["groups_dropped"] == 1
    assert [sentence for sentence in said if "signal" in sentence] == [
        "grpo: step 0: after 3 further rounds 0 of 2 groups carry signal; the step is that much smaller. More such "
        "steps are counted.",
        "grpo: 3 steps were smaller than asked for: too few groups carried signal (dynamic_sampling).",
    ]


def test_a_full_step_takes_no_more_groups_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    original = grpo_module.update

    def count(reference, groups, settings, trainer):  # type: ignore[no-untyped-def]
        taken.append(len(groups))
        return original(reference, groups, settings, trainer)

    monkeypatch.setattr(grpo_module, "update", count)
    rewards = {f"{__name__}:odd_problems": 1.0}
    run(tiny_model(), config(steps=2, rewards=rewards, dynamic_sampling="refill", keep="last"), tmp_path)
    assert taken == [3, 3]


# Rollouts


def test_a_rollout_depends_on_seed_and_step_alone() -> None:
    settings = config()
    texts = [[c.token_ids for group in rollout(settings, step=step) for c in group.completions] for step in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    problems = [{group.problem.id for group in rollout(settings, step=step)} for step in range(7)]
    assert set.union(*problems) == {problem.id for problem in PROBLEMS}  # 7 · 3 = 21: one epoch


def test_groups_hold_what_the_engine_wrote_and_what_it_was_worth() -> None:
    model, settings = tiny_model(), config(rewards={"format": 0.5, "tiny_stages:letters": 2.0}, temperature=0.8)
    (group,) = sample_groups(Engine(model), PROBLEMS[:1], settings)
    tokenizer = tiny_tokenizer()
    assert group.prompt == tuple(prompt_ids(PROBLEMS[0], tokenizer))
    assert len(group.completions) == 4
    assert group.rewards.keys() == {"accuracy", "format", "tiny_stages:letters"}  # the first two always
    for i, completion in enumerate(group.completions):
        text = tokenizer.decode(completion.token_ids)
        letters = sum(character.isalpha() for character in text) / max(1, len(text))
        assert group.rewards["tiny_stages:letters"][i] == letters
        assert group.total[i].item() == pytest.approx(2 * letters)
        # Neither top-k nor top-p, and at the rollout's temperature: the log-probabilities are the trainer's.
        expected = logprobs_of(model, group.prompt, completion.token_ids, temperature=0.8)
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("advantage", ["zscore", "mean"])
def test_groups_hold_the_advantages_of_their_completions(advantage: str) -> None:
    (group,) = sample_groups(Engine(tiny_model()), PROBLEMS[:1], config(advantage=advantage))
    rewards = [value.item() for value in group.total]
    mean = sum(rewards) / 4
    spread = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / 3) + 1e-4 if advantage == "zscore" else 1.0
    assert spread > 1e-3
    assert group.advantages.tolist() == pytest.approx([(reward - mean) / spread for reward in rewards], abs=1e-5)


def test_advantages_of_a_batch_are_divided_by_the_spread_of_all_its_rewards() -> None:
    groups = sample_groups(Engine(tiny_model()), PROBLEMS[:3], config(advantage="batch"))
    every = [value for group in groups for value in group.total.tolist()]
    mean = sum(every) / 12
    spread = math.sqrt(sum((reward - mean) ** 2 for reward in every) / 11) + 1e-4
    for group in groups:
        own = group.total.mean().item()
        assert group.advantages.tolist() == pytest.approx([(r - own) / spread for r in group.total.tolist()], abs=1e-5)


@pytest.mark.parametrize(
    "changed",
    [{"objective": "gspo"}, {"objective": "cispo"}, {"objective": "sapo"}, {"uncertain_share": 0.2}],
    ids=lambda changed: str(*changed.values()),
)
def test_every_objective_raises_the_reward_and_ignores_micro_batches(
    changed: dict[str, object], tmp_path: Path
) -> None:
    settings = config(steps=4, problems_per_step=4, updates_per_rollout=2, keep="last", **changed)
    whole = run(tiny_model(), settings, tmp_path / "whole")
    parts = run(tiny_model(), replace(settings, micro_batch_tokens=1), tmp_path / "parts")
    for one, other in zip(whole, parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_a_run_looks_each_reward_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    find = rewards_module.find_reward

    def count(name: str) -> rewards_module.Reward:
        asked.append(name)
        return find(name)

    monkeypatch.setattr(rewards_module, "find_reward", count)
    run(tiny_model(), config(steps=2, rewards={"format": 0.5, **LETTERS}, keep="last"), tmp_path)
    assert asked == ["accuracy", "format", *LETTERS]


def test_a_reward_that_is_not_there_stops_a_run_before_it_begins(tmp_path: Path) -> None:
    for name in ("accurcy", "no_such_module:f", "tiny_stages:no_such_function"):
        with pytest.raises(UserError, match=name):
            run(tiny_model(), config(rewards={name: 1.0}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pass_made_for_the_other_processes_counts_in_no_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model().eval()
    groups = [
        group_of(model, [[10, 11, 12], [20]], [1.0, 0.0], ratios=[[1.5, 1.0, 0.9], [1.2]], number=n) for n in (0, 1)
    ]
    alone = update(None, groups, config(), trainer_of(copy.deepcopy(model), config(), tmp_path))
    original = Parallel.backward

    def with_a_dummy(self, loss, batches, *, dummy):  # type: ignore[no-untyped-def]
        total = original(self, loss, batches, dummy=dummy)
        loss(self.model, dummy)
        return total

    monkeypatch.setattr(Parallel, "backward", with_a_dummy)
    beside = update(None, groups, config(), trainer_of(copy.deepcopy(model), config(), tmp_path))
    assert beside == alone
    assert [detail.number for detail in beside.details] == [0, 1]


def test_a_rollout_described_by_hand() -> None:
    model = tiny_model().eval()
    first = group_of(model, [[1, 2, 3], [4]], [1.0, 0.0])
    second = group_of(model, [[1, 2], [3, 4]], [0.0, 0.0])
    stopped = replace(second.completions[0], finish_reason="stop")
    second = replace(second, completions=(stopped, second.completions[1]))
    found = describe([first, second])
    rewards = {"": 0.25, "_std": math.sqrt(3) / 4, "_signal": 0.5}  # of 1, 0, 0, 0; one group of two has signal
    assert found == pytest.approx(
        {f"reward_{name}{suffix}": value for name in ("accuracy", "format") for suffix, value in rewards.items()}
        | {
            "reward": 0.25,
            "accuracy": 0.25,
            "well_formed": 0.25,
            "groups_dropped": 0.5,
            "mean_tokens": 2.0,
            "max_tokens": 3.0,
            "truncated": 0.75,
        }
    )


# The run


def test_the_reference_is_the_model_as_it_came(tmp_path: Path) -> None:
    log = run(tiny_model(), config(steps=4, kl_coef=0.1, learning_rate=0.01, keep="last"), tmp_path)
    assert log[0]["kl"] == pytest.approx(0, abs=1e-9)  # policy equals reference at step 0
    kls = [float(line["kl"]) for line in log]  # type: ignore[arg-type]
    assert 0 < kls[1] < kls[3]
    without = run(tiny_model(), config(steps=4, kl_coef=0.0, learning_rate=0.01, keep="last"), tmp_path / "without")
    assert [line["kl"] for line in without] == [None] * 4  # no reference, no measurement


def test_the_pull_of_the_reference_holds_the_policy_back(tmp_path: Path) -> None:
    drift = {}
    for kl_coef in (1e-9, 10.0):
        settings = config(steps=12, kl_coef=kl_coef, learning_rate=0.003, keep="last")
        log = run(tiny_model(), settings, tmp_path / str(kl_coef))
        drift[kl_coef] = sum(float(str(line["kl"])) for line in log[2:])  # the first update feels no pull yet
    assert drift[10.0] < 0.5 * drift[1e-9]


def test_the_entropy_bonus_decays_linearly(tmp_path: Path) -> None:
    settings = config(steps=5, entropy_coef=0.9, final_entropy_coef=0.1, keep="last")
    assert [settings.entropy_coef_at(step) for step in range(5)] == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1])
    assert config(steps=1, entropy_coef=0.9, final_entropy_coef=0.1).entropy_coef_at(0) == 0.9
    log = run(tiny_model(), settings, tmp_path)
    assert [line["entropy_coef"] for line in log] == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1])


def test_the_entropy_bonus_raises_the_entropy(tmp_path: Path) -> None:
    entropy = {}
    for bonus in (0.0, 10.0):
        model = tiny_model().eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(8 if weight.dim() == 2 else 1)  # well below the highest entropy to begin with
        group, settings = group_of(model, [[10, 11, 12], [20, 21]], [1.0, 0.0]), config(entropy_coef=bonus)
        before = terms_of(model, [group], settings).entropy
        metrics = update(None, [group], settings, trainer_of(model, settings, tmp_path)).metrics
        assert metrics["entropy"] == pytest.approx(before)
        entropy[bonus] = terms_of(model, [group], settings).entropy - before
    assert entropy[0.0] < 0  # learning makes the model surer …
    assert entropy[10.0] > 0.005  # … and the bonus less sure


def test_the_best_weights_on_validation_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    scores = iter([0.1, 0.7, 0.3, 0.7, 0.2])  # at steps 0, 2, 4, 5 and after the last

    def validate(engine: Engine, *_: object, **__: object) -> Interval:
        seen.append(fingerprint(engine.model))
        return share([next(scores)] * 2)

    monkeypatch.setattr(grpo_module, "validation_accuracy", validate)
    model = tiny_model()
    log = run(model, config(steps=6, evaluate_every=2, keep="best"), tmp_path)
    assert {line["step"]: line["val_pass_at_1"] for line in log if "val_pass_at_1" in line} == {
        0: 0.1,
        2: 0.7,
        4: 0.3,
        5: 0.7,
    }
    assert len(set(seen)) == 5
    assert fingerprint(model) == seen[3]


@pytest.mark.parametrize(("first", "kept"), [([1.0] + [0.0] * 49, 1), ([1.0] * 50, 0)])
def test_what_grpo_began_with_has_to_be_surely_better_to_be_kept(
    first: list[float], kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2% of fifty problems counts as less than the 1% that comes after it; 100% does not."""
    seen: list[str] = []
    found = iter([share(first), share([0.5] + [0.0] * 49), share([0.0])])

    def validate(engine: Engine, *_: object, **__: object) -> Interval:
        seen.append(fingerprint(engine.model))
        return next(found)

    monkeypatch.setattr(grpo_module, "validation_accuracy", validate)
    said: list[str] = []
    monkeypatch.setattr(stall_watch, "say", said.append)
    model = tiny_model()
    log = run(model, config(steps=2, evaluate_every=1), tmp_path)
    lower = [line for line in said if "was 2.0% before the first step and is 1.0%" in line]
    assert len(lower) == (kept == 1)
    assert [line["val_pass_at_1"] for line in log] == pytest.approx([sum(first) / 50, 0.01])
    assert len(set(seen)) == 3
    assert fingerprint(model) == seen[kept]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_without_validation_problems_the_last_weights_are_left(keep: Keep, tmp_path: Path) -> None:
    model, last = tiny_model(), tiny_model()
    log = run(model, config(steps=2, keep=keep), tmp_path / "none", validation=())
    run(last, config(steps=2, keep="last"), tmp_path / "last")
    assert fingerprint(model) == fingerprint(last)
    assert not any("val_pass_at_1" in line for line in log)


def test_the_last_weights_count_too_when_the_best_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.2, 0.9])  # at steps 0 and 1, and after the last
    monkeypatch.setattr(grpo_module, "validation_accuracy", lambda *_, **__: share([next(scores)]))
    model, last = tiny_model(), tiny_model()
    run(model, config(steps=2, evaluate_every=5), tmp_path / "best")
    monkeypatch.setattr(grpo_module, "validation_accuracy", lambda *_, **__: share([0.0]))
    run(last, config(steps=2, keep="last"), tmp_path / "last")
    assert fingerprint(model) == fingerprint(last)


def test_a_collapse_stops_the_run_and_leaves_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    shares = iter([0.1, 0.9, 0.8, 0.1, 0.9])  # below at first, which is no collapse; a collapse at step 3
    seen: list[str] = []

    def validate(engine: Engine, *_: object, **__: object) -> Interval:
        seen.append(fingerprint(engine.model))
        return share([{1: 0.2, 2: 0.6, 3: 0.4}[len(seen)]])  # at steps 0, 1 and 2; none after the collapse

    monkeypatch.setattr(grpo_module, "describe", lambda groups: describe(groups) | {"well_formed": next(shares)})
    monkeypatch.setattr(grpo_module, "validation_accuracy", validate)
    monkeypatch.setattr(Trainer, "is_time_to_evaluate", lambda self: self.step < 3)
    monkeypatch.setattr(stall_watch, "say", said.append)
    model = tiny_model()
    log = run(model, config(steps=5, keep="last"), tmp_path)
    assert [line["well_formed"] for line in log] == [0.1, 0.9, 0.8, 0.1]
    assert fingerprint(model) == seen[1]
    assert "step 3: only 10% of the completions are well-formed (stop_below is 20%)" in said[-1]


def test_a_reward_that_fails_stops_the_run_with_its_state_saved(tmp_path: Path) -> None:
    settings = config(steps=4, rewards={f"{__name__}:fails_later": 1.0}, save_every=100, keep="last")
    CALLS.clear()
    with pytest.raises(UserError, match=r':fails_later" on problem .*\+.*, completion .* gave nan'):
        run(tiny_model(), settings, tmp_path)
    assert [path.name for path in (tmp_path / "state").glob("step_*")] == ["step_00000002.safetensors"]
    assert len(read_jsonl(tmp_path / "log.jsonl")) == 2


CALLS: list[int] = []


def fails_later(problem: Problem, completion_text: str) -> float:
    """NaN in the third step of 3 × 4 completions."""
    CALLS.append(1)
    return math.nan if len(CALLS) > 24 else float(len(CALLS) % 2)


def test_seconds_and_tokens_of_generation_and_training_are_logged_apart(tmp_path: Path) -> None:
    (line,) = run(tiny_model(), config(steps=1, keep="last"), tmp_path)
    generated, trained = float(line["generate_seconds"]), float(line["train_seconds"])  # type: ignore[arg-type]
    assert 0 < generated + trained <= float(line["seconds"])  # type: ignore[arg-type]
    tokens = float(line["mean_tokens"]) * 12  # type: ignore[arg-type]
    assert line["generate_tokens_per_second"] == pytest.approx(tokens / generated)
    assert line["train_tokens_per_second"] == pytest.approx(tokens / trained)  # no group was dropped


def test_both_families_learn_by_grpo(tmp_path: Path) -> None:
    model = GPT(tiny_config("llama", vocab_size=tiny_tokenizer().vocab_size), seed=0)
    model.tokenizer = tiny_tokenizer()
    log = run(model, config(steps=2, kl_coef=0.01, keep="last"), tmp_path)
    assert all(float(line["sampler_gap"]) < 1e-4 for line in log)  # type: ignore[arg-type]
    assert float(log[0]["grad_norm"]) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"group_size": 1}, "group_size is 1; a group needs at least 2"),
        ({"temperature": 0.0}, "temperature is 0; reinforcement learning must sample"),
        ({"rewards": {}}, "rewards is empty"),
        ({"rewards": {"accuracy": 0.0}}, "rewards is empty"),
        ({"steps": -1}, "steps is -1"),
        ({"updates_per_rollout": 0}, "updates_per_rollout is 0; it must be at least 1"),
        ({"kl_coef": -0.1}, "kl_coef is -0.1; it cannot be negative"),
        ({"clip_low": 1.0}, "clip_low is 1.0"),
        ({"dual_clip": 1.2}, "dual_clip is 1.2; it must be above 1 \\+ clip_high"),
        ({"overlong_share": 0.0}, "overlong_share is 0.0"),
        ({"stop_below": 1.0}, "stop_below is 1.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"decay_share": 1.5}, "decay_share is 1.5; it is a share, in \\[0, 1\\]"),
        ({"final_learning_rate": -0.1}, "final_learning_rate is -0.1"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config(**fields)
