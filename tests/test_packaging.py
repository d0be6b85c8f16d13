"""What a source distribution carries, and what `make` hands to pip."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MANIFEST = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines() if line and line[0] != "#"]
CARRIED = [ROOT / name for command, *names in MANIFEST if command in ("include", "graft") for name in names]


def test_what_the_source_distribution_names_is_there() -> None:
    assert [path for path in CARRIED if not path.exists()] == []


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_what_a_page_links_to_is_there_and_carried(page: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
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
