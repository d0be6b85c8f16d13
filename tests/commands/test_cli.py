"""The command line: what it prints, how fast it answers, and how each kind of failure ends."""

from __future__ import annotations

import importlib
import logging
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from nanogpt_edit import __version__, cli
from nanogpt_edit.commands.arguments import KINDS
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.common import stopping, terminal
from nanogpt_edit.common.errors import UserError


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for verb, (summary, _) in cli.VERBS.items():
        assert f"  {verb} " in printed
        assert summary in printed
    assert cli.main([]) == 0
    assert capsys.readouterr().out == printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"nanogpt-edit {__version__}\n"


def test_help_answers_in_under_a_second_and_imports_nothing_heavy() -> None:
    loaded = "sorted({'torch', 'tyro', 'numpy'} & set(sys.modules))"
    code = f"import sys, nanogpt_edit.cli as c; c.main(['--help']); print({loaded})"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.stdout.splitlines()[-1] == "[]"
    # Processor time, for a busy machine is not a slow program.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("verb", [*cli.VERBS, "patch apply", "patch revert"])
def test_the_help_of_a_verb_is_as_wide_as_the_terminal(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with suppress(SystemExit):
        cli.main([*verb.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith("usage:")] == []
    assert not [line for line in lines if "(default: )" in line]


@pytest.mark.parametrize("verb", [*cli.VERBS, "patch apply"])
def test_help_of_a_verb_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys, atexit, nanogpt_edit.cli as c;"
        "atexit.register(lambda: print(sorted({'torch', 'matplotlib', 'datasets'} & set(sys.modules))));"
        f"c.main([*{verb.split()}, '--help'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
    assert f"usage: nanogpt-edit {verb}" in ended.stdout


@pytest.mark.parametrize("words", [["--quiet", "run", "tiny"], ["-q", "run", "tiny"], ["run", "tiny", "--quiet"]])
def test_quiet_shows_results_and_errors_only(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[bool] = []

    def verb(arguments: list[str]) -> int:
        told.append(terminal.heard())
        sys.stdout.write(" ".join(arguments) + "\n")
        raise UserError("a mistake.")

    monkeypatch.setattr(cli, "find_verb", lambda name: verb)
    level = logging.getLogger("nanogpt_edit").level
    try:
        assert cli.main(words) == 2
        assert capsys.readouterr() == ("tiny\n", "nanogpt-edit: a mistake.\n")
    finally:
        logging.getLogger("nanogpt_edit").setLevel(level)
    assert cli.main(["run", "tiny"]) == 2
    assert told == [False, True]


def test_a_wrong_word_in_its_place_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "fish"]) == 2
    said = "invalid choice 'fish' for argument 'SHELL'. It is one of bash, zsh."
    assert capsys.readouterr().err.startswith(f"nanogpt-edit: {said}")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_the_tab_key_completes_verbs_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ask = """source ./script
    f=$(complete -p nanogpt-edit | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    COMP_WORDS=(nanogpt-edit sa); COMP_CWORD=1; $f; echo "${COMPREPLY[@]}"
    COMP_WORDS=(nanogpt-edit sample --pro); COMP_CWORD=2; $f; echo "${COMPREPLY[@]}"
    COMP_WORDS=(nanogpt-edit run --grpo.gro); COMP_CWORD=2; $f; echo "${COMPREPLY[@]}\""""
    ended = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.strip() for line in ended.stdout.splitlines()] == ["sample", "--prompt", "--grpo.group-size"]
    assert cli.main(["completion", "zsh"]) == 0
    assert "--grpo.group-size" in capsys.readouterr().out


def test_python_m_is_the_command_line() -> None:
    ended = subprocess.run([sys.executable, "-m", "nanogpt_edit", "rnu"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert 'there is no verb "rnu"; did you mean "run"?' in ended.stderr


class Left(BaseException):
    """Instead of the end of the process."""


@pytest.fixture
def signals_again() -> Iterator[None]:
    """The command takes the signals of its whole process, and lets none come after its end."""
    before = [(number, signal.getsignal(number)) for number in stopping.SIGNALS]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize(("outcome", "status"), [(0, 0), (3, 3), (SystemExit(0), 0), (RuntimeError("a bug"), 1)])
def test_one_of_several_processes_leaves_however_it_ends(
    outcome: int | BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signals_again: None,
) -> None:
    def main() -> int:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def leave(status: int) -> None:
        raise Left(status)

    monkeypatch.setattr(cli, "main", main)
    monkeypatch.setattr(stopping, "leave", leave)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Left) as left:
        cli.command()
    assert left.value.args == (status,)
    assert ("RuntimeError: a bug" in capsys.readouterr().err) == isinstance(outcome, RuntimeError)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(SystemExit) as ended:
        cli.command()
    assert ended.value.code == status


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_its_function(verb: str) -> None:
    assert callable(cli.find_verb(verb))


def failing_verb(monkeypatch: pytest.MonkeyPatch, error: BaseException, name: str = "run") -> None:
    def verb(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(importlib, "import_module", lambda module: SimpleNamespace(verb=verb))
    monkeypatch.setitem(cli.VERBS, name, ("fails", "somewhere:verb"))


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("facts.jsonl:3: no\n  subject."), 2, "nanogpt-edit: facts.jsonl:3: no subject.\n"),
        (OSError(28, "No space left on device", "runs/x/a"), 2, "nanogpt-edit: no space left on device (runs/x/a). "),
        (PermissionError(13, "Permission denied", "/srv/x"), 2, "nanogpt-edit: permission denied (/srv/x). "),
        (RuntimeError("IoError: No space left on device (os error 28)"), 2, "nanogpt-edit: no space left on device. "),
        (RuntimeError('Io(Os { code: 27, kind: Other, message: "…" })'), 2, "nanogpt-edit: file too large. Nothing"),
        (RuntimeError("write failed: No space left on device"), 2, "nanogpt-edit: no space left on device. "),
        (OSError(5, "Input/output error"), 2, "nanogpt-edit: input/output error. Nothing was left half written; "),
        (IsADirectoryError(21, "Is a directory", "d.svg"), 2, "nanogpt-edit: is a directory (d.svg). Nothing was"),
        (OSError(18, "Invalid cross-device link", "a", None, "b"), 2, "nanogpt-edit: invalid cross-device link (a and"),
        (OSError("connection lost"), 2, "nanogpt-edit: connection lost. "),
        (MemoryError(), 2, "nanogpt-edit: there is not enough memory for this; "),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "nanogpt-edit: there is not"),
        (ValueError("embedded null byte"), 2, "nanogpt-edit: a path has a null character"),
        (KeyboardInterrupt(), 130, "nanogpt-edit: interrupted. The same command goes on"),
    ],
)
def test_what_a_person_can_mend_is_one_line(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_verb(monkeypatch, error)
    assert cli.main(["run"]) == status
    printed = capsys.readouterr()
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("1/0"), RuntimeError("size mismatch"), ValueError("not enough values to unpack")]
)
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_verb(monkeypatch, error)
    with pytest.raises(type(error)):
        cli.main(["run"])


@dataclass(frozen=True)
class Train:
    """How long to train."""

    steps: int = 10
    """Optimizer steps."""
    mode: Literal["zscore", "mean"] = "zscore"

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError(f"must not be negative, found {self.steps}.", field="steps")


@dataclass(frozen=True)
class Arguments:
    """Train something."""

    out: Path
    train: Train = Train()


def test_arguments_fill_the_dataclass() -> None:
    wanted = Arguments(Path("x"), Train(steps=3, mode="mean"))
    assert parse(Arguments, ["--out", "x", "--train.steps", "3", "--train.mode=mean"], verb="train") == wanted
    assert parse(Arguments, [], verb="train", default=wanted) == wanted


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--train.stepz", "3"], "unrecognized options: --train.stepz, 3; did you mean --train.steps?"),
        (["--train.steps", "ten"], "error parsing --train.steps: 'ten' is not a whole number."),
        (["--train.mode", "median"], "invalid choice 'median' for argument '--train.mode'."),
        (["--train.steps", "-1"], "train.steps must not be negative, found -1."),
        (["--train.steps=-1", "--out=y"], "train.steps must not be negative, found -1."),
        (["--train.steps"], "missing value for argument '--train.steps'"),
        (["--train.steps", "--train.mode", "mean"], "missing value for argument '--train.steps'"),
        (["--train.steps", "9" * 5000], "error parsing --train.steps: '9999"),
        (["stray"], "unrecognized options: stray."),
        (["--", "--train.steps"], "unrecognized options: --train.steps."),
        (["--steps", "3"], "unrecognized options: --steps, 3; did you mean --train.steps?"),
    ],
)
def test_a_bad_argument_is_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(Arguments, ["--out", "x", *arguments], verb="train")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        ("edit", "m f --out x --edit.layers 1 2"),
        ("edit", "--out x m --edit.layers 1 f"),
        ("edit", "m f --out=x --threads none --no-shard"),
        ("sample", "--prompt=--hello -- m"),
        ("sample", "m --prompt -5 --top_k None"),
        ("grpo", "m --out x --grpo.rewards accuracy=1 format=0.1"),
        ("trace", "m --facts f --trace.sites mlp_out attn_out"),
    ],
)
def test_what_can_be_read_is_not_refused(verb: str, line: str) -> None:
    parse(KINDS[verb], line.split(), verb=verb)


def test_a_mistake_says_its_place_then_its_field() -> None:
    error = UserError("is 3; use 4.", field="steps")
    assert str(error) == "steps is 3; use 4."
    assert str(error.at("[sft]").at("a.toml:")) == "a.toml: [sft] steps is 3; use 4."
    assert pickle.loads(pickle.dumps(error)).field == "steps"


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(UserError, match="--out.* nanogpt-edit train --help explains the arguments"):
        parse(Arguments, [], verb="train")


def test_help_of_a_verb_shows_text_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Arguments, ["--help"], verb="train")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "Optimizer steps. (default: 10)" in printed
    assert "nanogpt-edit train" in printed
