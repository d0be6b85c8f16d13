from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import shared_data
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.text import pack, random_blocks, read_text, token_blocks
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
    assert read_text([tmp_path / "b.md", str(tmp_path)], limit=3) == ["B", "A", "B"]


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
        "Salesforce/wikitext": WIKI.splitlines(keepends=True),
    }
    module = ModuleType("datasets")
    vars(module)["load_dataset"] = lambda name, *_, **__: [{"text": row} for row in data[name]]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert read_text("roneneldan/TinyStories", limit=3) == ["Once.", "Twice."], "three rows, one of them blank"
    assert [d[:5] for d in read_text("wikitext")] == ["= Du ", "= Ise"]
    with pytest.raises(UserError, match='4 rows have no text in field "story"'):
        read_text("roneneldan/TinyStories", text_field="story")


def test_packing_ends_every_document(tokenizer: Tokenizer) -> None:
    eos = tokenizer.eos_id
    assert eos is not None
    assert pack(["ab", "c"], tokenizer).tolist() == [*tokenizer.encode("ab"), eos, *tokenizer.encode("c"), eos]


@given(length=st.integers(1, 60), block_size=st.integers(1, 12))
def test_blocks_predict_every_token_once_in_order(tokenizer: Tokenizer, length: int, block_size: int) -> None:
    documents = ["x" * (length - 1)]
    row = pack(documents, tokenizer)
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


def test_random_blocks_are_shifted_by_one_seeded_and_reach_both_ends() -> None:
    row = torch.arange(10)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = random_blocks(row, block_size=4, batch_size=200, generator=generator)
    assert inputs.shape == targets.shape == (200, 4)
    assert torch.equal(inputs + 1, targets)
    assert set(inputs[:, 0].tolist()) == set(range(6)), "every place a block fits, the last target included"
    again = random_blocks(row, block_size=4, batch_size=200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again[0], inputs)
    with pytest.raises(UserError, match="10 tokens, too few for one block of 10"):
        random_blocks(row, block_size=10, batch_size=1, generator=generator)


def test_wikitext_2_has_its_articles() -> None:
    documents = read_text(shared_data("text") / "wiki.valid.raw")
    assert len(documents) == 60
    assert documents[0].startswith("= Homarus gammarus = ")
    assert documents[1].startswith("= Frank Headlam = ")
