"""What a source distribution carries, and what `make` hands to pip."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import nanogpt_edit

ROOT = Path(__file__).parents[1]
MANIFEST = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines() if line and line[0] != "#"]
CARRIED = [ROOT / name for command, *names in MANIFEST if command in ("include", "graft") for name in names]


def test_what_the_source_distribution_names_is_there() -> None:
    assert [path for path in CARRIED if not path.exists()] == []


def test_the_version_is_the_same_wherever_it_stands() -> None:
    said = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert said == [nanogpt_edit.__version__]


def test_every_file_of_the_package_that_is_no_code_is_package_data() -> None:
    """Both distributions carry what these patterns name: recipes, facts, the world's tables, templates, a page."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["nanogpt_edit"]
    package = ROOT / "nanogpt_edit"
    carried = {file for pattern in patterns for file in package.glob(pattern)}
    found = {file for file in package.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert found == carried
    assert {"facts.toml", "stories.toml", "facts50.jsonl", "tiny.toml"} <= {file.name for file in found}


def test_nothing_is_imported_that_windows_has_not() -> None:
    absent = {"crypt", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    for file in (ROOT / "nanogpt_edit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert absent.isdisjoint(names), file
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr not in ("fork", "kill", "killpg", "setsid", "getuid", "uname"), file


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
)
def test_what_a_page_links_to_is_there_and_carried(page: str) -> None:
    made_with_the_site = r"(?:\.\./)?reference/"
    links = re.findall(rf"\]\((?!https?:|#|{made_with_the_site})([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    for link in links:
        target = ((ROOT / page).parent / link).resolve()
        assert target.exists(), link
        carried = any(target == each or each in target.parents for each in (*CARRIED, ROOT / "nanogpt_edit"))
        assert carried or target.name in ("LICENSE", "README.md"), link


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
@pytest.mark.parametrize("target", ["demo", "test", "check", "bench"])
def test_make_hands_pip_what_it_is_given(target: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        ["make", "-n", target, "PIP_FLAGS=--extra-index-url INDEX", f"VENV={tmp_path}/venv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    installs = [line for line in ended.stdout.splitlines() if " -m pip install " in line]
    assert installs
    assert all("install --extra-index-url INDEX --constraint constraints.txt" in line for line in installs)
