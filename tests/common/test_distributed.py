"""Two processes do what one does: the same curves, gradients and records; and what happens when one of them dies."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import processes_job
import pytest
import tiny_stages
import torch
from safetensors.torch import load_file
from tiny_stages import STAGES, tiny_model

from nanogpt_edit import cli
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_json, read_jsonl
from nanogpt_edit.training import trainer as trainer_module
from nanogpt_edit.training.parallel import Parallel

HERE = Path(__file__).parents[1]
PROCESSES = 2
CLOCKS = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def kind(device: torch.device) -> str:
    """Of device that the processes take; NCCL wants a GPU for each."""
    return "cuda" if device.type == "cuda" and torch.cuda.device_count() >= PROCESSES else "cpu"


def torchrun(*arguments: object, kind: str = "cpu") -> tuple[list[str], dict[str, str]]:
    """The command and the environment of several processes that do one job."""
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if kind == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
    return [*launcher, *map(str, arguments)], environment


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    """What two processes did."""
    folder = tmp_path_factory.mktemp("together")
    command, environment = torchrun(HERE / "processes_job.py", folder, kind, kind=kind)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    """What one process did."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_stages, "DEVICE", kind)
        processes_job.work(folder)
    return folder


EVERY = (*STAGES, "grpo+lora")
SLOW = pytest.mark.slow  # every stage in two processes and in one: the longest set-up of all
ANY_PART = pytest.mark.parametrize(
    "part", [*(f"replicas/{stage}" for stage in (*EVERY, "one_row")), *(f"shards/{stage}" for stage in EVERY)]
)


def curve(folder: Path) -> list[dict[str, float]]:
    """The log without what the clock says."""
    return [
        {k: math.nan if v is None else float(v) for k, v in line.items() if not k.endswith(CLOCKS)}  # type: ignore[arg-type]
        for line in read_jsonl(folder / "log.jsonl")
    ]


def apart(one: Path, other: Path) -> float:
    """The largest difference between two files of tensors."""
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@SLOW
@ANY_PART
def test_the_first_gradients_are_those_of_one_process(part: str, together: Path, alone: Path) -> None:
    if part == "shards/sft":
        pytest.skip("its first update was made before it was stopped")
    assert apart(together / part / "gradients", alone / Path(part).name / "gradients") < 1e-5


@SLOW
@ANY_PART
def test_curves_are_those_of_one_process(part: str, together: Path, alone: Path) -> None:
    ours, theirs = curve(together / part), curve(alone / Path(part).name)
    assert len(ours) == len(theirs) > 2
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(expected, abs=1e-5, rel=1e-5, nan_ok=True), mine["step"]


@SLOW
@ANY_PART
def test_weights_end_where_those_of_one_process_do(part: str, together: Path, alone: Path) -> None:
    assert apart(together / part / "weights", alone / Path(part).name / "weights") < 1e-5


@SLOW
def test_evaluation_gives_the_same_records(together: Path, alone: Path) -> None:
    ours, theirs = together / "replicas" / "eval", alone / "eval"
    assert read_jsonl(ours / "model.jsonl") == read_jsonl(theirs / "model.jsonl")
    assert read_jsonl(ours / "model_facts.jsonl") == read_jsonl(theirs / "model_facts.jsonl")
    assert read_json(ours / "model.json")["skills"] == read_json(theirs / "model.json")["skills"]


@SLOW
def test_work_is_dealt_out_and_collected_in_order(together: Path) -> None:
    for rank in range(PROCESSES):
        found = read_json(together / f"dealing{rank}.json")
        assert found["rank"] == rank
        assert found["share"] == [[0, 2, 4], [1, 3]][rank]
        assert found["squares"] == [[0, 0], [1, 1], [0, 4], [1, 9], [0, 16]]
        assert found["total"] == [2, 10]
        assert found["largest"] == [1, 0]


@SLOW
def test_a_mistake_in_one_process_is_the_same_sentence_in_all(together: Path, alone: Path) -> None:
    sentence = read_json(together / "replicas" / "fails.json")["sentence"]
    assert sentence == read_json(alone / "fails.json")["sentence"]
    assert 'reward "processes_job:fails"' in str(sentence)


@SLOW
def test_states_of_shards_are_safetensors_with_checksums(together: Path) -> None:
    newest = together / "shards" / "sft" / "state" / "step_00000012"
    parts = read_json(newest / "notes.json")["sha256"]
    assert isinstance(parts, dict)
    assert len(parts) == PROCESSES
    assert sorted(file.name for file in newest.iterdir()) == sorted([*parts, "notes.json"])
    assert all(name.endswith(".safetensors") for name in parts)


@SLOW
def test_a_damaged_shard_is_said_once_and_the_state_before_is_used(together: Path) -> None:
    said = (together / "said").read_text()
    assert said.count("damaged (its contents do not match its checksum). The state before it is used.") == 1
    assert "sft: goes on at step 3 of 12." in said


@SLOW
def test_a_whole_recipe_runs_in_several_processes(together: Path) -> None:
    run = together / "run"
    assert (run / "report.html").is_file()
    assert set(read_json(run / "summary.json")["stages"]) == {"base", "sft", "grpo", "edited"}  # type: ignore[call-overload]
    assert read_json(run / "environment.json")["processes"] == PROCESSES


# One process


def test_shards_need_several_processes() -> None:
    with pytest.raises(UserError, match="torchrun"):
        Parallel(tiny_model(), shard=True)


def test_verbs_for_one_process_refuse_several(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["edit", "runs/tiny/grpo", "facts50", "--out", "x"]) == 2
    assert "edit runs in one process and torchrun started 2" in capsys.readouterr().err


LETTING_GO = """
import sys
import torch
from torch import distributed as dist
from nanogpt_edit.common import stopping

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
held = dist.group.WORLD  # as the caches of torch's shards hold it
sys.setswitchinterval(100)  # seconds that Gloo's thread has to wait for the interpreter
dist.all_reduce(torch.zeros(30_000_000), async_op=True)
dist.destroy_process_group()
print("the last line")
stopping.leave(int(sys.argv[2]))  # without it the process aborts, at least in Python 3.11 and 3.12
"""


@pytest.mark.parametrize("status", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_process_leaves_although_a_thread_still_holds_a_tensor(tmp_path: Path, status: int) -> None:
    command = [sys.executable, "-c", LETTING_GO, str(tmp_path / "store"), str(status)]
    path = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (status, "the last line\n"), done.stderr
    assert "terminate called" not in done.stderr


# A process dies


def workers(launcher: int) -> Iterator[tuple[int, int]]:
    """(rank, pid) of the processes that a torchrun has started so far."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks = [int(each.removeprefix(b"RANK=")) for each in variables if each.startswith(b"RANK=")]
        yield from ((rank, int(pid)) for rank in ranks)


PRETRAIN = ["pretrain", "--device", "cpu", "--world.problems", "60"]
PRETRAIN += ["--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "16", "--model.block-size", "64"]
PRETRAIN += ["--pretrain.steps", "300", "--pretrain.batch-size", "4", "--pretrain.context-tokens", "32"]
PRETRAIN += ["--pretrain.fact-repeats", "1", "--pretrain.save-every", "2"]
looks_in_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the processes in /proc")


def started(folder: Path) -> subprocess.Popen[str]:
    """A torchrun that pretrains into the folder and has done some steps."""
    command, environment = torchrun("-m", "nanogpt_edit", *PRETRAIN, "--out", folder)
    log, deadline = folder / "logs" / "pretrain.jsonl", time.monotonic() + 900
    job = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not (log.exists() and len(log.read_text().splitlines()) >= 4):
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job


def finish_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """What two processes have begun, one can finish. Returns the step at which it went on."""
    lines: list[str] = []
    monkeypatch.setattr(trainer_module, "say", lines.append)
    assert cli.main([*PRETRAIN, "--out", str(folder)]) == 0
    assert [line["step"] for line in read_jsonl(folder / "logs" / "pretrain.jsonl")] == list(range(300))
    assert (folder / "base" / "model.safetensors").is_file()
    (step,) = (int(number) for number in re.findall(r"base: goes on at step (\d+)", lines[0]))
    return step


@pytest.mark.slow
@looks_in_proc
def test_when_one_dies_the_job_ends_in_one_sentence_and_goes_on_when_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = started(tmp_path)
    os.kill(dict(workers(job.pid))[1], signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    assert job.returncode != 0
    # The one left says which it notices first: that the other has gone, or that torchrun asks it to end.
    assert len(re.findall("nanogpt-edit: (another process of this run has ended|ended by SIGTERM)", said)) == 1, said
    assert said.count("nanogpt-edit: ") == 1, said
    assert str(HERE.parent / "nanogpt_edit") + os.sep not in said, (
        said
    )  # torchrun adds a traceback of its own; none is of ours
    finish_alone(tmp_path, monkeypatch)


@pytest.mark.slow
@looks_in_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_ends_all_in_five_seconds_and_the_job_goes_on_when_called_again(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = started(tmp_path)
    pids = [pid for _, pid in workers(job.pid)]
    assert len(pids) == PROCESSES
    done_before = len((tmp_path / "logs" / "pretrain.jsonl").read_text().splitlines())
    job.send_signal(number)
    asked = time.monotonic()
    job.communicate(timeout=120)
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.02)
    assert time.monotonic() - asked < 5
    assert job.returncode != 0
    assert finish_alone(tmp_path, monkeypatch) >= done_before  # at the end of a step, in which they left together
