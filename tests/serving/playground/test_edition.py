"""An edit with a dial: every setting is worked out from the original, the ends are bit for bit right."""

from __future__ import annotations

import pytest
import torch
from edit_world import PLAIN, covariance_blocks, facts, trained_model

from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch import EditPatch, edited_weight
from nanogpt_edit.editing.patches import scale_patch
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.playground.edition import Edition
from nanogpt_edit.serving.playground.twin import twin

FACTS = 3


@pytest.fixture(scope="module")
def model() -> GPT:
    return trained_model()


@pytest.fixture(scope="module")
def patch(model: GPT) -> EditPatch:
    return edit_model(model, facts(FACTS), PLAIN, covariance_blocks=covariance_blocks())


@pytest.fixture
def edition(model: GPT, patch: EditPatch) -> Edition:
    return Edition.of("small+edit-1", "small", model, patch, below=None)


def test_a_twin_shares_all_but_its_own_and_changes_nothing_of_the_first(model: GPT) -> None:
    before = fingerprint(model)
    other = twin(model, own={"blocks.1.mlp.down.weight"})
    assert fingerprint(other) == before
    assert other.embed.weight.data_ptr() == model.embed.weight.data_ptr()
    with torch.no_grad():
        edited_weight(other, 1).zero_()
    assert fingerprint(model) == before


def test_at_full_strength_it_is_the_applied_patch_and_at_none_the_original(
    model: GPT, patch: EditPatch, edition: Edition
) -> None:
    original = fingerprint(model)
    with patch.applied(twin(model, own=patch.matrices)) as applied:
        assert fingerprint(edition.model) == fingerprint(applied) != original
    edition.turn(0.0, [1.0] * FACTS)
    assert fingerprint(edition.model) == original
    edition.turn(1.0, [0.0] * FACTS)
    assert fingerprint(edition.model) == original == fingerprint(model)


def test_a_setting_does_not_depend_on_those_before(edition: Edition) -> None:
    at_once = fingerprint(edition.model)
    for scale in (0.05, 1.5, 0.7, 1.0):
        edition.turn(scale, [1.0] * FACTS)
    assert fingerprint(edition.model) == at_once


def test_a_switch_takes_away_exactly_that_facts_columns(patch: EditPatch, edition: Edition) -> None:
    edition.turn(0.5, [1.0, 0.0, 1.0])
    columns = [each.columns for each in patch.edited]
    first, second = columns[0], columns[0] + columns[1]
    for layer, update in patch.layers.items():
        left, right = update.left.double(), update.right.double()
        kept = left[:, :first] @ right[:first] + left[:, second:] @ right[second:]
        found = edited_weight(edition.model, layer).double() - edited_weight(edition.parent, layer).double()
        torch.testing.assert_close(found, 0.5 * kept, rtol=0, atol=1e-6 * float(kept.abs().max()) + 1e-7)


def test_what_is_saved_is_what_is_set_and_comes_off_again(edition: Edition, model: GPT) -> None:
    edition.turn(0.5, [1.0, 0.0, 1.0])
    saved, other = edition.saved(), twin(model, own=edition.patch.matrices)
    assert [each.fact for each in saved.edited] == [facts(FACTS)[0], facts(FACTS)[2]]
    bound = saved.apply(other)
    assert fingerprint(other) == fingerprint(edition.model)
    bound.revert(other)
    assert fingerprint(other) == fingerprint(model)


def test_undone_is_bit_for_bit(edition: Edition) -> None:
    edition.turn(1.35, [1.0, 0.4, 0.0])
    assert edition.undone()
    assert fingerprint(edition.model) == edition.patch.base_fingerprint


def test_what_cannot_be_set_changes_nothing(edition: Edition) -> None:
    before = fingerprint(edition.model)
    for scale, switches in ((1.6, [1.0] * FACTS), (float("nan"), [1.0] * FACTS), (1.0, [1.0]), (1.0, [-1.0] * FACTS)):
        with pytest.raises(UserError):
            edition.turn(scale, switches)
    assert fingerprint(edition.model) == before and edition.scale == 1.0


def test_a_fine_tuned_patch_is_scaled_as_a_whole_only(model: GPT) -> None:
    tuned = edit_model(model, facts(2), PLAIN.with_fields({"method": "ft", "steps": 2}))
    half = scale_patch(tuned, [0.5, 0.5])
    layer = next(iter(tuned.layers))
    torch.testing.assert_close(half.layers[layer].delta(), 0.5 * tuned.layers[layer].delta(), rtol=1e-5, atol=1e-8)
    with pytest.raises(UserError, match="scaled together"):
        scale_patch(tuned, [0.5, 1.0])
    with pytest.raises(UserError, match="every fact is switched off"):
        scale_patch(tuned, [0.0, 0.0])
