"""A file is complete or absent, whatever happens in the middle of writing it."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import save_file

from nanogpt_edit.common import files
from nanogpt_edit.common import terminal as progress
from nanogpt_edit.common.errors import UserError, did_you_mean


class Killed(Exception):
    pass


def test_compressed_lines_come_back_and_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    records = [{"step": step, "text": "“8 × 9”" * 20} for step in range(50)]
    for name in ("one.jsonl.gz", "other.jsonl.gz"):
        files.write_jsonl(tmp_path / name, records)
    assert files.read_jsonl(tmp_path / "one.jsonl.gz") == records
    contents = (tmp_path / "one.jsonl.gz").read_bytes()
    assert contents == (tmp_path / "other.jsonl.gz").read_bytes()
    assert len(contents) < len("“8 × 9”".encode()) * 20 * 50 / 10
    for damage in (contents[:-20], b"{}\n", contents[:30] + b"xxxx" + contents[34:]):
        (tmp_path / "one.jsonl.gz").write_bytes(damage)
        with pytest.raises(UserError, match=r"one.jsonl.gz: not a gzip file \(.*The file is damaged"):
            files.read_jsonl(tmp_path / "one.jsonl.gz")


def test_a_file_appears_whole_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    files.write_text(path, "héllo\n")
    assert path.read_bytes() == "héllo\n".encode()
    assert os.listdir(path.parent) == ["note.txt"]


@pytest.mark.skipif(files.WINDOWS, reason="Windows has other permissions")
@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_what_safetensors_writes_can_be_read_by_whoever_reads_other_files(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with files.atomic_file(tmp_path / "alone.safetensors") as temporary:
            save_file({"a": torch.zeros(2)}, temporary)
        with files.atomic_directory(tmp_path / "folder") as temporary:
            save_file({"a": torch.zeros(2)}, temporary / "model.safetensors")
    finally:
        os.umask(before)
    for path in ("alone.safetensors", "folder/model.safetensors"):
        assert (tmp_path / path).stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    files.write_text(path, "old")
    with pytest.raises(Killed), files.atomic_file(path) as temporary:
        temporary.write_text("half of the n")
        raise Killed
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note.txt"
    files.write_text(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_a_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    model = tmp_path / "sft"
    with files.atomic_directory(model) as temporary:
        (temporary / "config.json").write_text("1")
        (temporary / "old.bin").write_text("1")
        assert not model.exists()
    with files.atomic_directory(model) as temporary:
        (temporary / "config.json").write_text("2")
    assert sorted(os.listdir(model)) == ["config.json"]
    assert (model / "config.json").read_text() == "2"
    assert os.listdir(tmp_path) == ["sft"]


def test_a_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    model = tmp_path / "sft"
    with files.atomic_directory(model) as temporary:
        (temporary / "config.json").write_text("1")
    with pytest.raises(Killed), files.atomic_directory(model) as temporary:
        (temporary / "config.json").write_text("2")
        raise Killed
    assert (model / "config.json").read_text() == "1"
    assert os.listdir(tmp_path) == ["sft"]


def test_a_directory_whose_last_rename_fails_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "sft"
    with files.atomic_directory(model) as temporary:
        (temporary / "config.json").write_text("1")
    rename, calls = os.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="No space"), files.atomic_directory(model) as temporary:
        (temporary / "config.json").write_text("2")
    assert (model / "config.json").read_text() == "1"
    assert os.listdir(tmp_path) == ["sft"]


def test_json_that_is_not_a_number_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "eval.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("text", "sentence"), [("[1]", "found list"), ('{"a": ', "not valid JSON")])
def test_a_damaged_json_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "eval.json"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        files.read_json(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "1e999 is beyond"),
        (f'{{"a": {"9" * 400}.5}}', "99999999.*is beyond"),
        (f'{{"a": {"9" * 5000}}}', "a number of 5000 digits"),
        (r'{"a": "\ud83d"}', "half of a surrogate pair"),
        (r'{"\udc00": 1}', "half of a surrogate pair"),
        ('{"a": 1e-400}', "1e-400 is nearer to zero than a number can be; write 0"),
        ('{"a": [-0.05E-9999]}', "-0.05E-9999 is nearer to zero"),
        ('{"a": 1, "b": {"c": 1, "d": 2, "c": 1}}', '"c" is there twice in one object'),
        ('{"a": 1, "\\u0061": 2}', '"a" is there twice'),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
    ],
)
def test_json_that_stands_for_nothing_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "one.json").write_text(text)
    with pytest.raises(UserError, match=f"one.json: not valid JSON .*{reason}"):
        files.read_json(tmp_path / "one.json")
    (tmp_path / "one.jsonl").write_text(f'{{"b": 1}}\n{text}\n')
    with pytest.raises(UserError, match=f"one.jsonl:2: not valid JSON .*{reason}"):
        files.read_jsonl(tmp_path / "one.jsonl")


@pytest.mark.parametrize("value", ["NaN", "\U0001f600", 1e300, 10**30, 2**-1000, 5e-324, 0.0, -0.0, [{"a": 1}] * 2])
def test_uncommon_json_is_read(value: object) -> None:
    assert files.parse_json(json.dumps({"a": value})) == {"a": value}


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path, "a folder, where a file was expected"),
        (tmp_path / ("x" * 300), "name too long"),
        (tmp_path / "\0", "null"),
        (Path(__file__) / "x", "not a directory"),
    ):
        for read in (files.read_json, files.read_jsonl):
            with pytest.raises(UserError, match=reason):
                read(path)


def test_a_zero_may_be_written_in_any_way() -> None:
    assert [files.read_float(digits) for digits in ("0", "-0.0", "0e-999", "0E5", "4e-324")] == [0, 0, 0, 0, 5e-324]
    with pytest.raises(files.Lost):
        files.read_float("1_0.0e-4_00")  # as TOML and Python write it


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read in (files.read_json, files.read_jsonl):
        with pytest.raises(UserError, match="nowhere: no such file"):
            read(tmp_path / "nowhere")


@settings(max_examples=30)
@given(
    records=st.lists(st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=8)), max_size=5)
)
def test_records_come_back(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]) -> None:
    folder = tmp_path_factory.mktemp("jsonl")
    files.write_jsonl(folder / "whole.jsonl", records)
    for record in records:
        files.append_jsonl(folder / "grown.jsonl", record)
    assert files.read_jsonl(folder / "whole.jsonl") == records
    assert not records or files.read_jsonl(folder / "grown.jsonl") == records


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', '{"step": "é'.encode()[:-1], b'{"step": 2'])
def test_a_torn_last_line_is_dropped_and_the_log_grows_on(tmp_path: Path, torn: bytes) -> None:
    log = tmp_path / "sft.jsonl"
    files.append_jsonl(log, {"step": 1})
    log.write_bytes(log.read_bytes() + torn)
    with pytest.raises(UserError, match="sft.jsonl:2: not"):  # in any other file it is a mistake
        files.read_jsonl(log)
    assert files.read_jsonl(log, log=True) == [{"step": 1}]
    files.append_jsonl(log, {"step": 2})
    assert files.read_jsonl(log) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("line", "sentence"), [(b"{broken", "not valid JSON"), (b"\xff{}", "not UTF-8 text"), (b"[]", "found list")]
)
def test_a_bad_line_in_the_middle_is_named_with_its_number(tmp_path: Path, line: bytes, sentence: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(UserError, match=f"facts.jsonl:3: .*{sentence}"):
        files.read_jsonl(path)


def test_sha256_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc" * 1000)
    assert files.sha256_of_file(path) == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_the_hint_names_the_near_word_and_only_a_near_one() -> None:
    assert did_you_mean("stepz", ["lr", "steps"]) == '; did you mean "steps"?'
    assert did_you_mean("zebra", ["lr", "steps"]) == "."


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0:00"), (59.6, "1:00"), (75.3, "1:15"), (3661, "1:01:01"), (float("inf"), "?")],
)
def test_clock(seconds: float, shown: str) -> None:
    assert progress.clock(seconds) == shown


def test_piped_progress_shows_rate_values_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = io.StringIO(), [100.0]
    monkeypatch.setattr(progress, "console", Console(file=out, highlight=False, soft_wrap=True))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.progress("sft", total=70, done=10) as bar:
        for step, at in ((11, 101.0), (30, 110.0), (70, 130.0)):
            now[0] = at
            bar.update(step, loss=1.23456)
    # Nothing after one second; 20 fresh steps in 10 s leave 40 steps, 20 s; the last one always shows.
    assert out.getvalue().splitlines() == [
        "sft  30/70  2 steps/s  loss 1.235  0:20 left",
        "sft  70/70  2 steps/s  loss 1.235  took 0:30",
    ]
