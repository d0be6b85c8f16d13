"""GGUF files: what llama.cpp's converter writes gives transformers' logits, of whatever type; what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import gguf_files
import pytest
import torch
from gguf_files import FAMILIES, as_quantised, random_model, write_gguf

from nanogpt_edit.checkpoint import checkpoint

IDS = torch.randint(0, gguf_files.ROWS, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q6_K"])
def test_logits_are_those_of_the_dequantised_model(family: str, type: str, tmp_path: Path) -> None:
    """Quantised row by row, so that the order of rows makes no difference to it."""
    model = random_model(family)
    ours = checkpoint.load(write_gguf(tmp_path / "m.gguf", model, type))
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), as_quantised(model, type)(IDS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_is_tied_where_the_file_has_none(family: str, tmp_path: Path) -> None:
    for tied in (True, False):
        model = random_model(family, width=32, tie_word_embeddings=tied)
        ours = checkpoint.load(write_gguf(tmp_path / f"{tied}.gguf", model))
        assert ours.config.tie_embeddings == tied
        with torch.no_grad():
            torch.testing.assert_close(ours(IDS), model(IDS).logits, rtol=0, atol=2e-5)
