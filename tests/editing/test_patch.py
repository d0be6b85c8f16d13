"""A patch changes the weights it was made for, comes off bit for bit, and refuses everything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edit_world import PLAIN, covariance_blocks, facts, random_model, trained_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.editing import editor
from nanogpt_edit.editing.config import Method
from nanogpt_edit.editing.contexts import LocatedFact
from nanogpt_edit.editing.covariance import collect
from nanogpt_edit.editing.editor import edit_model, solve_again
from nanogpt_edit.editing.patch import (
    EditPatch,
    LayerUpdate,
    add_delta,
    down_name,
    edited_weight,
    on_grid,
    subtract_delta,
)
from nanogpt_edit.editing.patch_files import load_patch, save_patch
from nanogpt_edit.editing.patches import diff_patches, drop_facts, find_conflicts, merge_patches, rebase_patch
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT

CONFIG = replace(
    PLAIN, layers=(0, 1), covariance_weight=20.0, learning_rate=0.3, steps=30, n_prefixes=1, prefix_tokens=3
)


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(request.param)


@pytest.fixture
def patch(model: GPT) -> EditPatch:
    return edit_model(model, facts(3), CONFIG, covariance_blocks=covariance_blocks())


def weights(model: GPT) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(before: dict[str, Tensor], model: GPT) -> bool:
    """Bit for bit: `torch.equal` would let −0 pass for 0."""
    return all(
        torch.equal(value.view(torch.int32), before[name].view(torch.int32))
        for name, value in model.state_dict().items()
    )


def test_making_a_patch_leaves_the_model_as_it_was(model: GPT) -> None:
    before = weights(model)
    edit_model(model, facts(3), CONFIG, covariance_blocks=covariance_blocks())
    assert same(before, model)


def test_a_failed_edit_leaves_the_model_as_it_was(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    before, calls = weights(model), []

    def fail_at_the_second_layer(*_: object, **__: object) -> Tensor:
        calls.append(not same(before, model))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return torch.ones(6, model.config.mlp_size, dtype=torch.float64)  # two contexts of each of three facts

    monkeypatch.setattr("nanogpt_edit.editing.methods.memit.memit_right", fail_at_the_second_layer)
    with pytest.raises(KeyboardInterrupt):
        edit_model(model, facts(3), CONFIG, covariance_blocks=covariance_blocks())
    assert calls == [False, True]  # the first layer had been changed when it failed
    assert same(before, model)
    assert all(weight.requires_grad for weight in model.parameters())


def test_an_edit_that_fails_before_it_begins_leaves_the_model_learning(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(editor, "EditedLayer", fail)
    with pytest.raises(MemoryError):
        edit_model(model.train(), facts(3), CONFIG, covariance_blocks=covariance_blocks())
    assert model.training and all(weight.requires_grad for weight in model.parameters())


def test_a_patch_names_the_covariances_that_it_was_solved_with(model: GPT, patch: EditPatch) -> None:
    tokens = CONFIG.covariance_tokens
    found = collect(model, covariance_blocks(), layers=CONFIG.layers, max_tokens=tokens, tolerance=0.0)
    assert {layer: update.covariance_sha256 for layer, update in patch.layers.items()} == {
        layer: each.sha256() for layer, each in found.items()
    }


@pytest.mark.parametrize("method", ["memit", "ft", "locft", "lora", "ultraedit"])
def test_weights_have_no_slopes_while_they_are_edited_and_those_they_had_afterwards(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = random_model("llama"), list[bool]()
    asked = model.embed.weight.requires_grad_(False)  # frozen by whoever lends the model
    located = editor.locate_facts

    def look(*args: Any, **kwargs: Any) -> tuple[LocatedFact, ...]:
        seen.append(any(weight.requires_grad for weight in model.parameters()))
        return located(*args, **kwargs)

    monkeypatch.setattr(editor, "locate_facts", look)
    edit_model(model, facts(2), replace(CONFIG, method=method, steps=2), covariance_blocks=covariance_blocks())
    assert seen == [False]
    assert all(weight.requires_grad == (weight is not asked) for weight in model.parameters())


def test_inside_with_the_model_is_edited_and_afterwards_bitwise_restored(model: GPT, patch: EditPatch) -> None:
    before = weights(model)
    with patch.applied(model):
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        assert changed == ["blocks.0.mlp.down.weight", "blocks.1.mlp.down.weight"]
    assert same(before, model)
    with pytest.raises(ZeroDivisionError), patch.applied(model):
        raise ZeroDivisionError
    assert same(before, model)


def test_apply_then_revert_is_bitwise(model: GPT, patch: EditPatch, tmp_path: Path) -> None:
    before = weights(model)
    bound = patch.apply(model)
    assert not same(before, model)
    save_patch(bound, tmp_path / "edit.safetensors")
    load_patch(tmp_path / "edit.safetensors").revert(model)
    assert same(before, model)


def test_two_patches_come_off_in_reverse_order_only(model: GPT, patch: EditPatch) -> None:
    before = weights(model)
    first = patch.apply(model)
    second = edit_model(model, facts(5)[3:], CONFIG, covariance_blocks=covariance_blocks()).apply(model)
    with pytest.raises(UserError, match="newest first"):
        first.revert(model)
    second.revert(model)
    first.revert(model)
    assert same(before, model)


def test_bfloat16_weights_come_back_too() -> None:
    model = random_model().to(torch.bfloat16)
    before = weights(model)
    patch = edit_model(model, facts(2), CONFIG, covariance_blocks=covariance_blocks())
    bound = patch.apply(model)
    assert not torch.equal(edited_weight(model, 0), before["blocks.0.mlp.down.weight"])
    bound.revert(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value.view(torch.int16), before[name].view(torch.int16))


@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-6, 1e3),
    rank=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_change_is_exact_and_comes_off(seed: int, scale: float, rank: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 11, generator=generator).to(dtype)
    left = scale * torch.randn(6, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, 11, generator=generator, dtype=torch.float64)
    left, right = on_grid(left, right)
    order = torch.randperm(rank, generator=generator)
    exact, shuffled = left.double() @ right.double(), left[:, order].double() @ right[order].double()
    assert torch.equal(exact, shuffled)  # the order of summation does not matter
    update = LayerUpdate(left=left, right=right, keys=torch.zeros(11, rank), expected_sha256="")
    back = subtract_delta(add_delta(weight, update), update)
    assert (back.double() - weight.double()).abs().max() <= 1e-2 * (1 + exact.abs().max())


def test_the_grid_keeps_the_factors_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(8, 50, generator=generator, dtype=torch.float64)
    right = torch.randn(50, 32, generator=generator, dtype=torch.float64)
    rounded_left, rounded_right = on_grid(left, right)
    torch.testing.assert_close(rounded_left.double() @ rounded_right.double(), left @ right, rtol=0, atol=2e-5)


def test_a_file_keeps_everything(model: GPT, patch: EditPatch, tmp_path: Path) -> None:
    file = tmp_path / "edit.safetensors"
    save_patch(patch, file)
    read = load_patch(file)
    assert read.edited == patch.edited
    assert read.config == patch.config
    assert (read.batches, read.created, read.seconds) == (patch.batches, patch.created, patch.seconds)
    assert torch.equal(read.values, patch.values)
    for layer, update in patch.layers.items():
        assert torch.equal(read.layers[layer].left, update.left)
        assert torch.equal(read.layers[layer].right, update.right)
        assert read.layers[layer].expected_sha256 == update.expected_sha256
        assert read.layers[layer].covariance_sha256 == update.covariance_sha256
    read.check(model)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(model: GPT, patch: EditPatch, tmp_path: Path, keep: float) -> None:
    file = tmp_path / "edit.safetensors"
    save_patch(patch, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(UserError, match=r"edit\.safetensors: damaged, not a whole"):
        load_patch(file)


def test_one_flipped_bit_is_refused(patch: EditPatch, tmp_path: Path) -> None:
    file = tmp_path / "edit.safetensors"
    save_patch(patch, file)
    whole = bytearray(file.read_bytes())
    whole[-5] ^= 1
    file.write_bytes(whole)
    with pytest.raises(UserError, match="do not match its checksum"):
        load_patch(file)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_patch(tmp_path / "absent.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not a patch|a patch of another version"):
        load_patch(tmp_path / "model.safetensors")


def test_the_wrong_model_is_refused(model: GPT, patch: EditPatch) -> None:
    before = weights(model)
    with torch.no_grad():
        edited_weight(model, 1)[0, 0] += 1.0
    for attempt in (patch.apply, lambda m: patch.applied(m).__enter__()):
        with pytest.raises(UserError, match=r"made for other weights: layer 1 .*--rebase"):
            attempt(model)
    assert torch.equal(edited_weight(model, 0), before["blocks.0.mlp.down.weight"])


def test_another_size_is_refused(patch: EditPatch) -> None:
    wide = GPT(GPTConfig(vocab_size=300, block_size=64, n_layer=3, n_head=4, n_embd=64), seed=0)
    with pytest.raises(UserError, match="the model's is 64 × 256: another model's patch"):
        patch.apply(wide)
    shallow = GPT(GPTConfig(vocab_size=300, block_size=64, n_layer=1, n_head=4, n_embd=48), seed=0)
    with pytest.raises(UserError, match="another model's patch"):
        patch.apply(shallow)


def test_applying_twice_is_refused(model: GPT, patch: EditPatch) -> None:
    bound = patch.apply(model)
    with pytest.raises(UserError, match="already applied"):
        bound.apply(model)


def test_dropping_a_fact_equals_an_edit_without_it() -> None:
    """On one layer exactly; the values of the facts that stay are the same ones."""
    model, config = trained_model(), replace(CONFIG, layers=(1,))
    whole = edit_model(model, facts(4), config, covariance_blocks=covariance_blocks())
    dropped = drop_facts(whole, [1])
    kept = [0, 2, 3]
    without = solve_again(
        model, [whole.edited[i] for i in kept], whole.values[kept], config, covariance_blocks=covariance_blocks()
    )
    assert [e.fact.id for e in dropped.edited] == ["capital-0", "capital-2", "capital-3"]
    expected = without.layers[1].delta()
    torch.testing.assert_close(dropped.layers[1].delta(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert [e.columns for e in dropped.edited] == [2, 2, 2]
    assert dropped.bound_to(model).apply(model).edited == dropped.edited


def test_impossible_drops_are_named(model: GPT, patch: EditPatch) -> None:
    with pytest.raises(UserError, match="facts 0 to 2; there is no fact 17"):
        drop_facts(patch, [17])
    with pytest.raises(UserError, match="leaves no patch"):
        drop_facts(patch, [0, 1, 2])


def test_merging_solves_jointly_and_names_conflicts() -> None:
    model, config, blocks = trained_model(), replace(CONFIG, layers=(0,)), covariance_blocks()
    first = edit_model(model, facts(2), config, covariance_blocks=blocks)
    second = edit_model(model, facts(4)[2:], config, covariance_blocks=blocks)
    merged = merge_patches(model, first, second, covariance_blocks=blocks)
    joint = solve_again(
        model,
        (*first.edited, *second.edited),
        torch.cat((first.values, second.values)),
        config,
        covariance_blocks=blocks,
    )
    assert torch.equal(merged.layers[0].delta(), joint.layers[0].delta())
    assert len(merge_patches(model, merged, second, covariance_blocks=blocks).edited) == 4  # the same facts count once

    other = replace(facts(1)[0], target_new="Sofia", prompt="the capital city, in short: Valdoria")
    against = edit_model(model, [other], config, covariance_blocks=blocks)
    assert [c.describe() for c in find_conflicts(first, against)] == ['"capital of Valdoria": "Quito" against "Sofia"']
    with pytest.raises(UserError, match="contradict each other"):
        merge_patches(model, first, against, covariance_blocks=blocks)


def test_rebase_edits_other_weights_anew(model: GPT, patch: EditPatch) -> None:
    with torch.no_grad():
        edited_weight(model, 1)[0, 0] += 1.0
    rebased = rebase_patch(model, patch, covariance_blocks=covariance_blocks())
    rebased.check(model)
    assert rebased.facts == patch.facts


def test_a_difference_lists_facts_and_norms(model: GPT, patch: EditPatch) -> None:
    smaller = drop_facts(patch, [0])
    difference = diff_patches(patch, smaller)
    assert [fact.id for fact in difference.only_first] == ["capital-0"]
    assert difference.only_second == ()
    assert len(difference.both) == 2
    assert difference.same_base
    whole, part, apart = difference.weight_change[down_name(0)]
    assert whole == pytest.approx(float(patch.layers[0].delta().norm()))
    assert apart == pytest.approx(float((patch.layers[0].delta() - smaller.layers[0].delta()).norm()))
    assert part > 0
    assert diff_patches(patch, patch).weight_change[down_name(1)][2] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["blocks.1.mlp.down.weight", "embed.weight"])
def test_an_edit_of_a_model_that_holds_no_numbers_is_refused(name: str, wrong: float) -> None:
    model = random_model()
    with torch.no_grad():
        model.get_parameter(name)[:] = wrong
    with pytest.raises(UserError, match="infinite numbers|not finite"):
        edit_model(model, facts(1), replace(CONFIG, steps=2, n_prefixes=0), covariance_blocks=covariance_blocks())
