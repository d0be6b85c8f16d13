"""The parts of `gpu.py` that look at one thing each: the card, the tests, decoding, a training step, GRPO, an edit.

Side by side with others they use what the benchmarks for the CPU do (`generate.py`, `sft_step.py`, `grpo_step.py`).
On a GPU the stages' own precision is bfloat16 products with float32 weights ("autocast"); decoding is measured with
bfloat16 weights too, as a served model has them.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import generate
import grpo_step
import sft_step
import torch
from gpt2 import forward_flops, loaded
from gpu_setting import Found, Setting
from machine import copy_bandwidth, matrix_peak, timed
from torch.autograd import DeviceType
from turns import Job, Options, Side, Step, Turn, alone, take_turns

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.data.samples import to_samples, with_room
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.kv_cache import KVCache
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.rollouts import RolloutSampler
from nanogpt_edit.training.sft import train_on
from nanogpt_edit.training.trainer import Trainer
from nanogpt_edit.training.update import frozen, update

ROOT = Path(__file__).resolve().parents[1]
DATASHEET_BF16 = {"H100 80GB HBM3": 989e12, "H200": 989e12, "H100 PCIe": 756e12, "A100": 312e12}  # dense FLOP/s
TEST_PROCESSES = 6  # each needs half a minute to begin, and one GPU has room for all
SHOWN = 8  # kernels and operators of a profile


def environment(setting: Setting) -> Found:
    """The card and what it can do at most."""
    found: Found = {
        "bf16_tflops": peak(setting) / 1e12,
        "fp32_tflops": matrix_peak(setting.device, size=setting.sizes.peak) / 1e12,
        "copy_gigabytes_per_second": copy_bandwidth(setting.device, numbers=setting.sizes.copied) / 1e9,
        "datasheet_bf16_tflops": datasheet(setting.device) and datasheet(setting.device) / 1e12,
    }
    if setting.device.type == "cuda":
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        found |= {"nvidia_smi": said, "cudnn": torch.backends.cudnn.version()}
    return found


def peak(setting: Setting) -> float:
    """FLOP/s that bfloat16 matrix products reach here (float32 where the stages have it)."""
    dtype = torch.bfloat16 if setting.device.type == "cuda" else torch.float32
    return matrix_peak(setting.device, dtype=dtype, size=setting.sizes.peak)


def datasheet(device: torch.device) -> float | None:
    """FLOP/s that the vendor states for dense bfloat16 products; None for a card that is not known here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for card, flops in DATASHEET_BF16.items() if card in name), None)


def tests(setting: Setting) -> Found:
    """The tests that are marked for a device."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "device", "tests/test_device.py"]
        command += ["--slow", "--device", str(setting.device), f"--junit-xml={report}"]  # slow: as they are on the CPU
        command += ["-p", "no:benchmark", "-n", str(TEST_PROCESSES)] if setting.device.type == "cuda" else []
        command += ["-k", "decoding"] if setting.size == "tiny" else []  # all of them are in the suite already
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.exists():
            raise SystemExit(f"pytest did not begin: {(done.stdout + done.stderr).strip()[-300:]}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    print(done.stdout[-8000:])
    failed = [case.get("name", "") for case in cases if {part.tag for part in case} & {"failure", "error"}]
    skipped = [case.get("name", "") for case in cases if "skipped" in {part.tag for part in case}]
    if not cases or len(skipped) == len(cases):
        raise SystemExit("no test ran")
    found: Found = {"passed": len(cases) - len(failed) - len(skipped), "skipped": skipped}
    return found | ({"failed": f"{len(failed)} tests: {', '.join(failed)}"} if failed else {})


def in_precision(side: Side, precision: str, turn: Turn, options: Options) -> None:
    side(turn, options | {"precision": precision})


def decode(setting: Setting) -> Found:
    """Tokens per second of 64 tokens after each of some prompts of 64, beside transformers' `generate`."""
    sizes, config = setting.sizes, checkpoint.load(setting.checkpoint).config
    bandwidth = copy_bandwidth(setting.device, numbers=sizes.copied)
    ways = {"ours": "bfloat16", "ours, as in the stages": "autocast", "transformers": "bfloat16"}
    if setting.device.type == "cpu":
        ways = {"ours": "float32", "transformers": "float32"}
    sides = {
        name: partial(in_precision, generate.transformers if name == "transformers" else generate.ours, precision)
        for name, precision in ways.items()
    }
    prompts = long_prompts(setting, count=max(sizes.rows))
    jobs = [generation(prompts[:rows], sizes.new_tokens) for rows in sizes.rows for _ in range(1 + sizes.tries)]
    with tempfile.TemporaryDirectory() as folder:
        steps = take_turns(sides, jobs, setting.options(folder))
    found: Found = {"copy_gigabytes_per_second": bandwidth / 1e9, "precision": ways}
    for number, rows in enumerate(sizes.rows):
        at = slice(number * (1 + sizes.tries) + 1, (number + 1) * (1 + sizes.tries))  # the first does not count
        seconds = {side: median([step.seconds for step in each[at]]) for side, each in steps.items()}
        least = least_bytes(config, rows=rows, tokens=sizes.new_tokens, wide=4 if setting.precision == "float32" else 2)
        found[f"{rows} rows"] = {
            "tokens_per_second": {side: rows * sizes.new_tokens / taken for side, taken in seconds.items()},
            "share_of_bandwidth": {side: least / taken / bandwidth for side, taken in seconds.items()},
            "ratio": seconds["transformers"] / seconds["ours"],
            "peak_memory_bytes": {side: peak_memory(each[at]) for side, each in steps.items()},
        }
    return found


def long_prompts(setting: Setting, *, count: int) -> list[list[int]]:
    """Different prompts of equal length, cut out of the problems' questions."""
    tokenizer = tokenizer_of(checkpoint.load(setting.checkpoint))
    ids: list[int] = []
    for problem in setting.problems():
        ids += tokenizer.encode(problem.question)
        if len(ids) >= count * generate.PROMPT_TOKENS:
            return [ids[i * generate.PROMPT_TOKENS : (i + 1) * generate.PROMPT_TOKENS] for i in range(count)]
    raise SystemExit(f"the problems hold {len(ids)} tokens, {count * generate.PROMPT_TOKENS} are needed")


def generation(prompts: Sequence[Sequence[int]], tokens: int) -> Job:
    return {
        "part": f"{len(prompts)} rows",
        "calls": [prompts],
        "longest": tokens,
        "stop_ids": [],
        "samples": 1,
        "seed": 0,
    }


def least_bytes(config: GPTConfig, *, rows: int, tokens: int, wide: int) -> float:
    """What must be read from memory to write `tokens` tokens in each of `rows` rows: the weights once per token, and
    each row's keys and values so far."""
    with torch.device("meta"):
        model = GPT(config)
    read = sum(weight.numel() for weight in model.parameters())
    if config.positions == "learned":
        read -= config.block_size * config.n_embd
    if not config.tie_embeddings:
        read -= config.vocab_size * config.n_embd  # only some rows of the embedding
    seen = rows * (generate.PROMPT_TOKENS + tokens / 2)
    dtype = torch.float32 if wide == 4 else torch.bfloat16
    return tokens * (wide * read + seen * KVCache.row_bytes(config, capacity=1, dtype=dtype))


def peak_memory(steps: Sequence[Step]) -> float | None:
    """Bytes; None where it is not known."""
    return max(step.found.get("peak_memory_bytes", 0.0) for step in steps) or None


def train(setting: Setting) -> Found:
    """Tokens per second of an SFT step on packed rows, and how much of the peak its products are."""
    sizes, model = setting.sizes, checkpoint.load(setting.checkpoint)
    samples, _ = to_samples(setting.problems()[:2000], tokenizer_of(model), block_size=model.config.block_size)
    rows = [(row.token_ids, row.loss_mask) for row in samples]
    batches = [rows[step * sizes.problems : (step + 1) * sizes.problems] for step in range(sizes.steps + 1)]
    jobs = [{"part": f"step {step}", "rows": batch} for step, batch in enumerate(batches)]
    with tempfile.TemporaryDirectory() as folder:
        steps = alone(sft_step.ours, jobs, setting.options(folder))[1:]
    flops = [
        3
        * forward_flops(
            model.config, tokens=step.found["tokens"], read=step.found["targets"], seen=sft_step.seen(batch)
        )
        for step, batch in zip(steps, batches[1:], strict=True)
    ]
    rate = median([work / step.seconds for work, step in zip(flops, steps, strict=True)])
    measured, stated = peak(setting), datasheet(setting.device)
    return {
        "precision": setting.precision,
        "problems": sizes.problems,
        "tokens_per_second": median([step.found["tokens"] / step.seconds for step in steps]),
        "step_seconds": median([step.seconds for step in steps]),
        "tflops": rate / 1e12,
        "mfu_of_measured_peak": rate / measured,
        "mfu_of_datasheet_peak": stated and rate / stated,
        "measured_peak_tflops": measured / 1e12,
        "peak_memory_bytes": peak_memory(steps),
        "losses": [step.found["loss"] for step in steps],
    }


def grpo(setting: Setting) -> Found:
    """Seconds of whole GRPO steps: sampling, and training (policy and reference)."""
    sizes, model = setting.sizes, checkpoint.load(setting.checkpoint)
    room = sizes.completion_tokens
    problems, _ = with_room(
        setting.problems()[:2000], tokenizer_of(model), room=room, block_size=model.config.block_size
    )
    found: Found = {"precision": setting.precision, "group": sizes.group, "completion_tokens": room}
    for count in sizes.rollouts:
        asked = [[asdict(each) for each in problems[step * count : (step + 1) * count]] for step in range(3)]
        jobs = [{"part": f"step {step}", "step": step, "problems": each} for step, each in enumerate(asked)]
        with tempfile.TemporaryDirectory() as folder:
            options = setting.options(folder, group=sizes.group, tokens=room)
            first, *steps = alone(grpo_step.ours, jobs, options)
        sampling = [step.found["generate_seconds"] for step in steps]
        found[f"{count} × {sizes.group}"] = {
            "seconds": median([step.seconds for step in steps]),
            "sampling_seconds": median(sampling),
            "training_seconds": median([step.seconds - taken for step, taken in zip(steps, sampling, strict=True)]),
            "tokens": median([step.found["tokens"] for step in steps]),
            "sampled_tokens_per_second": median(
                [step.found["tokens"] / taken for step, taken in zip(steps, sampling, strict=True)]
            ),
            "first_kl": first.found["kl"],  # policy and reference are one: 0
            "first_sampler_gap": first.found["sampler_gap"],
            "peak_memory_bytes": peak_memory(steps),
        }
    return found


def profile(setting: Setting) -> Found:
    """Where the time goes: of an SFT step, of an update of GRPO, and of decoding."""
    sizes, count = setting.sizes, setting.sizes.rollouts[0]
    prompts = long_prompts(setting, count=sizes.rows[-1])
    with tempfile.TemporaryDirectory() as folder, loaded(setting.options(folder)) as model:
        samples, _ = to_samples(
            setting.problems()[: sizes.problems], tokenizer_of(model), block_size=model.config.block_size
        )
        config = GRPOConfig(
            group_size=sizes.group, max_new_tokens=sizes.completion_tokens, rewards={"grpo_step:spaces": 1.0}
        )
        trainer = Trainer(model, config, label="profile", state=Path(folder) / "state", log=Path(folder) / "log")
        engine, reference = Engine(model), copy.deepcopy(model)
        groups = RolloutSampler.of(engine, config, seed=0).sample_groups(setting.problems()[:count], draw=0)
        sampling = Sampling(max_new_tokens=sizes.new_tokens)
        return {
            "precision": setting.precision,
            "sft step": profiled(lambda: train_on(trainer, samples)),
            "grpo update": profiled(lambda: update(frozen(reference), groups, config, trainer)),
            f"decoding, {len(prompts)} rows": profiled(lambda: engine.generate(prompts, sampling=sampling)),
        }


def profiled(work: Callable[[], object]) -> Found:
    """Seconds of `work` without the profiler, then the operators and the GPU's kernels that it spends most in: share
    of all such seconds, and how often each is called."""
    work()
    _, seconds = timed(work)
    with torch.profiler.profile(acc_events=True) as found:
        timed(work)
    events = found.key_averages()
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]
    operators = [event for event in events if event.device_type == DeviceType.CPU]
    return {
        "seconds": seconds,
        "kernel_seconds": sum(event.self_device_time_total for event in kernels) / 1e6,
        "kernels": largest(kernels, "self_device_time_total"),
        "operators": largest(operators, "self_device_time_total" if kernels else "self_cpu_time_total"),
    }


def largest(events: Sequence[Any], clock: str) -> list[Found]:
    total = sum(getattr(event, clock) for event in events)
    dearest = sorted(events, key=lambda event: getattr(event, clock), reverse=True)[:SHOWN]
    return [{"name": event.key[:80], "share": getattr(event, clock) / total, "calls": event.count} for event in dearest]
