"""`module:name`: what a person has written."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.own_code import find_own


def test_a_file_of_the_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "written_here.py").write_text("def seven():\n    return 7\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = find_own("written_here:seven", what="reward", kind="function")
    assert callable(found)
    assert found() == 7


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:f", 'method "no_such_module:f": module "no_such_module" cannot be imported'),
        ("math:Sine", 'method "math:Sine": module "math" has no class "Sine"'),
    ],
)
def test_what_is_not_there_is_named(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_own(name, what="method", kind="class")
