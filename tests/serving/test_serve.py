"""The verb `serve` as a process: what it says, how it ends, and what it does not start for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
import torch
from serving_run import small_model

from nanogpt_edit import serving
from nanogpt_edit.checkpoint.checkpoint import save
from nanogpt_edit.commands.serve import serve
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.serving.run import leave_a_core
from nanogpt_edit.serving.shared_tensors import SharedTensors


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("served") / "m"
    save(small_model(block_size=1024), found)
    return found


@pytest.fixture
def process(directory: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "nanogpt_edit", "serve", str(directory), "--port", "0"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stderr is not None
        said = next(line for line in running.stderr if "http://" in line)
        yield running, int(re.findall(r":(\d+)/", said)[0])
    finally:
        running.kill()
        running.communicate()


def test_sigterm_finishes_what_is_being_written(process: tuple[subprocess.Popen[str], int]) -> None:
    running, port = process
    connection, late = (HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(2))
    asked = {"prompt": "Tom", "max_tokens": 700, "stream": True, "seed": 0}
    connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    first = reply.readline()
    running.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(ConnectionRefusedError):
        late.connect()
    rest = reply.read()
    connection.close()
    assert first.startswith(b"data: {") and rest.endswith(b"data: [DONE]\n\n")
    assert running.wait(timeout=20) == 128 + signal.SIGTERM
    assert running.stderr is not None and "Traceback" not in running.stderr.read()


@pytest.mark.skipif(not SharedTensors.possible(torch.device("cpu")), reason="here a thread writes")
def test_the_process_that_writes_may_be_killed(process: tuple[subprocess.Popen[str], int]) -> None:
    """What it was writing fails; whoever asks next has an answer, and the terminal a sentence."""
    running, port = process

    def ask(tokens: int, **more: bool) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        asked = {"prompt": "Tom", "max_tokens": tokens, "seed": 0, **more}
        connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
        return connection

    def answer(connection: HTTPConnection) -> tuple[int, bytes]:
        with closing(connection):
            reply = connection.getresponse()
            return reply.status, reply.read()

    status, first = answer(ask(3))
    interrupted = [ask(1000), ask(1000, stream=True)]
    time.sleep(0.2)
    child = int(Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text())
    os.kill(child, signal.SIGKILL)
    failed, streamed = map(answer, interrupted)
    assert (status, failed[0], streamed[0]) == (200, 503, 200)
    assert "has ended" in json.loads(failed[1])["error"]["message"]
    assert b"has ended" in streamed[1] and b"[DONE]" not in streamed[1]
    assert json.loads(answer(ask(3))[1])["choices"] == json.loads(first)["choices"]
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20) == 128 + signal.SIGTERM
    assert running.stderr is not None
    said = running.stderr.read()
    assert "the process that writes texts has ended (signal 9, Killed); a new one is started." in said
    assert "Traceback" not in said


def test_other_addresses_need_a_token_and_ports_are_checked_first(directory: Path) -> None:
    with pytest.raises(UserError, match="give a --token"):
        serve([str(directory), "--host", "0.0.0.0"])
    with pytest.raises(UserError, match="port is 65536; a port is a number from 0"):
        serve([str(directory), "--port", "65536"])
    with pytest.raises(UserError, match=r"nowhere\.invalid:0 cannot be listened on"):
        serve([str(directory), "--host", "nowhere.invalid", "--token", "a", "--port", "0"])


def test_without_the_extra_it_is_said_what_to_install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nanogpt_edit.serving.run", raising=False)
    monkeypatch.delattr(serving, "run", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"serve needs uvicorn.*pip install 'nanogpt-edit\[serve\]'"):
        serve([str(directory)])


@pytest.mark.parametrize(("before", "told", "after"), [(4, None, 3), (1, None, 1), (4, "4", 4)])
def test_a_core_is_left_for_those_who_ask(
    before: int, told: str | None, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    torch.set_num_threads(before)
    leave_a_core()
    assert torch.get_num_threads() == after
