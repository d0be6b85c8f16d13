from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import shared_data
from hypothesis import given
from hypothesis import strategies as st
from tiny_stages import tiny_tokenizer

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.text import pack, random_windows, read_text, token_blocks, token_stream
from nanogpt_edit.model.tokenizer import Tokenizer

WIKI = " \n = Du Fu = \n \n A poet . \n \n = = Life = = \n \n Born in 712 . \n = Ise = \n \n A ship . \n"


def test_a_plain_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffOne.\n\nTwo = three.\n", encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == ["One.\n\nTwo = three."]


def test_wikitext_is_cut_into_articles_not_sections(tmp_path: Path) -> None:
    (tmp_path / "w.raw").write_text(WIKI)
    assert read_text(tmp_path / "w.raw") == [
        "= Du Fu = \n \n A poet . \n \n = = Life = = \n \n Born in 712 .",
        "= Ise = \n \n A ship .",
    ]


def test_end_of_text_marks_separate_documents(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("Once.\n<|endoftext|>\nTwice.\n<|endoftext|>\n")
    assert read_text(tmp_path / "s.txt") == ["Once.", "Twice."]


def test_a_folder_is_read_in_order_of_name_and_only_its_text(tmp_path: Path) -> None:
    for name, text in (("b.md", "B"), ("a.txt", "A"), ("c.bin", "C"), ("sub/d.raw", "D"), ("empty.txt", " ")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_text(tmp_path) == ["A", "B", "D"]


def test_missing_and_empty_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(UserError, match="no text in this folder"):
        read_text(tmp_path)
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(UserError, match=r"a\.txt: there is no text in it"):
        read_text(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(b"ok \xff")
    with pytest.raises(UserError, match="not UTF-8 text .* at byte 3"):
        read_text(tmp_path / "b.txt")


def test_hub_rows_are_documents_and_wikitext_lines_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {
        "roneneldan/TinyStories": ["Once.", " ", "Twice.", "Thrice."],
        "some/stories": [1, 2, "Thrice."],
        "Salesforce/wikitext": WIKI.splitlines(keepends=True),
    }
    module = ModuleType("datasets")
    vars(module)["load_dataset"] = lambda name, *_, **__: [{"text": row} for row in data[name]]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert read_text("roneneldan/TinyStories") == ["Once.", "Twice.", "Thrice."], "four rows, one of them blank"
    assert [d[:5] for d in read_text("wikitext")] == ["= Du ", "= Ise"]
    with pytest.raises(UserError, match='some/stories: 2 rows have no text in field "text"'):
        read_text("some/stories")


def test_packing_ends_every_document(tokenizer: Tokenizer) -> None:
    eos = tokenizer.eos_id
    assert eos is not None
    row, begins = pack(["ab", "c"], tokenizer)
    assert row.tolist() == [*tokenizer.encode("ab"), eos, *tokenizer.encode("c"), eos]
    assert begins == [0, row.tolist().index(eos) + 1]
    ids, same = pack([tuple(tokenizer.encode("ab")), "c"], tokenizer)
    assert torch.equal(ids, row)
    assert same == begins
    assert pack(["", ()], tokenizer)[1] == [0, 1]
    assert pack([], tokenizer)[0].dtype == torch.int64


@given(length=st.integers(1, 60), block_size=st.integers(1, 12))
def test_blocks_predict_every_token_once_in_order(tokenizer: Tokenizer, length: int, block_size: int) -> None:
    documents = ["x" * (length - 1)]
    row, _ = pack(documents, tokenizer)
    if len(row) <= block_size:
        with pytest.raises(UserError, match="too few for one block"):
            token_blocks(documents, tokenizer, block_size=block_size)
        return
    blocks = token_blocks(documents, tokenizer, block_size=block_size)
    targets = blocks[:, 1:].flatten()
    assert blocks.shape == ((len(row) - 1) // block_size, block_size + 1)
    assert targets.tolist() == row[1 : 1 + len(targets)].tolist()
    assert len(row) - 1 - len(targets) < block_size
    assert torch.equal(blocks[1:, 0], blocks[:-1, -1])


def test_windows_begin_where_documents_begin() -> None:
    tokenizer = tiny_tokenizer()
    documents = ["12", "3456789", "0"]  # digits are single tokens; an end-of-text token behind each document
    stream = token_stream(documents, tokenizer, context_tokens=4)
    end = tokenizer.eos_id
    digits = {digit: tokenizer.encode(digit)[0] for digit in "0123456789"}
    expected = [*(digits[d] for d in "12"), end, *(digits[d] for d in "3456789"), end, digits["0"], end]
    assert stream.token_ids.tolist() == expected
    # Documents begin at 0, 3 and 11; inside the second, 4 further on, at 7. A window and its last target take five
    # tokens of the 13, so it begins at 8 at the latest.
    assert stream.starts.tolist() == [0, 3, 7]
    windows = random_windows(stream, rows=50, context_tokens=4, seed=0, step=0)
    assert {tuple(window) for window in windows.tolist()} == {tuple(expected[i : i + 5]) for i in (0, 3, 7)}
    assert torch.equal(windows, random_windows(stream, rows=50, context_tokens=4, seed=0, step=0))
    assert not torch.equal(windows, random_windows(stream, rows=50, context_tokens=4, seed=0, step=1))


def test_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(UserError, match="the text has 5 tokens, less than one window of 5"):
        token_stream(["1234"], tiny_tokenizer(), context_tokens=5)


def test_wikitext_2_has_its_articles() -> None:
    documents = read_text(shared_data("text") / "wiki.valid.raw")
    assert len(documents) == 60
    assert documents[0].startswith("= Homarus gammarus = ")
    assert documents[1].startswith("= Frank Headlam = ")
