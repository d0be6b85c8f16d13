"""What the site is told by the code: the pages of the reference, made anew at every build, and pages from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from inspect import getdoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import nanogpt_edit
from nanogpt_edit import cli
from nanogpt_edit.commands import cache, export, patch_verbs
from nanogpt_edit.commands.arguments import KINDS, Run
from nanogpt_edit.commands.flags import flags_of
from nanogpt_edit.common.records import default_of
from nanogpt_edit.common.settings import to_table
from nanogpt_edit.pipeline.recipe import Recipe, load_recipe, packaged_recipes

ROOT = Path(__file__).parents[1]
ELSEWHERE = re.compile(r"\]\(\.\./(benchmarks/[^)#]+)\)")
"""Links of the pages to files beside docs/, which the site brings along."""
INNER: dict[str, Mapping[str, type]] = {"patch": patch_verbs.VERBS, "export": export.VERBS}
WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
GROUPS = {
    "Models": ("load", "save", "generate", "export_gguf", "push", "pull"),
    "Teaching": ("pretrain", "sft", "grpo", "run", "load_recipe"),
    "Editing": ("edit", "score", "load_patch", "trace"),
    "Measuring": ("evaluate",),
    "Data": ("read_facts", "read_problems", "read_chats"),
}
"""The names of `import nanogpt_edit as ne` in the order in which they are met; the others follow."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and what is linked to outside the folder."""
    pages = {
        "reference/python.md": python_page(),
        "reference/verbs.md": verbs_page(),
        "reference/recipe.md": recipe_page(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "]("),
    }
    pages |= {f"notebooks/{file.stem}.md": notebook_page(file) for file in sorted(ROOT.glob("docs/notebooks/*.ipynb"))}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    texts = [page.read_text(encoding="utf-8") for page in ROOT.glob("docs/*.md")]
    for name in sorted({found for text in texts for found in ELSEWHERE.findall(text)}):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The links to files beside docs/, as they lie in the site."""
    return ELSEWHERE.sub(r"](\1)", markdown)


# --- the pages that are made ---


def python_page() -> str:
    """Every public name, with its signature and docstring."""
    rest = [name for name in nanogpt_edit.__all__ if not any(name in names for names in GROUPS.values())]
    groups = GROUPS | {
        "Settings": [name for name in rest if name.endswith("Config")],
        "Records and the rest": [name for name in rest if not name.endswith("Config")],
    }
    homes = nanogpt_edit._HOMES | {"UserError": "nanogpt_edit.common.errors"}
    lines = ["# Python", "", f"{getdoc(nanogpt_edit)}", ""]
    for title, names in groups.items():
        lines += [f"## {title}", "", *(f"::: {homes[name]}.{name}\n" for name in names)]
    return "\n".join(lines)


def notebook_page(file: Path) -> str:
    """A notebook to read, and to take along."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    shown = {"markdown": "{}", "code": "```python\n{}\n```"}
    title, *rest = [shown[cell["cell_type"]].format("".join(cell["source"])) for cell in cells]
    return "\n\n".join([title, f"[The notebook]({file.name}): open it in Jupyter, VS Code or Colab.", *rest])


def verbs_page() -> str:
    """Every verb with its arguments, units and defaults."""
    lines = ["# Command line", "", *preface()]
    for verb in cli.VERBS:
        lines += [f"## {verb}", ""]
        if verb in ("run", "doctor"):
            recipe = load_recipe("tiny")
            lines += arguments(f"{verb} RECIPE", Run, Run(recipe, Path("runs") / recipe.name))
        elif verb in INNER:
            for name, kind in INNER[verb].items():
                lines += [f"### {verb} {name}", "", *arguments(f"{verb} {name}", kind)]
        elif verb in KINDS:
            lines += arguments(verb, KINDS[verb])
        else:
            lines += ["```text", cache.USAGE, "```", ""]
    return "\n".join(lines)


def preface() -> list[str]:
    """What holds for every verb."""
    return [
        "`nanogpt-edit VERB --help` prints what stands here; `nanogpt-edit --help` lists the verbs.",
        "",
        "- `nanogpt-edit VERB … --quiet` shows results and errors only; results go to standard output, everything else "
        "to standard error.",
        "- `nanogpt-edit --version` says the version.",
        "- `--json` of the verbs with a table (`evaluate`, `compare`, `ledger`, `info`) prints JSON in its place.",
        "- `nanogpt-edit completion bash` (or `zsh`) prints the script for the tab key.",
        "- A field of a recipe is a flag: `grpo.learning_rate` is `--grpo.learning-rate`. "
        "A yes or no is `--shard` or `--no-shard`; nothing at all is `none`.",
        "",
        "| exit status | |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | a bug of this program, with its traceback; or the reader of its output (`head`, `less`) has gone |",
        "| 2 | a mistake to mend: one sentence on standard error says which; nothing is left half written |",
        "| 3 | the run is done, and an expectation of its recipe failed |",
        "| 130, 143 | ended by Ctrl-C or SIGTERM; `run`, `pretrain`, `sft` and `grpo` go on where they were when the "
        "same command is given again |",
        "",
    ]


def arguments(call: str, kind: type, default: object = None) -> list[str]:
    """Usage, description and the table of a verb's own arguments; those of a recipe's tables are linked to."""
    places = [flag.name for flag in flags_of(kind, default) if not flag.name.startswith("--")]
    usage = " ".join([f"nanogpt-edit {call}", *places, "[flags]"])
    own, tables = [], []
    for name, hint, value, doc in described(kind, default):
        if is_dataclass(hint) and hint is not Recipe and (kind is Run or name in TABLES):
            tables.append(f"[`--{name}.…`](recipe.md#{name})")
        elif hint is Recipe:
            inner = [f"[`--{table}.…`](recipe.md#{table})" for table in TABLES]
            tables += ["[every key of the recipe](recipe.md#recipe)", *inner]
        elif is_dataclass(hint):
            prefix = "" if name in ("sampling",) else f"{name}."
            own += [row(f"--{prefix}{field}", *rest) for field, *rest in described(hint)]
        else:
            named = next((place for place in places if place.strip("….").lower() in (name, name.rstrip("es"))), None)
            own.append(row(named or f"--{name}", hint, value, doc))
    lines = ["```text", usage, "```", "", getdoc(kind) or "", ""]
    if own:
        lines += ["| argument | | default | |", "|---|---|---|---|", *own, ""]
    if tables:
        lines += [f"And, as in a recipe: {', '.join(tables)}.", ""]
    return lines


def recipe_page() -> str:
    """Every key of a recipe, table by table."""
    lines = [
        "# Recipe",
        "",
        "A recipe is one TOML file with the settings of all stages. A key that it leaves out has the default below.",
        f"These come with the package: {', '.join(f'`{name}`' for name in packaged_recipes())}.",
        "`nanogpt-edit run my.toml` takes your own, and every key is a flag too (`--sft.steps 200`). A run keeps",
        "its own in `recipe.toml`, with every key written out: that gives the same numbers again. This is `tiny`:",
        "",
        "```toml",
        *(ROOT / "nanogpt_edit/recipes/tiny.toml").read_text(encoding="utf-8").strip().splitlines(),
        "```",
        "",
        "## recipe",
        "",
        "At the top of the file.",
        "",
        *key_table(Recipe, [name for name in hints(Recipe) if name not in TABLES]),
    ]
    for table, kind in TABLES.items():
        lines += [f"## {table}", "", f"`[{table}]`. {getdoc(kind)}", "", *key_table(kind, list(hints(kind)))]
    return "\n".join(lines)


def key_table(kind: type, names: list[str]) -> list[str]:
    rows: list[str] = []
    for name, hint, value, doc in described(kind):
        if is_dataclass(hint) and name in names:
            rows += [row(f"{name}.{inner}", *rest) for inner, *rest in described(hint, value)]
        elif name in names:
            rows.append(row(name, hint, value, doc))
    return ["| key | | default | |", "|---|---|---|---|", *rows, ""]


def row(name: str, hint: object, value: object, doc: str) -> str:
    shown = "" if value is MISSING else f"`{in_toml(value)}`"
    return f"| `{name}` | {in_words(hint)} | {shown} | {' '.join(doc.split()).replace('|', chr(92) + '|')} |"


# --- what the code says of itself ---


def described(kind: type, default: object = None) -> Iterator[tuple[str, object, object, str]]:
    """Name, type, default (or MISSING) and docstring of every field, those of its bases first."""
    documented = PACKAGE[f"{kind.__module__.removeprefix('nanogpt_edit.')}.{kind.__name__}"].all_members
    for field in fields(kind):
        written = documented[field.name].docstring
        value = default_of(field) if default is None else getattr(default, field.name)
        yield field.name, hints(kind)[field.name], value, written.value if written else ""


def hints(kind: type) -> dict[str, object]:
    """The types of a dataclass's fields, without what only the command line reads of them."""
    return {field.name: bare(get_type_hints(kind, include_extras=True)[field.name]) for field in fields(kind)}


def bare(hint: object) -> object:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def in_words(hint: object) -> str:
    """`float | None` -> number or none."""
    hint = bare(hint)
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join([in_words(part) for part in parts if part is not NoneType] + ["none"] * (NoneType in parts))
    if get_origin(hint) is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if get_origin(hint) is tuple:
        return f"list of {in_words(parts[0])}" if parts[-1] is ... else " and ".join(map(in_words, parts))
    if get_origin(hint) is dict:
        return "table"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def in_toml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {in_toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(in_toml, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


PACKAGE = griffe.load("nanogpt_edit", search_paths=[ROOT])
TABLES = {name: hint for name, hint in hints(Recipe).items() if isinstance(hint, type) and is_dataclass(hint)}
assert set(to_table(Recipe())) >= set(TABLES)
