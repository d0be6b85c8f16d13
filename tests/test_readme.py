"""The README's two blocks of code, line by line, as a reader would copy them.

They run in a folder that has what the lines name: `runs/tiny`, `problems.jsonl`, `gsm8k/`, a recipe. The packaged
recipes stand for a run of a few thousand weights there, made by the first line that needs it; with `pytest --demo DIR`,
`runs/tiny` is a copy of DIR, a finished `make demo`, and the lines that would train anything else are left out.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.request import urlopen

import pytest
from micro import MICRO

import nanogpt_edit
from nanogpt_edit import cli
from nanogpt_edit.common.files import write_jsonl
from nanogpt_edit.data.fact_files import fact_to_record, read_facts
from nanogpt_edit.pipeline import recipe
from nanogpt_edit.pipeline.recipe import ModelConfig, Recipe, save_recipe

ROOT = Path(nanogpt_edit.__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MADE_BY_DEMO, OWN_RECIPE = "runs/tiny", "my-recipe.toml"


def block(heading: str) -> str:
    """The first block of code below a heading."""
    found = re.search(rf"^## {heading}\n.*?^```\w*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found, f"README has no block of code below {heading}"
    return found[1]


COMMANDS = [shlex.split(line, comments=True) for line in block("On the command line").splitlines()]
COMMANDS = [words for words in COMMANDS if words]
LONG = {"run", "watch", "serve", "doctor"}  # seconds each; .ci/run has them too
LINES = [pytest.param(words, marks=[pytest.mark.slow] if LONG & set(words) else []) for words in COMMANDS]
STATEMENTS = ast.parse(block("In Python")).body


@dataclass(frozen=True)
class Reader:
    """Where the lines run, and whether on a finished demo."""

    folder: Path
    demo: bool


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Reader]:
    """A folder with what the lines name."""
    folder, demo = tmp_path_factory.mktemp("reader"), request.config.getoption("--demo")
    (folder / "gsm8k").mkdir()
    for name, count in (("gsm8k/train", 60), ("gsm8k/test", 12), ("problems", 12)):
        shift = len(name)  # no split has a question of another
        write_jsonl(
            folder / f"{name}.jsonl",
            [
                {"question": f"What is {n} + {shift}?", "answer": f"{n} + {shift}\n#### {n + shift}"}
                for n in range(count)
            ],
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NANOGPT_EDIT_CACHE", str(folder / "cache"))
        if demo is not None:
            shutil.copytree(ROOT / demo, folder / MADE_BY_DEMO)
        write_jsonl(folder / "few.jsonl", [fact_to_record(fact) for fact in read_facts("facts50")[:2]])
        save_recipe(micro("mine"), folder / OWN_RECIPE)
        if demo is None:
            for name in recipe.packaged_recipes():
                save_recipe(micro(name), folder / "recipes" / f"{name}.toml")
            patch.setattr(recipe, "PACKAGED", folder / "recipes")
            assert cli.main(["run", "tiny", "--out", MADE_BY_DEMO]) == 0
        yield Reader(folder, demo is not None)


def micro(name: str) -> Recipe:
    """A recipe of a second or two; where the packaged one takes a model from the hub, it takes the micro run's base."""
    given = recipe.load_recipe(name) if name in recipe.packaged_recipes() else MICRO
    return replace(
        MICRO,
        name=name,
        facts="few.jsonl",
        model=ModelConfig(source="runs/tiny/base") if given.model.source is not None else MICRO.model,
        pretrain=replace(MICRO.pretrain, steps=1),
        sft=replace(MICRO.sft, steps=1, optimizer="adamw"),
        grpo=replace(MICRO.grpo, steps=1, rewards={"accuracy": 1.0}, problems_per_step=1, max_new_tokens=2),
        evaluate=replace(MICRO.evaluate, samples=1, edited_samples=1, max_new_tokens=2),
        edit=replace(MICRO.edit, layers=(0,), steps=1, n_prefixes=0, covariance_tokens=500, refine_steps=0),
    )


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_a_command_of_the_readme_does_what_it_says(words: list[str], reader: Reader) -> None:
    program, verb = words[0], words[words.index("nanogpt_edit" if words[0] == "torchrun" else "nanogpt-edit") + 1]
    if reader.demo and verb == "run" and not {MADE_BY_DEMO, OWN_RECIPE} & set(words):
        pytest.skip("it trains another model")
    if program == "torchrun":
        in_one_process(words, reader)
    elif verb in ("serve", "watch"):
        with served(words) as address:
            assert b"nanogpt_edit playground" in urlopen(address, timeout=20).read()
    else:
        few = [
            re.sub("^[0-9]+$", "1", word) if words[i].endswith(".steps") else word for i, word in enumerate(words[1:])
        ]
        assert cli.main(few) == 0


def in_one_process(words: list[str], reader: Reader) -> None:
    """torchrun's line in one process: how many there can be is a matter of the machine."""
    if not reader.demo:
        pytest.skip("several processes are test_processes.py's; the line itself runs with --demo")
    words = [re.sub(r"^--nproc_per_node=.*", "--nproc_per_node=1", word) for word in words[1:]]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], check=True, timeout=300)


@contextmanager
def served(words: list[str]) -> Iterator[str]:
    """The address of the line's server on a free port, ended as a person ends it."""
    command = [
        sys.executable,
        "-m",
        "nanogpt_edit",
        *words[1:],
        "--port",
        "0",
        *(["--no-open"] if "watch" in words else []),
    ]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        said = next(line for line in server.stderr if "http://" in line)
        yield re.findall(r"http://\S+", said)[0]
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 130
    finally:
        server.kill()
        server.communicate()


def test_every_statement_of_the_readme_runs(reader: Reader) -> None:
    names: dict[str, object] = {}
    for statement in STATEMENTS:
        source = ast.unparse(statement)
        try:
            exec(compile(source, "README.md", "exec"), names)
        except Exception as error:
            raise AssertionError(f"the README's line fails:\n{source}") from error
    assert (reader.folder / "trace.svg").is_file()
