"""Data files in every form that is read, and what is said of those that are not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from nanogpt_edit import cli
from nanogpt_edit.checkpoint.checkpoint import save
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data import rows
from nanogpt_edit.data.problems import read_problems
from nanogpt_edit.data.rows import read_rows
from nanogpt_edit.data.splits import ProblemsConfig, load_splits
from nanogpt_edit.data.text import read_text
from nanogpt_edit.model.gpt import GPT

RECORDS = [
    {"question": f"What is {n} plus 1?", "answer": f"{n} + 1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
    for n in range(30)
]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)


def put(path: Path, contents: str | bytes) -> Path:
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return path


FORMS = {
    "mine.jsonl": LINES.encode(),
    "marked.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "windows.jsonl": LINES.replace("\n", "\r\n").encode(),
    "array.json": json.dumps(RECORDS, indent=1).encode(),
    "marked.json": b"\xef\xbb\xbf" + json.dumps(RECORDS).encode(),
    "lines.json": LINES.encode(),
    "wrapped.json": json.dumps({"data": RECORDS}, indent=1).encode(),
    "one_line.json": json.dumps({"version": "1.1", "rows": RECORDS}).encode(),
    "half_way.json": json.dumps({"examples": RECORDS}).replace("[", "[\n").encode(),
    "mine.jsonl.gz": gzip.compress(LINES.encode()),
    "array.json.gz": gzip.compress(json.dumps(RECORDS).encode()),
    "wrongly_named.jsonl": gzip.compress(LINES.encode()),
}


@pytest.mark.parametrize(("name", "contents"), FORMS.items())
def test_the_same_problems_are_read_from_every_form(name: str, contents: bytes, tmp_path: Path) -> None:
    found = read_problems(put(tmp_path / name, contents))
    assert [problem.question for problem in found] == [record["question"] for record in RECORDS]
    assert [problem.answer for problem in found] == [str(n + 1) for n in range(30)]
    assert found[2].rationale == "2 + 1 = 3"
    assert found[2].id == f"{name.partition('.')[0]}:3"


def test_parquet_is_read_whole_and_in_parts(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "all.parquet")
    assert [p.answer for p in read_problems(tmp_path / "all.parquet")] == [str(n + 1) for n in range(30)]
    folder = tmp_path / "hub"
    folder.mkdir()
    for part in range(2):
        table = pyarrow.Table.from_pylist(RECORDS[part * 10 : part * 10 + 10])
        parquet.write_table(table, folder / f"train-{part:05d}-of-00002.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS[20:]), folder / "test-00000-of-00001.parquet")
    splits = load_splits(ProblemsConfig(path=str(folder), validation=5), seed=0)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [15, 5, 10]


def test_a_record_that_spans_lines_or_holds_a_list_is_a_record(tmp_path: Path) -> None:
    record = RECORDS[0] | {"steps": [{"text": "0 + 1"}]}
    for name, text in (("one.json", json.dumps(record, indent=2)), ("one.jsonl", json.dumps(record))):
        [problem] = read_problems(put(tmp_path / name, text))
        assert problem.answer == "1"


def test_text_is_read_from_the_same_forms(tmp_path: Path) -> None:
    documents = [{"text": "One."}, {"text": " Two.\n"}, {"text": ""}]
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    parquet.write_table(pyarrow.Table.from_pylist(documents), tmp_path / "t.parquet")
    for path in (
        tmp_path / "t.parquet",
        put(tmp_path / "t.jsonl", lines),
        put(tmp_path / "t.json", json.dumps(documents)),
        put(tmp_path / "t.jsonl.gz", gzip.compress(lines.encode())),
    ):
        assert read_text(path) == ["One.", "Two."]
    assert read_text(put(tmp_path / "t.txt.gz", gzip.compress(b"Three."))) == ["Three."]
    with pytest.raises(UserError, match=r'other\.jsonl: 3 rows have no text in field "text"'):
        read_text(put(tmp_path / "other.jsonl", lines.replace('"text"', '"body"')))
    with pytest.raises(UserError, match=r"broken\.jsonl:2: not valid JSON"):
        read_text(put(tmp_path / "broken.jsonl", lines.replace('{"text": " T', '{"text" " T')))
    with pytest.raises(UserError, match=r"half\.jsonl:1: not valid JSON \(half of a surrogate pair"):
        read_text(put(tmp_path / "half.jsonl", '{"text": "\\ud83c"}\n'))


OTHERS = {
    "p.jsonl": ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4166206\n", "pointer of git-LFS"),
    "p.parquet": ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "pointer of git-LFS"),
    "p.zip": (b"PK\x03\x04\x14\x00\x00\x00", "a zip archive"),
    "p.xlsx": (b"PK\x03\x04\x14\x00\x06\x00", "a spreadsheet"),
    "p.csv": ("question,answer\nWhat?,5\n", "a table of csv; save it as JSONL"),
    "p.tsv": ("question\tanswer\nWhat?\t5\n", "a table of tsv; save it as JSONL"),
    "p.html": ("\n<!DOCTYPE html><html></html>".lstrip(), "a web page"),
    "p.zst": (b"\x28\xb5\x2f\xfd\x00", "compressed with zstd"),
    "p.pkl": (b"\x80\x04\x95\x00", "a pickle, which is never opened"),
    "p.arrow": (b"ARROW1\x00\x00", "an Arrow file"),
    "utf16.jsonl": (LINES.encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    "bare16.jsonl": (LINES.encode("utf-16-le"), "UTF-16 text, or no text at all"),
    "latin.jsonl": (
        LINES.encode() + '{"question": "Caf\xe9?"}'.encode("latin-1"),
        ":31: not UTF-8 text",
    ),
    "cut.jsonl.gz": (gzip.compress(LINES.encode())[:-20], "a damaged gzip file"),
    "cut.parquet": (b"PAR1\x00\x00PAR1", "a Parquet file that cannot be read"),
    "none.parquet": (b"\x00\xff" * 40, "by its name a parquet file, and it is none"),
    "lines.parquet": (LINES, "by its name a parquet file, and it is none; fetch it anew, or rename it."),
    "none.jsonl.gz": (LINES, "by its name a gz file, and it is none"),
    "lists.json": (json.dumps({"train": RECORDS, "test": RECORDS}), "several lists of records in it (train, test)"),
    "deep.json": ("[" * 100_000, "not valid JSON (nested too deeply)"),
    "deep_object.json": ('{"a":' * 100_000, "not valid JSON (nested too deeply)"),
    "strings.json": ('["a", "b"]', "object was expected, found str"),
    "empty.json": ('{"data": []}', 'no field "question" (it has "data")'),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_read_is_named_for_what_it_is(name: str, tmp_path: Path) -> None:
    contents, says = OTHERS[name]
    with pytest.raises(UserError) as caught:
        read_problems(put(tmp_path / name, contents))
    assert says in str(caught.value)
    assert name in str(caught.value)


def test_a_gzip_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "bomb.jsonl.gz", gzip.compress(b" " * (2 << 20)))
    monkeypatch.setattr(rows, "MOST_UNPACKED", 1 << 20)
    with pytest.raises(UserError, match=r"bomb\.jsonl\.gz: unpacks to more than 1 MiB; unpack it"):
        list(read_rows(path, fields=("question",)))


@pytest.mark.parametrize("verb", ["sft", "grpo"])
def test_a_stage_alone_says_it_too(
    verb: str, speaking_gpt: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(speaking_gpt, tmp_path / "model")
    path = put(tmp_path / "half.jsonl", LINES + '{"question": "3 \\ud83c", "answer": "#### 3"}\n')
    out = str(tmp_path / "out")
    assert cli.main([verb, str(tmp_path / "model"), "--out", out, "--problems.path", str(path)]) == 2
    printed = capsys.readouterr().err
    assert "half.jsonl:31: not valid JSON (half of a surrogate pair" in printed
    assert printed.count("\n") == 1
