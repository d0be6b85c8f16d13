"""Values of one norm: by hand, and in an edit of several batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from edit_world import PLAIN, covariance_blocks, facts, random_model

from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import locate_facts
from nanogpt_edit.editing.editor import edit_model, solve_again
from nanogpt_edit.editing.methods.anchor import anchored, subject_outputs, usual_norm


def test_the_usual_norm_leaves_out_the_largest_twentieth() -> None:
    norms = torch.tensor([1000.0, *([2.0] * 10), *([4.0] * 9)])
    assert usual_norm(norms) == pytest.approx((2 * 10 + 4 * 9) / 19)
    assert usual_norm(torch.tensor([3.0, 5.0])) == 4.0


def test_values_are_scaled_to_one_norm_by_hand() -> None:
    """Norms 1, 5 and 9: two become 2.5, the third is beyond 2 · 2.5, and its fact stays as it is."""
    wanted = torch.tensor([[0.6, 0.8], [3.0, 4.0], [0.0, 9.0]])
    written = torch.tensor([[7.0, 7.0], [7.0, 7.0], [1.0, 1.0]])
    torch.testing.assert_close(anchored(wanted, written, 2.5), torch.tensor([[1.5, 2.0], [1.5, 2.0], [1.0, 1.0]]))


def test_what_the_mlp_is_to_write_has_the_norm_of_the_first_batch() -> None:
    config = replace(PLAIN, layers=(0, 1), batch_size=2, steps=4, covariance_tokens=500, n_prefixes=0)
    model, blocks = random_model(), covariance_blocks()
    free = edit_model(model, facts(4), config, covariance_blocks=blocks)
    held = edit_model(model, facts(4), replace(config, anchor_norms=True), covariance_blocks=blocks)
    h, written = subject_outputs(model, locate_facts(model, facts(2), ()), 1)
    wanted = written + free.values[:2] - h
    norm = usual_norm(wanted.norm(dim=1))
    torch.testing.assert_close((written + held.values[:2] - h).norm(dim=1), torch.tensor([norm, norm]))
    assert [edited.shift for edited in held.edited[:2]] == pytest.approx(
        ((held.values[:2] - h).norm(dim=1) / h.norm(dim=1)).tolist()
    )
    again = solve_again(model, held.edited, held.values, held.config, covariance_blocks=blocks)
    assert again.config == held.config
    for layer, update in again.layers.items():
        torch.testing.assert_close(update.delta(), held.layers[layer].delta())


def test_the_published_method_has_none() -> None:
    assert not EditConfig(preset="published", anchor_norms=True).anchor_norms
