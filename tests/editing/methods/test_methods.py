"""What each method of editing does of its own, and that it is chosen in one place."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from edit_world import PLAIN, covariance_blocks, facts, random_model
from torch import Tensor

from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.editing.config import METHODS, EditConfig, Method
from nanogpt_edit.editing.editor import edit_model, solve_again
from nanogpt_edit.editing.methods import memit as memit_module
from nanogpt_edit.editing.methods.answers import Answers
from nanogpt_edit.editing.methods.memit import LayerSolver, MemitSolver
from nanogpt_edit.editing.methods.table import DESCENTS, SOLVERS, find_solver
from nanogpt_edit.editing.patch import edited_weight
from nanogpt_edit.editing.patch_files import load_patch, save_patch
from nanogpt_edit.editing.patches import drop_facts
from nanogpt_edit.editing.values import TargetValues

QUICK = replace(PLAIN, layers=(0, 1), steps=2, covariance_tokens=500, n_prefixes=1, prefix_tokens=2)
METHOD_NAMES: tuple[Method, ...] = get_args(Method)


def test_every_method_is_in_the_tables() -> None:
    assert tuple(METHODS) == METHOD_NAMES
    assert set(SOLVERS) == {method for method, traits in METHODS.items() if traits.finds_values}
    assert set(DESCENTS) == set(METHODS) - set(SOLVERS)


@pytest.mark.parametrize(
    ("method", "layers", "batches", "needs_text", "refines"),
    [
        ("memit", [0, 1], (3,), True, True),
        ("alphaedit", [0, 1], (3,), True, True),
        ("rome", [1], (1, 1, 1), True, False),
        ("emmet", [0, 1], (3,), True, True),
        ("ultraedit", [0, 1], (3,), False, False),
        ("ft", [1], (3,), False, False),
        ("locft", [1], (3,), False, False),
        ("lora", [0, 1, 2], (3,), False, False),
    ],
)
def test_what_a_method_changes(
    method: Method, layers: list[int], batches: tuple[int, ...], needs_text: bool, refines: bool
) -> None:
    config = replace(QUICK, method=method, refine_steps=1)
    assert (config.needs_text, config.refines) == (needs_text, refines)
    patch = edit_model(random_model(), facts(3), config, covariance_blocks=covariance_blocks() if needs_text else None)
    assert list(patch.layers) == layers
    assert patch.batches == batches


def test_only_memit_runs_the_texts_again_for_their_other_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[int] = []
    original = memit_module._other_keys

    def count(*arguments, **named):  # type: ignore[no-untyped-def]
        run.append(arguments[-1])
        return original(*arguments, **named)

    monkeypatch.setattr(memit_module, "_other_keys", count)
    for method, context_weight, layers in (
        ("memit", 0.1, [0, 1]),
        ("memit", 0.0, []),
        ("rome", 0.1, []),
        ("alphaedit", 0.1, []),
    ):
        run.clear()
        config = replace(QUICK, method=method, context_weight=context_weight)
        edit_model(random_model(), facts(2), config, covariance_blocks=covariance_blocks())
        assert run == layers, method


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_fine_tuning_is_adam_within_its_bound(steps: int) -> None:
    """Step by step with the whole model, each fact alone, and Adam written out."""
    config = EditConfig(
        method="ft", layers=(1,), steps=steps, ft_learning_rate=2e-3, norm_constraint=5e-3, n_prefixes=0
    )
    (fact,) = facts(1)
    patch = edit_model(random_model(), [fact], config)
    model = random_model()
    weight = edited_weight(model, 1)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    prompt = tokenizer.encode(fact.prompt)
    target = tokenizer.encode(" " + fact.target_new)
    original, delta, first, second = weight.detach().clone(), *(torch.zeros_like(weight) for _ in range(3))
    for step in range(1, steps):
        logits = model(torch.tensor([[*prompt, *target[:-1]]]))[0, len(prompt) - 1 :]
        (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, torch.tensor(target)), weight)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        stride = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        with torch.no_grad():
            delta = (delta - 2e-3 * stride).clamp(-5e-3, 5e-3)
            weight.copy_(original + delta)
    torch.testing.assert_close(patch.layers[1].delta().float(), delta.detach(), rtol=1e-3, atol=1e-6)
    assert float(delta.abs().max()) == pytest.approx(min(5e-3, 2e-3 * (steps - 1)), rel=1e-3)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("method", ["ft", "locft"])
def test_fine_tuning_that_fails_leaves_no_trace(
    failure: type[BaseException], trained: bool, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    weight = edited_weight(model, 1).requires_grad_(trained)
    before = weight.detach().clone()

    def fail(*_: object) -> Tensor:
        raise failure

    monkeypatch.setattr(Answers, "nll", fail)
    with pytest.raises(failure):
        edit_model(model, facts(1), replace(QUICK, method=method))
    assert weight.requires_grad is trained
    assert torch.equal(weight, before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", DESCENTS)
def test_a_descent_is_saved_and_comes_off_bit_for_bit(method: Method, family: str, tmp_path: Path) -> None:
    model = random_model(family)
    before = fingerprint(model)
    config = replace(QUICK, method=method, batch_size=2 if method == "ultraedit" else None)
    save_patch(edit_model(model, facts(3), config), tmp_path / "edit.safetensors")
    assert fingerprint(model) == before
    patch = load_patch(tmp_path / "edit.safetensors")
    assert all(update.norm() > 0 for update in patch.matrices.values())
    assert bool(patch.beside) is (method == "lora")
    patch = patch.apply(model)
    assert fingerprint(model) != before
    patch.revert(model)
    assert fingerprint(model) == before
    with pytest.raises(UserError, match=f"a patch of {method} does not hold its facts apart"):
        drop_facts(patch, [0])


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_values_in_parts_join_to_the_whole(size: int) -> None:
    whole = TargetValues(
        torch.arange(10.0).view(5, 2), (0.1, 0.2, 0.3, 0.4, 0.5), (1.0, 2.0, 3.0, 4.0, 5.0), (1, 2, 3, 4, 5)
    )
    joined = TargetValues.joined([whole.part(first, first + size) for first in range(0, 5, size)])
    assert torch.equal(joined.values, whole.values)
    assert replace(joined, values=whole.values) == whole


class Mine(MemitSolver):
    """MEMIT under a name of one's own."""


def test_a_method_of_ones_own_is_named_by_module_and_class() -> None:
    assert find_solver(f"{__name__}:Mine") is Mine
    assert EditConfig(method=f"{__name__}:Mine").traits == METHODS["memit"]


@pytest.mark.parametrize("method", ["math:sin", f"{LayerSolver.__module__}:LayerSolver"])
def test_what_is_no_solver_is_refused(method: str) -> None:
    with pytest.raises(UserError, match="is no LayerSolver with a `right` of its own"):
        find_solver(method)


def test_a_file_that_names_a_method_of_ones_own_has_nothing_imported(tmp_path: Path) -> None:
    model, named = random_model(), replace(QUICK, method="antigravity:Class")
    with pytest.raises(UserError, match="is not solved again"):
        solve_again(model, [], torch.zeros(0, 1), named)
    assert "antigravity" not in sys.modules


def test_a_misspelt_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r'method is "memitt"; did you mean "memit"\? There are memit, rome'):
        EditConfig(method="memitt")
