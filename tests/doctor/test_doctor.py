"""The doctor: every silent failure it looks for, brought about on purpose, and a healthy run in which it finds none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_stages import PROBLEMS, SFT, tiny_model, tiny_tokenizer
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import Sample, to_sample
from nanogpt_edit.doctor import memory
from nanogpt_edit.doctor.data_checks import (
    check_gold,
    check_held_out,
    check_leak,
    check_lengths,
    check_prompts,
    check_targets,
)
from nanogpt_edit.doctor.doctor import check_grpo, check_pretrain, check_sft, first_rollout
from nanogpt_edit.doctor.findings import Finding, verdict
from nanogpt_edit.doctor.memory import check_memory, training_bytes
from nanogpt_edit.doctor.model_checks import check_agreement, check_signal, check_warmup, check_weights
from nanogpt_edit.engine.completion import Completion
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache
from nanogpt_edit.model.lora_config import LoraConfig
from nanogpt_edit.training.config import LoopConfig
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.rollouts import RolloutGroup

CONFIG = GRPOConfig(
    problems_per_step=3, group_size=4, max_new_tokens=5, rewards={"tiny_stages:letters": 1.0}, kl_coef=0.1
)
TRAIN, TEST = PROBLEMS[5:], PROBLEMS[:5]


def samples(problems: tuple[Problem, ...] = TRAIN) -> list[Sample]:
    return [to_sample(problem, tiny_tokenizer()) for problem in problems]


def groups(*rewards: tuple[float, ...], well_formed: float = 1.0, finish_reason: str = "stop") -> list[RolloutGroup]:
    """Groups with these rewards; nothing else about them matters."""
    return [
        RolloutGroup(
            number=number,
            problem=PROBLEMS[number],
            prompt=(5,),
            completions=tuple(Completion(number, i, (7,), (-1.0,), finish_reason) for i in range(len(own))),  # type: ignore[arg-type]
            rewards={"accuracy": own, "format": (well_formed,) * len(own)},
            total=torch.tensor(own),
            advantages=torch.zeros(len(own)),
            takes_part=(True,) * len(own),
        )
        for number, own in enumerate(rewards)
    ]


# A healthy run


def test_a_healthy_start_is_one_line() -> None:
    findings = check_pretrain(tiny_model(), ["one text"], ["another"], SFT)
    assert [finding.level for finding in findings] == ["ok"] * 3
    findings = check_sft(tiny_model(), TRAIN, TEST, samples(), SFT)
    assert [finding.level for finding in findings] == ["ok"] * 7
    assert verdict(findings, stage="sft") == "Doctor before sft: 7 checks, all fine."
    findings = check_grpo(tiny_model(), TRAIN, TEST, replace(CONFIG, rewards={"format": 1.0, "length": 0.1}), seed=0)
    levels = {finding.check: finding.level for finding in findings}
    assert levels.pop("signal") in ("ok", "warn")  # an untrained model writes what it writes
    assert set(levels.values()) == {"ok"}


def test_looking_changes_nothing() -> None:
    model = tiny_model().train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    check_grpo(model, TRAIN, TEST, CONFIG, seed=0)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_warnings_are_said_and_failures_stop() -> None:
    fine, odd = Finding("a", "ok", "x"), Finding("b", "warn", "y is odd", "do z")
    assert verdict([fine, odd], stage="sft") == "Doctor before sft: 2 checks, 1 to look at. b: y is odd; do z."
    with pytest.raises(UserError, match=r"the doctor stops grpo before it begins. b: y is odd; do z."):
        verdict([fine, replace(odd, level="fail")], stage="grpo")


# The data


def test_a_gold_answer_that_earns_nothing() -> None:
    # The answer's own text closes the answer tag too early: no completion can ever earn the reward.
    broken = tuple(replace(problem, answer="7</answer>") for problem in TRAIN)
    found = check_gold(broken, tiny_tokenizer(), replace(CONFIG, rewards={"accuracy": 1.0}))
    assert (found.level, found.check) == ("fail", "gold answers")
    assert f'reward "accuracy": 16 of 16, {TRAIN[0].id} earns 0' in found.found
    few = check_gold((*TRAIN, broken[0]), tiny_tokenizer(), replace(CONFIG, rewards={"accuracy": 1.0}))
    assert few.level == "warn"
    own_scale = check_gold(TRAIN, tiny_tokenizer(), CONFIG)  # a share of letters: below 1 for any text, 0 for none
    assert own_scale.level == "ok" and own_scale.found.endswith("more than an empty text from your own")
    constant = check_gold(TRAIN, tiny_tokenizer(), replace(CONFIG, rewards={"tiny_stages:half": 1.0}))
    assert constant.level == "warn"
    assert f"16 of 16, {TRAIN[0].id} earns 0.5, an empty text 0.5" in constant.found
    picky = check_gold(TRAIN, tiny_tokenizer(), replace(CONFIG, rewards={"tiny_stages:first_letter": 1.0}))
    assert picky.level == "warn" and "completion '' failed: IndexError" in picky.found
    every = replace(CONFIG, rewards={"accuracy": 1.0, "format": 1.0, "length": 1.0})
    assert check_gold(TRAIN, tiny_tokenizer(), every).level == "ok"


def test_a_row_without_targets() -> None:
    rows = samples()
    rows[3] = replace(rows[3], loss_mask=(0,) * len(rows[3].loss_mask))
    found = check_targets(rows, tiny_tokenizer())
    assert (found.level, found.found) == ("fail", "1 of 16 examples have no target token")


@pytest.mark.parametrize("how", ["not a target", "not there"])
def test_a_stop_token_that_is_never_learned(how: str) -> None:
    rows = samples()
    cut = replace(rows[0], loss_mask=(*rows[0].loss_mask[:-1], 0))
    if how == "not there":
        cut = Sample(token_ids=rows[0].token_ids[:-1], loss_mask=rows[0].loss_mask[:-1])
    found = check_targets([cut, *rows[1:]], tiny_tokenizer())
    assert found.level == "fail"
    assert found.found.startswith("1 of 16 examples do not end in </answer> as a target")


def test_a_prompt_that_ends_in_another_token_than_generation_starts_from() -> None:
    rows = samples()
    space = tiny_tokenizer().encode(" ")
    start = rows[0].loss_mask.index(1)
    spaced = Sample(
        token_ids=(*rows[0].token_ids[:start], *space, *rows[0].token_ids[start:]),
        loss_mask=(*rows[0].loss_mask[:start], *[0] * len(space), *rows[0].loss_mask[start:]),
    )
    found = check_prompts(TRAIN, [spaced, *rows[1:]], tiny_tokenizer())
    assert found.level == "fail"
    assert found.found == f"problem {TRAIN[0].id}: training's prompt ends in ' ', generation's in '?'"
    assert check_prompts(TRAIN, rows, tiny_tokenizer()).level == "ok"


def test_a_test_question_in_train() -> None:
    leaked = replace(TEST[2], question=TEST[2].question.upper() + "  ", id="leak")
    found = check_leak((*TRAIN, leaked), TEST)
    assert (found.level, found.found) == ("fail", f"1 of 5 are also trained on (the first: {TEST[2].id})")
    assert check_leak(TRAIN, TEST).level == "ok"


def test_held_out_text_that_is_trained_on() -> None:
    found = check_held_out(["One  text.", "another"], ["one text.", "a third"])
    assert (found.level, found.check) == ("warn", "held-out text")
    assert found.found.startswith("1 of 2 documents are also trained on")
    assert check_held_out(["one"], ["two"]).level == "ok"


def test_examples_that_do_not_fit() -> None:
    found = check_lengths(samples(), problems=20, block_size=48)
    assert (found.level, found.found) == ("warn", "4 of 20 examples exceed block_size 48 and are left out")
    longest = max(len(sample.token_ids) for sample in samples())
    fine = check_lengths(samples(), problems=16, block_size=48)
    assert (fine.level, fine.found) == ("ok", f"the longest example has {longest} of at most 48 tokens")


# The model


def test_a_weight_that_is_no_number() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.embed.weight[3, 2] = torch.nan
    finding = check_weights(model)
    assert finding.level == "fail"
    assert finding.found == "1 tensors hold values that are not finite (the first: embed.weight)"
    assert finding in check_sft(model, TRAIN, TEST, samples(), SFT)


def test_a_trainer_at_another_temperature_than_the_sampler() -> None:
    sampled = first_rollout(tiny_model(), TRAIN, replace(CONFIG, temperature=0.2), seed=0)
    agreement, start = check_agreement(tiny_model(), sampled, CONFIG)
    assert agreement.level == "fail"
    assert "off-policy" in agreement.found
    assert start.level == "ok"
    assert check_agreement(tiny_model(), sampled, replace(CONFIG, temperature=0.2))[0].level == "ok"


def test_a_small_gap_is_a_warning() -> None:
    (group,) = first_rollout(tiny_model(), TRAIN[:1], CONFIG, seed=0)
    first = group.completions[0]
    rounded = replace(first, logprobs=(first.logprobs[0] + 0.1, *first.logprobs[1:]))
    agreement, _ = check_agreement(
        tiny_model(), [replace(group, completions=(rounded, *group.completions[1:]))], CONFIG
    )
    assert agreement.level == "warn"
    assert "differ by 0.10 nats" in agreement.found


def test_a_policy_that_is_not_its_own_copy() -> None:
    model = tiny_model()
    sampled = first_rollout(model, TRAIN, CONFIG, seed=0)

    class Restless(GPT):
        """A model whose forward pass is random, as with a dropout that is left on."""

        def hidden(self, token_ids: Tensor, **kwargs: object) -> Tensor:  # type: ignore[override]
            states = super().hidden(token_ids, **kwargs)  # type: ignore[arg-type]
            return states + 0.3 * torch.randn_like(states)

    restless = Restless(model.config, seed=0)
    restless.tokenizer = model.tokenizer
    _, start = check_agreement(restless, sampled, CONFIG)
    assert start.level == "fail"
    assert "where it must be 0" in start.found


@pytest.mark.parametrize(
    ("rollout", "level", "said"),
    [
        (groups((1.0, 0.0), (0.0, 0.0)), "ok", "50% of 2 first groups carry signal"),
        (groups(*[(1.0, 1.0)] * 5, (1.0, 0.0)), "warn", "give it harder problems"),
        (groups(*[(0.0, 0.0)] * 5, (1.0, 0.0)), "warn", "give it easier problems"),
        (groups((0.0, 0.0), well_formed=0.0), "warn", "teach the format first, by SFT"),
        (groups((0.0, 0.0), (1.0, 1.0)), "warn", "too easy or too hard"),
        (groups((0.0, 0.0), finish_reason="length"), "warn", "raise grpo.max_new_tokens"),
    ],
)
def test_a_first_rollout_with_little_to_learn_from(rollout: list[RolloutGroup], level: str, said: str) -> None:
    found = check_signal(rollout)
    assert found.level == level
    assert said in str(found)


def test_a_warm_up_that_never_ends() -> None:
    assert check_warmup(replace(SFT, steps=20, warmup_steps=19)).level == "ok"
    found = check_warmup(replace(SFT, steps=20, warmup_steps=20))
    assert str(found) == "warm-up: 20 steps of 20, so the learning rate never reaches its peak; lower warmup_steps"
    assert found.level == "warn"


def test_too_little_memory() -> None:
    found = check_memory(3 * 2**30, 2**30)
    assert (found.level, found.found) == ("warn", "about 3 GiB needed, 1 GiB free")
    assert check_memory(2**30, 3 * 2**30).level == "ok"
    assert check_memory(2**30, None).found == "about 1 GiB needed; how much is free is not known here"


def test_the_memory_estimate_by_hand() -> None:
    # Two blocks of width 16, MLP width 64, V rows: per token 2 · (10 · 16 + 2 · 64) · 4 + 3 · V · 4 bytes; with
    # checkpointing (2 · 16 + 10 · 16 + 2 · 64) · 4. GRPO keeps the logits once more.
    model = tiny_model()
    vocabulary = model.config.vocab_size
    parameters = sum(weight.numel() for weight in model.parameters())
    plain = LoopConfig(micro_batch_tokens=100)
    assert training_bytes(model, plain) == 16 * parameters + 100 * (2304 + 12 * vocabulary)
    again = replace(plain, activation_checkpointing=True)
    assert training_bytes(model, again) == 16 * parameters + 100 * (1280 + 12 * vocabulary)
    rollout = replace(CONFIG, micro_batch_tokens=100)
    cache = 12 * KVCache.row_bytes(model.config, capacity=5, dtype=torch.float32) + 100 * 4 * vocabulary
    assert training_bytes(model, rollout) == training_bytes(model, plain) + 4 * parameters + cache
    assert training_bytes(model, replace(rollout, kl_coef=0.0)) == training_bytes(model, plain) + cache
    # Adapters of rank 2, in each block (16 + 48) + (16 + 16) + 2 · (16 + 64) rows and columns; no reference.
    adapted = replace(rollout, lora=LoraConfig(rank=2))
    expected = 4 * parameters + 16 * 2 * 2 * 256 + 100 * (2304 + 12 * vocabulary) + cache
    assert training_bytes(model, adapted) == expected


def test_free_memory_is_read_where_it_can_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = memory.available_bytes(torch.device("cpu"))
    assert found is None or 2**20 < found < 2**50
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "nothing")
    assert memory.available_bytes(torch.device("cpu")) is None
