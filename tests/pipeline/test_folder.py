"""A run's folder belongs to one run at a time, and never to a dead one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_json
from nanogpt_edit.pipeline import folder as run_folder
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.recipe import Recipe, load_recipe

OWNER = """
import os, sys, time
from pathlib import Path
from filelock import FileLock
folder = Path(sys.argv[1])
with FileLock(folder / ".lock"):
    (folder / ".owner").write_text(str(os.getpid()), encoding="utf-8")
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_names_its_owner_and_is_free_when_the_owner_was_killed(tmp_path: Path) -> None:
    assert not RunFolder(tmp_path).in_use()
    with subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"is in use by process {owner.pid}; wait for it"),
            RunFolder(tmp_path).locked(),
        ):
            pass
        assert RunFolder(tmp_path).in_use()
        owner.kill()
        owner.wait()
    assert (tmp_path / ".owner").read_text(encoding="utf-8") == str(owner.pid)  # stale: it still names the dead
    assert not RunFolder(tmp_path).in_use()
    with RunFolder(tmp_path).locked():
        assert (tmp_path / ".owner").read_text(encoding="utf-8") == str(os.getpid())
        assert RunFolder(tmp_path).in_use()
    assert not (tmp_path / ".owner").exists()
    assert not RunFolder(tmp_path).in_use()


def test_seconds_add_up_the_largest_peak_stands_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.add_seconds("sft", 1.5)
    folder.add_seconds("sft", 2.0)
    folder.add_seconds("sft", 0.0, peak=7)
    folder.add_seconds("sft", 0.0, peak=5)
    assert read_json(tmp_path / "timing.json") == {"stages": {"sft": 3.5}, "peak_bytes": {"sft": 7}}
    (tmp_path / "timing.json").write_text('{"stages": {"sft": "long"}}')
    with pytest.raises(UserError, match=r'timing\.json: \[stages\] "sft" must be a number, found "long"'):
        folder.add_seconds("sft", 1.0)


def test_the_number_of_threads_is_recorded_kept_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(run_folder, "say", told.append)
    folder = RunFolder(tmp_path)
    begun = folder.with_threads(Recipe())
    assert begun.threads == torch.get_num_threads() == 1
    folder.keep_recipe(begun)
    (folder.model("base")).mkdir()
    (folder.model("base") / "config.json").write_text("{}")
    assert not told
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)  # the same run, gone on with on another machine
    assert folder.with_threads(Recipe()).threads == 1
    assert folder.with_threads(load_recipe(tmp_path / "recipe.toml")).threads == 1
    assert len(told) == 2
    assert told[0].startswith("Threads: 1, as the recipe says, where torch would take 8 on this machine")
    assert folder.with_threads(Recipe(threads=8)).threads == 8, "what is asked for goes before what was"
    assert RunFolder(tmp_path / "new").with_threads(Recipe()).threads == 8
    assert len(told) == 2
