"""Every bad input of `bad_inputs/` ends in one sentence: quickly, in little memory, with nothing half written."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from bad_inputs import Bad, all_rows
from conftest import TEXTS, tiny_config

from nanogpt_edit import cli
from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer


class TooLong(BaseException):
    """More processor time than a bad input may take. No OSError, as TimeoutError is, and so never a sentence."""


SECONDS, MEMORY_BYTES = 10, 1 << 30
ROWS = all_rows()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of two layers, with a tokenizer."""
    tokenizer = Tokenizer.train(TEXTS, vocab_size=300)
    path = tmp_path_factory.mktemp("bad") / "model"
    checkpoint.save(GPT(tiny_config("gpt2", vocab_size=tokenizer.vocab_size), seed=0), path, tokenizer=tokenizer)
    return path


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_bad_input_is_one_sentence(
    row: Bad,
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_model, tmp_path / "model")
    for name, contents in row.files.items():
        put(tmp_path / name, contents)
    before = everything(tmp_path)
    with bounded():
        status = cli.main(shlex.split(row.command))
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    assert printed.err.startswith("nanogpt-edit: ")
    assert printed.err.count("\n") == 1
    assert printed.err.rstrip()[-1] in ".?"
    assert row.says in printed.err
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("$PROGRAM --help >&-", "standard output is closed; send it to a file"),
        ("$PROGRAM run tiny >&-", "standard output is closed; send it to a file"),
        ("$PROGRAM cache list >&-", "standard output is closed; send it to a file"),
        ("PYTHONIOENCODING=ascii LC_ALL=C $PROGRAM λ", r'there is no verb "\u03bb"'),
        ("PYTHONIOENCODING=latin-1 $PROGRAM λ", r'there is no verb "\u03bb"'),
        ("PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C $PROGRAM rnu", "there is no verb"),
        (r"$PROGRAM sample model --prompt $'caf\xe9'", r"'caf\udce9', is not UTF-8 text"),
        (r"$PROGRAM $'\xff'", r"'\udcff', is not UTF-8 text"),
        ("mkdir gone; cd gone; rmdir ../gone; $PROGRAM info model", "the working folder has been deleted"),
        ("mkdir gone; cd gone; rmdir ../gone; $PROGRAM run tiny", "the working folder has been deleted"),
        ("WORLD_SIZE=abc $PROGRAM info model", 'WORLD_SIZE="abc"'),
        ("WORLD_SIZE=2 $PROGRAM info model", "RANK is not set"),
        ("WORLD_SIZE=2 RANK=x $PROGRAM info model", 'RANK="x"'),
        ("ulimit -f 1; $PROGRAM run tiny --out x", "file too large"),
    ],
)
def test_what_only_a_process_can_meet_is_one_sentence(line: str, says: str, tmp_path: Path) -> None:
    program = f"{shlex.quote(sys.executable)} -m nanogpt_edit"
    home = str(Path(cli.__file__).parents[1])
    ended = subprocess.run(
        ["bash", "-c", line.replace("$PROGRAM", program)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": home},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    (sentence,) = [line for line in ended.stderr.splitlines() if not line.endswith("so far")]  # on a busy machine
    assert sentence.startswith("nanogpt-edit: ")
    assert says in sentence
    assert everything(tmp_path) == {}


def test_the_table_is_long_and_without_repetition() -> None:
    assert len(ROWS) >= 150
    assert len({(row.command, *sorted((name, str(text)) for name, text in row.files.items())) for row in ROWS}) == len(
        ROWS
    )


def put(path: Path, contents: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(contents, str):
        path.write_text(contents, encoding="utf-8")
    elif isinstance(contents, bytes):
        path.write_bytes(contents)
    elif callable(contents):
        contents(path)


def everything(folder: Path) -> dict[str, bytes | None]:
    """The bytes of each file by its path, None for a folder; but what Python keeps of a module that it has read."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


@contextmanager
def bounded() -> Iterator[None]:
    """Inside, more than the seconds of processor time, or the bytes beyond what the process has now, are an error."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"more than {SECONDS} seconds of processor time")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, handler)
