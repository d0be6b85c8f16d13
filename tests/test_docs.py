"""The examples of docs/: every block of Python and every notebook runs, every command line is one that is accepted.

The blocks of a page run one after the other, as a reader would copy them, in a folder with a run's checkpoints: models
of a few thousand weights, untrained. What a command does is tried by README's test and by the tests of the verbs.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from micro import MICRO

import nanogpt_edit as ne
from nanogpt_edit import cli
from nanogpt_edit.commands import export, patch_verbs
from nanogpt_edit.commands.arguments import KINDS, Run
from nanogpt_edit.commands.flags import given_flags
from nanogpt_edit.common.files import write_jsonl
from nanogpt_edit.data.world.world import make_world
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.pipeline.recipe import load_recipe, packaged_recipes, save_recipe

ROOT = Path(ne.__file__).parents[1]
PAGES = {str(page.relative_to(ROOT / "docs")): page.read_text("utf-8") for page in sorted(ROOT.glob("docs/**/*.md"))}
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {
    "models.md": "it runs in llama.cpp's folder: make interop",
    "serving.md": "it asks a server: tests/serving",
}
"""Pages whose Python runs in another program's folder or beside a server, and who tries it there."""
PROGRAMS = ("nanogpt-edit", "torchrun", "make", "pip")


@dataclass(frozen=True)
class Line:
    """A command line of a page."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def python_of(text: str) -> list[str]:
    """The blocks of Python of a page."""
    found = [(indent, code) for indent, kind, code in BLOCK.findall(text) if kind == "python"]
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def lines_of(page: str, text: str) -> Iterator[Line]:
    """The command lines of a page's blocks; what stands before the program (VARIABLE=value) is left out."""
    told = "\n".join(code for _, kind, code in BLOCK.findall(text) if kind in ("", "sh"))
    told += "\n".join(re.findall(r"^    (nanogpt-edit .*)$", text, re.MULTILINE))
    for line in told.replace("\\\n", " ").splitlines():
        if not re.match(rf"\s*(\w+=\S+ )*({'|'.join(PROGRAMS)}) ", line):
            continue
        words = shlex.split(line, comments=True)
        start = next(place for place, word in enumerate(words) if word in PROGRAMS)
        yield Line(page, tuple(words[start:]))


def marked(page: str) -> str | ParameterSet:
    """A page, with what keeps it from being run always."""
    if page in ELSEWHERE:
        return pytest.param(page, marks=pytest.mark.skip(ELSEWHERE[page]))
    return pytest.param(page, marks=pytest.mark.slow) if "transformers" in python_of(PAGES[page])[0] else page


NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
LINES = [line for page, text in PAGES.items() for line in lines_of(page, text)]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_command_line_is_one_that_the_program_accepts(line: Line) -> None:
    program, *words = line.words
    if program == "make":
        targets = re.findall(r"^(\w+)(?= \w+:|:)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[0] in targets
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\[(\w+)\]", " ".join(words))) <= set(extras)
    else:
        accept(words[words.index("nanogpt_edit") + 1 :] if program == "torchrun" else words)


def accept(words: list[str]) -> None:
    """Raises UserError for an unknown verb or flag, a value of the wrong type, and what is missing."""
    verb, *rest = [word for word in words if word != "--quiet"]
    if not {"--help", "-h", "--version"}.isdisjoint(words):
        return
    cli.find_verb(verb)
    if verb in ("run", "doctor"):
        recipe = load_recipe(rest[0] if rest[0] in packaged_recipes() else "tiny")
        given_flags(Run, rest[1:], default=Run(recipe=recipe, out=Path("runs") / recipe.name))
    elif verb in (inner := {"patch": patch_verbs.VERBS, "export": export.VERBS}):
        given_flags(inner[verb][rest[0]], rest[1:])
    elif verb == "cache":
        assert rest in ([], ["list"], ["clear"])
    else:
        given_flags(KINDS[verb], rest)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: a run's checkpoints with their recipe, problems, facts, text."""
    folder = tmp_path_factory.mktemp("reader")
    world = make_world(MICRO.world)
    tokenizer = Tokenizer.train(world.sentences, vocab_size=400)
    sizes = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=128, n_layer=2, n_head=2, n_embd=16)
    model = GPT(sizes, seed=0).eval()
    model.tokenizer = tokenizer
    for stage in ("base", "sft", "grpo"):
        ne.save(model, folder / "runs" / "tiny" / stage)
    quick = replace(MICRO.edit, layers=(0,), steps=1, n_prefixes=0, covariance_tokens=500, refine_steps=0)
    save_recipe(replace(MICRO, name="tiny", edit=quick), folder / "runs" / "tiny" / "recipe.toml")
    problems = [{"question": f"What is {n} + 2?", "answer": f"{n} + 2 = {n + 2}\n#### {n + 2}"} for n in range(40)]
    write_jsonl(folder / "problems.jsonl", problems)
    return folder


@pytest.fixture
def reader(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, as the one the program is started in."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    return place


@pytest.mark.parametrize("page", [marked(page) for page, text in PAGES.items() if python_of(text)])
def test_the_python_of_a_page_runs(page: str, reader: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for block in python_of(PAGES[page]):
        if file := re.match(r"# (\w+\.py)\n", block):  # a file that the page tells the reader to write
            (reader / file[1]).write_text(block, encoding="utf-8")
        else:
            exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", sorted(page for page in PAGES if page.startswith("how-to/own-")))
def test_what_people_bring_takes_less_than_thirty_lines(page: str) -> None:
    parts = PAGES[page].split("\n## ")
    assert max(sum(map(lines_of_code, python_of(part))) for part in parts) < 30


def lines_of_code(block: str) -> int:
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in block.splitlines())


FEW = {
    r"range\(\d{2,}\)": "range(30)",
    r"\b(steps|evaluate_every|problems_per_step|evaluate_problems|updates_per_rollout)=\d+": r"\1=2",
    r"\b(n|fact_repeats)=\d+": r"\1=1",
    r"\b(max_new_tokens)=\d+": r"\1=8",
    r"\bcovariance_tokens=\w+": "covariance_tokens=500",
}
"""What a notebook's cells ask for, in a second's size. The others take the recipe's own settings, a minute of work:
they run in a kernel, among the slow tests."""


def cells_of(notebook: Path) -> list[str]:
    """The code of a notebook, cell by cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_on_teaching_runs_with_a_step_or_two_of_each_stage(reader: Path) -> None:
    (notebook,) = (path for path in NOTEBOOKS if path.stem == "teach")
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in cells_of(notebook):
        for much, few in FEW.items():
            cell = re.sub(much, few, cell)
        if "IPython" not in cell:
            exec(compile(cell, notebook.name, "exec"), names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_comes_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_a_kernel_as_it_stands(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert any("text/html" in output.get("data", {}) for output in shown)


def test_every_page_is_in_the_site() -> None:
    """The strict build, which finds it too, needs mkdocs: make docs."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert [page for page in PAGES if not re.search(rf" {page}$", nav, re.MULTILINE)] == []
