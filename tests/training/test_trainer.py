"""What the stages share: the schedule, exact resume, faults, the best weights, and the losses of pretraining and SFT.

The stages themselves are in tiny_stages.py: two layers, twenty steps.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from tiny_stages import GRPO, PROBLEMS, SFT, STAGES, run_stage, steps_of, tiny_model, tiny_tokenizer
from torch import Tensor

from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_json, read_jsonl
from nanogpt_edit.data.batch import collate, micro_batches, rows_of_step
from nanogpt_edit.data.samples import Sample, to_sample
from nanogpt_edit.data.text import token_stream
from nanogpt_edit.model.block import take_columns
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.head import head_cross_entropy_sum
from nanogpt_edit.training import sft as sft_module
from nanogpt_edit.training import states
from nanogpt_edit.training import trainer as loop
from nanogpt_edit.training.config import LoopConfig, schedule_at
from nanogpt_edit.training.grpo import grpo
from nanogpt_edit.training.optimizers import make_optimizers
from nanogpt_edit.training.pretrain import held_out_loss, next_token_loss
from nanogpt_edit.training.sft import (
    completion_loss_sum,
    problems_per_step,
    replay_samples,
    sft,
    target_tokens,
    validation_loss,
)
from nanogpt_edit.training.sft_config import SFTConfig
from nanogpt_edit.training.states import load_tensors, save_tensors
from nanogpt_edit.training.trainer import SKIPS_ALLOWED, Trainer

ANY_STAGE = pytest.mark.parametrize("stage", STAGES)
TIMES = ("seconds", "tokens_per_second")


class Accident(Exception):
    pass


@dataclass(frozen=True)
class Run:
    fingerprint: str
    log: list[dict[str, object]]
    """Without what the clock says."""


def log_of(folder: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in line.items() if not k.endswith(TIMES)} for line in read_jsonl(folder / "log.jsonl")]


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """What a stage gives when nothing happens to it."""

    @cache
    def run(stage: str) -> Run:
        folder = tmp_path_factory.mktemp(stage)
        torch.set_num_threads(1)
        return Run(fingerprint(run_stage(stage, folder)), log_of(folder))

    return run


@contextmanager
def accident(at_step: int, method: str) -> Iterator[None]:
    """Something fails at a step, as `method` of the trainer is called."""
    original = getattr(Trainer, method)

    def fail(self: Trainer, *arguments: object, **named: object) -> object:
        if self.step == at_step:
            raise Accident
        return original(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Trainer, method, fail)
        yield


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the person is told."""
    lines: list[str] = []
    for module in (loop, states):
        monkeypatch.setattr(module, "say", lines.append)
    return lines


def simple_trainer(folder: Path, *, model: GPT | None = None, **fields: object) -> Trainer:
    config = LoopConfig(**{"steps": 10, "schedule": "constant", **fields})  # type: ignore[arg-type]
    return Trainer(model or tiny_model(), config, label="sft", state=folder / "state", log=folder / "log.jsonl")


def set_gradients(model: GPT, value: float) -> None:
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, value)


# The schedule


def schedule(**fields: object) -> list[float]:
    config = LoopConfig(**fields)  # type: ignore[arg-type]
    return [schedule_at(step, config) for step in range(config.steps)]


def test_schedules_by_hand() -> None:
    warm = {"steps": 9, "warmup_steps": 4, "final_learning_rate": 0.1}
    # 4 steps up, then a quarter of the way down with each: cosine 0.1 + 0.9 (1 + cos(π/4)) / 2 = 0.868198, …
    assert schedule(**warm) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.868198, 0.55, 0.231802, 0.1], abs=1e-6)
    # linear: 0.1 + 0.9 · ¾ = 0.775, …
    assert schedule(**warm, schedule="linear") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.775, 0.55, 0.325, 0.1])
    assert schedule(**warm, schedule="constant") == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]


def test_a_decay_over_the_last_half_is_flat_before() -> None:
    halves = schedule(steps=11, schedule="linear", final_learning_rate=0.0, decay_share=0.5)
    assert halves == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


def test_a_trainer_takes_and_logs_a_step_also_outside_its_loop(tmp_path: Path) -> None:
    trainer = simple_trainer(tmp_path, steps=3)
    before = fingerprint(trainer.model)
    set_gradients(trainer.model, 0.1)
    trainer.apply_gradients()
    assert fingerprint(trainer.model) != before
    trainer.log({"loss": 1.0}, tokens=10)
    trainer.save_state()
    (line,) = log_of(tmp_path)
    assert (line["step"], line["loss"]) == (0, 1.0)


def test_the_shortest_runs_have_a_schedule_too() -> None:
    assert schedule(steps=1) == [1.0]
    assert schedule(steps=2) == pytest.approx([1.0, 0.1])
    assert schedule(steps=2, warmup_steps=5) == pytest.approx([0.2, 0.4])


def test_the_schedule_reaches_the_optimizers_and_the_log(tmp_path: Path) -> None:
    trainer = simple_trainer(
        tmp_path, steps=3, schedule="linear", final_learning_rate=0.5, learning_rate=0.2, optimizer="muon"
    )
    seen = []
    for _ in trainer.steps():
        set_gradients(trainer.model, 0.1)
        trainer.apply_gradients()
        seen.append([group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups])
        trainer.log({"loss": 1.0}, tokens=10)
    shares = [1.0, 0.75, 0.5]
    assert seen == [pytest.approx([0.2 * share, 0.2 * share, 0.02 * share]) for share in shares]
    assert [line["lr"] for line in log_of(tmp_path)] == pytest.approx([0.2 * share for share in shares])


# The optimizers


def test_only_matrices_decay() -> None:
    model = tiny_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(2.0)
    set_gradients(model, 0.0)
    for optimizer in make_optimizers(model, LoopConfig(learning_rate=0.1, weight_decay=0.5)):
        optimizer.step()
    for name, weight in model.named_parameters():
        expected = 2 * (1 - 0.1 * 0.5) if weight.dim() == 2 else 2.0
        assert weight.unique().tolist() == pytest.approx([expected]), name


def test_muon_moves_the_blocks_matrices_and_adamw_the_rest() -> None:
    model = tiny_model()
    names = {id(weight): name for name, weight in model.named_parameters()}
    adamw, muon = (
        {names[id(weight)] for group in optimizer.param_groups for weight in group["params"]}
        for optimizer in make_optimizers(model, LoopConfig(optimizer="muon"))
    )
    assert muon == {
        name for name in names.values() if name.startswith("blocks.") and model.get_parameter(name).dim() == 2
    }
    assert adamw == set(names.values()) - muon
    assert {"embed.weight", "positions.weight", "norm.bias", "blocks.0.attn.qkv.bias"} <= adamw


def test_adamws_first_step_by_hand(tmp_path: Path) -> None:
    # Bias-corrected, the first step is lr · g / (|g| + 1e-8): lr towards less loss, whatever the gradient's size.
    trainer = simple_trainer(tmp_path, steps=1, learning_rate=0.01)
    before = trainer.model.embed.weight.detach().clone()
    for _ in trainer.steps():
        set_gradients(trainer.model, -3.0)
        trainer.apply_gradients()
        trainer.log({}, tokens=1)
    torch.testing.assert_close(trainer.model.embed.weight.detach(), before + 0.01)


def test_gradients_are_cut_to_the_norm_and_reported_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = simple_trainer(tmp_path, grad_clip=2.0)
    count = sum(weight.numel() for weight in trainer.model.parameters())
    used: list[float] = []
    step = trainer.optimizers[0].step

    def look() -> None:
        used.append(math.sqrt(sum((w.grad**2).sum().item() for w in trainer.model.parameters() if w.grad is not None)))
        step()

    monkeypatch.setattr(trainer.optimizers[0], "step", look)
    for size in (0.5, 0.001):
        set_gradients(trainer.model, size)
        assert trainer.apply_gradients() == pytest.approx(size * math.sqrt(count), rel=1e-4)
    assert used == pytest.approx([2.0, 0.001 * math.sqrt(count)], rel=1e-4)
    assert all(weight.grad is None for weight in trainer.model.parameters())


# Stopped and resumed


@ANY_STAGE
def test_stopped_anywhere_a_run_ends_with_the_same_bits(
    stage: str, tmp_path: Path, unbroken: Callable[[str], Run]
) -> None:
    last = steps_of(stage) - 1
    for step, method in ((2, "apply_gradients"), (4, "log"), (6, "apply_gradients"), (last, "log")):
        with pytest.raises(Accident), accident(step, method):
            run_stage(stage, tmp_path)
    model = run_stage(stage, tmp_path)
    assert fingerprint(model) == unbroken(stage).fingerprint
    assert log_of(tmp_path) == unbroken(stage).log
    assert [line["step"] for line in log_of(tmp_path)] == list(range(last + 1))


def test_dropout_is_the_same_when_resumed(tmp_path: Path) -> None:
    def run(folder: Path) -> str:
        model = tiny_model()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        samples = [to_sample(problem, tiny_tokenizer()) for problem in PROBLEMS]
        config = replace(SFT, steps=8, replay=0.0, keep="last")
        state, log = folder / "state", folder / "log.jsonl"
        sft(model, samples[5:], samples[:5], config, replay=None, seed=1, state=state, log=log)
        return fingerprint(model)

    torch.manual_seed(7)
    with pytest.raises(Accident), accident(4, "log"):
        run(tmp_path / "broken")
    assert run(tmp_path / "broken") == run(tmp_path / "whole")


@ANY_STAGE
def test_the_stages_do_learn_something_in_twenty_steps(stage: str, unbroken: Callable[[str], Run]) -> None:
    # Or all of this would compare a model with itself.
    assert unbroken(stage).fingerprint != fingerprint(tiny_model())
    losses = [line["val_loss"] for line in unbroken(stage).log if "val_loss" in line]
    assert stage == "grpo" or losses[-1] < losses[0]  # type: ignore[operator]


@ANY_STAGE
def test_a_finished_run_called_again_changes_nothing(
    stage: str, tmp_path: Path, unbroken: Callable[[str], Run], said: list[str]
) -> None:
    run_stage(stage, tmp_path)
    again = run_stage(stage, tmp_path)
    assert fingerprint(again) == unbroken(stage).fingerprint
    assert log_of(tmp_path) == unbroken(stage).log
    assert sum("goes on at step" in line for line in said) == 1


def test_two_states_are_kept_and_cleared_when_the_stage_is_safe(tmp_path: Path) -> None:
    run_stage("sft", tmp_path)
    states = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert states == ["best.safetensors", "step_00000015.safetensors", "step_00000018.safetensors"]
    simple_trainer(tmp_path).clear()
    assert not (tmp_path / "state").exists()


@pytest.mark.slow
def test_killed_at_random_instants_every_stage_ends_with_the_same_bits(
    tmp_path: Path, unbroken: Callable[[str], Run]
) -> None:
    """Real processes, really killed: so often in each stage with SIGKILL, wherever they happened to be."""
    kills = 7
    here = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(here / "tiny_stages.py"), str(tmp_path), str(kills)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        hits = read_json(tmp_path / stage / "killed.json")["hits"]
        assert isinstance(hits, list)
        assert sum(hits) == kills
        for number in range(len(hits)):
            folder = tmp_path / stage / str(number)
            assert read_json(folder / "done.json")["fingerprint"] == unbroken(stage).fingerprint
            assert log_of(folder) == unbroken(stage).log


def test_a_polite_signal_saves_after_the_step(tmp_path: Path, unbroken: Callable[[str], Run], said: list[str]) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    original, inside = Trainer.apply_gradients, []

    def signalled(self: Trainer) -> float:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            inside.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])
        return original(self)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Trainer, "apply_gradients", signalled)
        with pytest.raises(KeyboardInterrupt):
            run_stage("sft", tmp_path)
    assert inside == [handlers]  # a second signal would have ended the process at once
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert said == ["sft: stopped after step 5; the same command goes on from here."]
    assert (tmp_path / "state" / "step_00000005.safetensors").exists()  # not a multiple of three: saved for the signal
    assert fingerprint(run_stage("sft", tmp_path)) == unbroken("sft").fingerprint
    assert said[1] == "sft: goes on at step 5 of 20."
    assert log_of(tmp_path) == unbroken("sft").log


def test_a_stage_that_goes_on_with_other_threads_says_so(tmp_path: Path, said: list[str]) -> None:
    trainer, threads = simple_trainer(tmp_path), torch.get_num_threads()
    trainer.step = 3
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
        trainer.save_state()
    next(simple_trainer(tmp_path).steps())
    assert said == [
        f"sft: goes on at step 3 of {trainer.config.steps}.",
        f"sft: it had {threads + 1} threads and goes on with {threads}; the weights come out a little "
        f"different from those of {threads + 1} alone (--threads {threads + 1}).",
    ]


def test_a_torn_last_line_of_the_log_is_written_again(tmp_path: Path, unbroken: Callable[[str], Run]) -> None:
    with pytest.raises(Accident), accident(8, "apply_gradients"):
        run_stage("sft", tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-9])
    run_stage("sft", tmp_path)
    assert log_of(tmp_path) == unbroken("sft").log


def test_a_line_of_the_log_without_its_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(Accident), accident(2, "apply_gradients"):
        run_stage("sft", tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_text('{"loss": 1.0}\n' + log.read_text())
    with pytest.raises(UserError, match=r'log\.jsonl:1: "step" must be a number, found null'):
        run_stage("sft", tmp_path)


# Damaged states


def test_a_damaged_state_is_said_and_the_one_before_is_used(
    tmp_path: Path, unbroken: Callable[[str], Run], said: list[str]
) -> None:
    with pytest.raises(Accident), accident(11, "log"):
        run_stage("sft", tmp_path)
    newest = tmp_path / "state" / "step_00000009.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    newest.write_bytes(content)
    model = run_stage("sft", tmp_path)
    assert said[0] == f"{newest}: damaged (its contents do not match its checksum). The state before it is used."
    assert said[1] == "sft: goes on at step 6 of 20."
    assert fingerprint(model) == unbroken("sft").fingerprint
    assert log_of(tmp_path) == unbroken("sft").log


def test_with_no_good_state_the_run_begins_again(
    tmp_path: Path, unbroken: Callable[[str], Run], said: list[str]
) -> None:
    with pytest.raises(Accident), accident(8, "log"):
        run_stage("pretrain", tmp_path)
    for state in (tmp_path / "state").glob("step_*"):
        state.write_bytes(state.read_bytes()[:1000])
    model = run_stage("pretrain", tmp_path)
    assert len(said) == 2
    assert all("damaged" in line for line in said)
    assert said[1].endswith("No other is there; it begins again.")
    assert fingerprint(model) == unbroken("pretrain").fingerprint
    assert log_of(tmp_path) == unbroken("pretrain").log


def test_damaged_states_of_later_steps_do_not_crowd_out_the_new_ones(
    tmp_path: Path, unbroken: Callable[[str], Run], said: list[str]
) -> None:
    with pytest.raises(Accident), accident(14, "log"):
        run_stage("sft", tmp_path)
    for state in (tmp_path / "state").glob("step_*"):
        state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(Accident), accident(8, "log"):
        run_stage("sft", tmp_path)
    names = ["step_00000003.safetensors", "step_00000006.safetensors"]
    assert sorted(path.name for path in (tmp_path / "state").glob("step_*")) == names
    model = run_stage("sft", tmp_path)
    assert said[-2] == "sft: goes on at step 6 of 20."
    assert fingerprint(model) == unbroken("sft").fingerprint


def test_a_full_disk_leaves_the_state_before(tmp_path: Path, unbroken: Callable[[str], Run]) -> None:
    original = Trainer.save_state

    def save_on_a_full_disk(self: Trainer) -> None:
        unlimited, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.step == 9:  # from here on, the system lets no file grow past a thousand bytes
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            original(self)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, hard))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Trainer, "save_state", save_on_a_full_disk)
        with pytest.raises((OSError, SafetensorError), match="File too large"):
            run_stage("sft", tmp_path)
    names = ["best.safetensors", "step_00000003.safetensors", "step_00000006.safetensors"]
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == names
    assert fingerprint(run_stage("sft", tmp_path)) == unbroken("sft").fingerprint
    assert log_of(tmp_path) == unbroken("sft").log


def test_a_state_is_saved_when_enough_minutes_have_passed(tmp_path: Path) -> None:
    trainer = simple_trainer(tmp_path, steps=4, save_every=1000, save_minutes=1e-9)
    for _ in trainer.steps():
        trainer.log({}, tokens=1)
    assert [path.stem for path in states.stored_steps(tmp_path / "state")] == ["step_00000004", "step_00000003"]
    patient = simple_trainer(tmp_path / "patient", steps=4, save_every=1000, save_minutes=60)
    for _ in patient.steps():
        patient.log({}, tokens=1)
    assert not (tmp_path / "patient" / "state").exists()


TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "momentum/a.weight": torch.ones(2, 3),
    "step/a.weight": torch.tensor(7.0),
}
NOTES = {"step": 12, "best_score": -math.inf}


@pytest.fixture(scope="module")
def state_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    save_tensors(path, TENSORS, NOTES)
    return path.read_bytes()


def test_states_come_back_as_they_were_saved(state_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(state_bytes)
    tensors, notes = load_tensors(tmp_path / "s")
    assert notes == NOTES
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].shape == tensor.shape


@settings(max_examples=60)
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(
    data: st.DataObject, state_bytes: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = data.draw(st.integers(0, len(state_bytes) - 1))
    content = bytearray(state_bytes)
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_tensors(path)


@given(share=st.floats(0, 0.999))
def test_no_missing_end_goes_unnoticed(
    share: float, state_bytes: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "short.safetensors"
    path.write_bytes(state_bytes[: int(share * len(state_bytes))])
    with pytest.raises(UserError, match="damaged"):
        load_tensors(path)


# Gradients that are not finite


def test_a_gradient_that_is_not_finite_is_thrown_away(tmp_path: Path, said: list[str]) -> None:
    trainer = simple_trainer(tmp_path, steps=4)
    weights = []
    for step in trainer.steps():
        set_gradients(trainer.model, 0.1)
        if step == 1:
            trainer.model.blocks[1].get_parameter("mlp.up.weight").grad[3, 4] = math.nan  # type: ignore[index]
        if step == 2:
            trainer.model.embed.weight.grad[0, 0] = math.inf  # type: ignore[index]
        norm = trainer.apply_gradients()
        weights.append(fingerprint(trainer.model))
        trainer.log({"loss": 1.0, "grad_norm": norm}, tokens=1)
    assert weights[0] == weights[1] == weights[2] != weights[3]
    assert said == [f"sft: step {step} has a gradient that is not finite; it is skipped." for step in (1, 2)]
    assert [line["grad_norm"] is None for line in log_of(tmp_path)] == [False, True, True, False]


def test_several_in_a_row_stop_the_run_and_leave_a_good_state(tmp_path: Path, said: list[str]) -> None:
    trainer = simple_trainer(tmp_path, steps=30, save_every=20)
    good = ""
    with pytest.raises(UserError, match="5 steps in a row had a gradient that is not finite, up to step 11"):
        for step in trainer.steps():
            set_gradients(trainer.model, math.nan if step >= 7 or step == 2 else 0.1)
            trainer.apply_gradients()
            good = fingerprint(trainer.model) if step == 6 else good
            trainer.log({"loss": 1.0}, tokens=1)
    assert len(said) == SKIPS_ALLOWED + 1  # step 2 was alone and is forgotten
    # The state that the sentence points to exists and holds the weights after the last good step.
    resumed = simple_trainer(tmp_path, model=tiny_model(seed=5), steps=30)
    assert next(resumed.steps()) == 11
    assert fingerprint(resumed.model) == good


def test_a_loss_that_is_not_finite_is_logged_as_null(tmp_path: Path) -> None:
    trainer = simple_trainer(tmp_path, steps=2)
    for step in trainer.steps():
        trainer.log({"loss": math.nan if step else math.inf}, tokens=1)
    assert [line["loss"] for line in log_of(tmp_path)] == [None, None]
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


# The best weights


def climb(trainer: Trainer, scores: list[float]) -> list[bool]:
    """A run whose weights are all equal to the number of steps done, and are scored as given."""
    kept = []
    for step in trainer.steps():
        with torch.no_grad():
            for weight in trainer.model.parameters():
                weight.fill_(step + 1)
        kept.append(trainer.keep_if_best(scores[step]))
        trainer.log({"loss": 0.0}, tokens=1)
    return kept


def value_of(model: GPT) -> float:
    (value,) = torch.cat([weight.flatten() for weight in model.parameters()]).unique().tolist()
    return float(value)


def test_the_best_weights_are_kept_and_the_last_of_equals(tmp_path: Path, said: list[str]) -> None:
    trainer = simple_trainer(tmp_path, steps=6)
    assert climb(trainer, [-4.0, -1.0, -3.0, -1.0, -2.0, math.nan]) == [True, True, False, True, False, False]
    trainer.finish("last")
    assert value_of(trainer.model) == 6
    trainer.finish("best")
    assert value_of(trainer.model) == 4
    assert said == ['sft: kept are the weights of step 3 (keep = "best").']
    assert not trainer.model.training


def test_where_the_best_weights_are_damaged_the_last_stay(tmp_path: Path, said: list[str]) -> None:
    trainer = simple_trainer(tmp_path, steps=3)
    climb(trainer, [-4.0, -1.0, -3.0])
    best = tmp_path / "state" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-1])
    trainer.finish("best")
    assert value_of(trainer.model) == 3
    (sentence,) = said
    assert sentence.startswith(f"{best}: damaged")
    assert sentence.endswith("The last weights are kept instead of the best.")


def test_the_best_score_survives_an_accident(tmp_path: Path) -> None:
    scores = [-4.0, -1.0, -3.0, -2.0, -1.5]
    with pytest.raises(Accident), accident(3, "log"):
        climb(simple_trainer(tmp_path, steps=5, save_every=2), scores)
    resumed = simple_trainer(tmp_path, steps=5, save_every=2)
    assert climb(resumed, scores) == [False, False, False]  # steps 2 to 4
    resumed.finish("best")
    assert value_of(resumed.model) == 2


def test_without_a_score_the_last_weights_stay(tmp_path: Path) -> None:
    trainer = simple_trainer(tmp_path)
    trainer.finish("best")
    assert fingerprint(trainer.model) == fingerprint(tiny_model())


def test_sft_leaves_the_weights_of_its_lowest_validation_loss(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    samples = [to_sample(problem, tokenizer) for problem in PROBLEMS]
    config = replace(SFT, steps=30, learning_rate=0.03, schedule="constant", replay=0.0)  # overfits in no time
    model = tiny_model()
    sft(
        model,
        samples[:2],
        samples[15:],
        config,
        replay=None,
        seed=0,
        state=tmp_path / "state",
        log=tmp_path / "log.jsonl",
    )
    losses = [float(line["val_loss"]) for line in log_of(tmp_path) if "val_loss" in line]  # type: ignore[arg-type]
    assert len(losses) == 9  # steps 0, 4, …, 28 and 29
    assert min(losses) < losses[-1] - 0.1
    assert validation_loss(model, samples[15:], max_tokens=1000) == pytest.approx(min(losses))
    last = tiny_model()
    kept = replace(config, keep="last")
    sft(
        last,
        samples[:2],
        samples[15:],
        kept,
        replay=None,
        seed=0,
        state=tmp_path / "2",
        log=tmp_path / "2.log",
    )
    assert validation_loss(last, samples[15:], max_tokens=1000) == pytest.approx(losses[-1])


# The losses


def bigram(table: Tensor) -> GPT:
    """A stand-in for a model: the next token depends on the last one by a table of probabilities (V, V)."""
    model = tiny_model()

    class Bigram(GPT):
        def hidden(self, token_ids: Tensor, *, columns: Tensor | None = None, **_: object) -> Tensor:  # type: ignore[override]
            states = torch.nn.functional.one_hot(token_ids, len(table)).float()
            return states if columns is None else take_columns(states, columns)

        @property
        def head_weight(self) -> Tensor:
            return table.log().T

    model.__class__ = Bigram
    return model


CHANCES = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.25, 0.25], [0.2, 0.2, 0.1, 0.5], [0.7, 0.1, 0.1, 0.1]])


def test_completion_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Prompt 0 1, completion 2 3 0: -log p(2|1) - log p(3|2) - log p(0|3) = log 4 + log 2 + log(1/0.7).
    # Prompt 3, completion 1: -log p(1|3) = log 10.
    rows = [Sample((0, 1, 2, 3, 0), (0, 0, 1, 1, 1)), Sample((3, 1), (0, 1))]
    model, rows_of_logits = bigram(CHANCES), []

    def counted(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        rows_of_logits.append(len(states))
        return head_cross_entropy_sum(states, weight, targets)

    monkeypatch.setattr(sft_module, "head_cross_entropy_sum", counted)
    loss = completion_loss_sum(model, collate(rows))
    assert loss.item() == pytest.approx(math.log(4) + math.log(2) - math.log(0.7) + math.log(10), abs=1e-5)
    assert rows_of_logits == [target_tokens(rows)] == [4]  # nothing was computed for prompts and padding
    assert validation_loss(model, rows, max_tokens=5) == pytest.approx(loss.item() / 4)


def test_what_a_prompts_tokens_predict_does_not_matter() -> None:
    rows = [Sample((0, 0, 1, 2, 3), (0, 0, 0, 1, 1))]
    other = CHANCES.clone()
    other[0] = torch.tensor([0.97, 0.01, 0.01, 0.01])  # after token 0, which only the prompt holds
    batch = collate(rows)
    assert completion_loss_sum(bigram(CHANCES), batch).item() == completion_loss_sum(bigram(other), batch).item()
    other[1] = other[0]  # after the prompt's last token: the first prediction that counts
    assert completion_loss_sum(bigram(CHANCES), batch).item() != completion_loss_sum(bigram(other), batch).item()


def gradient_of(model: GPT, rows: list[Sample], *, max_tokens: int, mean_of_means: bool = False) -> dict[str, Tensor]:
    model.zero_grad()
    batches = list(micro_batches(rows, max_tokens=max_tokens))
    for batch in batches:
        own = int(batch.is_target.sum())
        share = own * len(batches) if mean_of_means else target_tokens(rows)
        (completion_loss_sum(model, batch) / share).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_micro_batches_do_not_change_the_gradient() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model()
    rows = [to_sample(problem, tokenizer) for problem in PROBLEMS[:6]]
    rows += [Sample(tuple(range(n)), (0,) + (1,) * (n - 1)) for n in (2, 3, 40)]  # very different numbers of targets
    whole = gradient_of(model, rows, max_tokens=10_000)
    for max_tokens in (1, 60, 120):
        parts = gradient_of(model, rows, max_tokens=max_tokens)
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4)
    # … as the usual mean over micro-batches of their means would
    wrong = gradient_of(model, rows, max_tokens=60, mean_of_means=True)
    assert (wrong["embed.weight"] - whole["embed.weight"]).abs().max() > 0.1 * whole["embed.weight"].abs().max()


def test_sfts_steps_do_not_depend_on_the_size_of_its_micro_batches(
    tmp_path: Path, unbroken: Callable[[str], Run]
) -> None:
    tokenizer = tiny_tokenizer()
    samples = [to_sample(problem, tokenizer) for problem in PROBLEMS]
    log = tmp_path / "log.jsonl"
    sft(
        tiny_model(),
        samples[5:],
        samples[:5],
        replace(SFT, micro_batch_tokens=1, steps=2, schedule="constant"),
        replay=None,
        seed=1,
        state=tmp_path / "a",
        log=log,
    )
    small = read_jsonl(log)[0]
    log.unlink()
    sft(
        tiny_model(),
        samples[5:],
        samples[:5],
        replace(SFT, steps=2, schedule="constant"),
        replay=None,
        seed=1,
        state=tmp_path / "b",
        log=log,
    )
    large = read_jsonl(log)[0]
    for name in ("loss", "grad_norm", "val_loss", "target_tokens"):
        assert small[name] == pytest.approx(large[name], rel=1e-4)


def test_micro_batches_hold_every_row_once_within_the_budget() -> None:
    rows = [Sample(tuple(range(n)), (0,) + (1,) * (n - 1)) for n in (5, 2, 9, 9, 3, 7, 2)]
    batches = list(micro_batches(rows, max_tokens=18))
    assert sorted(length for batch in batches for length in batch.lengths.tolist()) == [2, 2, 3, 5, 7, 9, 9]
    assert all(len(batch.token_ids) <= 18 for batch in batches)
    # A row longer than the budget still has to go through.
    assert [len(batch.token_ids) for batch in micro_batches(rows, max_tokens=1)] == [2, 2, 3, 5, 7, 9, 9]


# Which rows a step takes


def test_every_row_comes_once_per_epoch() -> None:
    taken = [row for step in range(7) for row in rows_of_step(10, rows=4, seed=3, step=step)]  # 28 = 10 + 10 + 8
    assert sorted(taken[:10]) == sorted(taken[10:20]) == list(range(10))
    assert len(set(taken[20:])) == 8
    assert taken[:10] != taken[10:20]
    assert rows_of_step(10, rows=4, seed=3, step=5) == taken[20:24]  # a matter of seed and step alone
    assert rows_of_step(10, rows=4, seed=4, step=5) != taken[20:24]


def test_a_step_may_be_larger_than_the_data() -> None:
    taken = rows_of_step(3, rows=8, seed=0, step=0)
    assert sorted(taken[:3]) == sorted(taken[3:6]) == [0, 1, 2]
    assert len(taken) == 8


def test_long_problems_are_taken_fewer_at_a_time() -> None:
    samples = [Sample((0,) * n, (0,) + (1,) * (n - 1)) for n in (50, 150)]  # 100 tokens on average
    assert problems_per_step(samples, SFTConfig(batch_size=32)) == 32
    assert problems_per_step(samples, SFTConfig(batch_size=32, batch_tokens=1250)) == 12
    assert problems_per_step(samples, SFTConfig(batch_size=32, batch_tokens=99_999)) == 32
    with pytest.raises(UserError, match=r"sft\.batch_tokens is 1, less than the 100 tokens of one problem"):
        problems_per_step(samples, SFTConfig(batch_size=32, batch_tokens=1))


def test_replay_of_a_second_set_of_problems_takes_every_one_in_turn() -> None:
    config = SFTConfig(batch_size=12, replay=0.25)
    others = [to_sample(problem, tiny_tokenizer()) for problem in PROBLEMS[:8]]
    rows = [replay_samples(others, config, seed=0, step=step) for step in range(2)]  # 4 rows each: one epoch
    assert {row.token_ids for step in rows for row in step} == {sample.token_ids for sample in others}
    assert all(row.loss_mask in [sample.loss_mask for sample in others] for row in rows[0])  # questions are no targets


def test_replay_adds_rows_of_text_in_which_every_token_counts() -> None:
    config = SFTConfig(batch_size=32, replay=0.2, replay_tokens=12)
    assert config.replay_rows == 8  # 8 of 40 rows are a fifth
    stream = token_stream(["Tom has 3 apples and buys 14 more."], tiny_tokenizer(), context_tokens=11)
    rows = replay_samples(stream, config, seed=0, step=4)
    assert len(rows) == 8
    assert all(len(row.token_ids) == 12 and row.loss_mask == (1,) * 12 for row in rows)
    assert target_tokens(rows) == 8 * 11  # the first token of a row has nothing before it
    assert rows == replay_samples(stream, config, seed=0, step=4)
    assert SFTConfig(replay=0.0).replay_rows == 0


# Pretraining's loss


def test_next_token_loss_is_the_mean_over_all_tokens() -> None:
    model = bigram(CHANCES)
    # 0 → 3 → 0 costs -log 0.4 - log 0.7; 1 → 2 → 1 costs log 4 + log 5.
    windows = torch.tensor([[0, 3, 0], [1, 2, 1]])
    mean = (-math.log(0.4) - math.log(0.7) + math.log(4) + math.log(5)) / 4
    assert next_token_loss(model, windows).item() == pytest.approx(mean)
    assert held_out_loss(model, torch.cat((windows, windows[:1]))) == pytest.approx(
        (4 * mean - math.log(0.4) - math.log(0.7)) / 6
    )
    assert model.training  # the training goes on


# Configs


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"steps": -1}, "steps is -1; it cannot be negative"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"save_every": 0}, "save_every is 0; it must be above 0"),
        ({"save_minutes": 0.0}, "save_minutes is 0.0; it must be above 0"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"grad_clip": 0.0}, "grad_clip is 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        LoopConfig(**fields)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=sentence):
        SFTConfig(**fields)  # type: ignore[arg-type]


def test_a_replay_of_everything_leaves_nothing_to_learn() -> None:
    with pytest.raises(UserError, match="replay is 1.0; it is a share of the rows"):
        SFTConfig(replay=1.0)


def test_no_steps_leave_the_model_alone(tmp_path: Path) -> None:
    model = tiny_model()
    samples = [to_sample(problem, tiny_tokenizer()) for problem in PROBLEMS]
    sft(
        model,
        samples,
        samples,
        replace(SFT, steps=0),
        replay=None,
        seed=0,
        state=tmp_path / "s",
        log=tmp_path / "l",
    )
    grpo(
        model, PROBLEMS, PROBLEMS, replace(GRPO, steps=0, keep="best"), seed=0, state=tmp_path / "s", log=tmp_path / "l"
    )
    assert fingerprint(model) == fingerprint(tiny_model())
    assert not (tmp_path / "s").exists()
