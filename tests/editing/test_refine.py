"""Residuals refined through the weights: the loss is that of the edited model, the price that of ordinary text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from edit_world import PLAIN, covariance_blocks, facts, trained_model
from torch import Tensor

from nanogpt_edit.editing import refine as refine_module
from nanogpt_edit.editing.contexts import LocatedFact, generate_prefixes, locate_facts
from nanogpt_edit.editing.covariance import collect
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch import EditPatch, edited_weight
from nanogpt_edit.editing.refine import OrdinaryText, Update, refine_residuals
from nanogpt_edit.editing.scores import score_patch
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import capture

CONFIG = replace(
    PLAIN, layers=(0, 1), covariance_weight=20.0, learning_rate=0.3, steps=3, n_prefixes=1, prefix_tokens=3, clamp=3.0
)


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> GPT:
    return trained_model(request.param)


def edited(model: GPT) -> tuple[EditPatch, tuple[LocatedFact, ...], dict[int, Update]]:
    """A weak edit of four facts, and what refining it starts from."""
    patch = edit_model(model, facts(4), CONFIG, covariance_blocks=covariance_blocks())
    found = collect(model, covariance_blocks(), layers=CONFIG.layers, max_tokens=10**6, tolerance=0.0)
    owner = torch.arange(4).repeat_interleave(torch.tensor([each.columns for each in patch.edited]))
    updates = {
        layer: Update(each.left.double(), each.right.double(), each.keys.double(), owner, found[layer].matrix)
        for layer, each in patch.layers.items()
    }
    return patch, locate_facts(model, facts(4), generate_prefixes(model, CONFIG)), updates


@torch.no_grad()
def plain_nll(model: GPT, located: tuple[LocatedFact, ...]) -> Tensor:
    """Nats per target token, one full forward pass per text."""
    totals = []
    for fact in located:
        each = []
        for row in fact.contexts:
            logprobs = model(torch.tensor([(*row.token_ids, *fact.target_ids[:-1])]))[0].log_softmax(-1)
            start = len(row.token_ids) - 1
            each.append(-torch.stack([logprobs[start + j, t] for j, t in enumerate(fact.target_ids)]).mean())
        totals.append(torch.stack(each).mean())
    return torch.stack(totals)


def test_the_loss_is_the_edited_models(model: GPT) -> None:
    patch, located, updates = edited(model)
    layers = {layer: refine_module._LayerResiduals.of(update, model) for layer, update in updates.items()}
    generator = torch.Generator().manual_seed(0)
    shifts = {layer: 0.3 * torch.randn(48, 4, generator=generator) for layer in layers}
    asked = refine_module._FactTexts.of(model, located, first=0)
    with patch.applied(model):
        with torch.no_grad(), refine_module._with_shifts(model, layers, shifts):
            found, _, _ = asked.nll(model)
        with torch.no_grad():
            for layer, each in layers.items():
                columns = (shifts[layer] @ each.spread).double()
                edited_weight(model, layer).add_(columns @ updates[layer].right)
        torch.testing.assert_close(found, plain_nll(model, located), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [2, 60])  # fewer and more facts than make the two products cheaper
def test_a_change_not_yet_in_the_weights_acts_as_if_it_were(n: int) -> None:
    model, generator = trained_model(), torch.Generator().manual_seed(0)
    right, shift = 0.1 * torch.randn(n, 192, generator=generator), torch.randn(48, n, generator=generator)
    layer = refine_module._LayerResiduals(start=shift, gram=right @ right.T, right=right, spread=torch.eye(n))
    tokens = covariance_blocks()[:2]
    with torch.no_grad(), refine_module._with_shifts(model, {1: layer}, {1: shift}):
        found = model(tokens)
    with torch.no_grad():
        edited_weight(model, 1).add_(shift @ right)
        torch.testing.assert_close(found, model(tokens), rtol=1e-3, atol=1e-3)


def test_a_shift_of_one_answers_with_one_at_the_facts_own_keys(model: GPT) -> None:
    """The two contexts of each fact move together; at a fact's own keys its shift comes back, on average."""
    _, located, updates = edited(model)
    layer = refine_module._LayerResiduals.of(updates[1], model)
    answers = layer.right.double() @ updates[1].keys * 2**0.5  # (4, 8): each column is its key over √2
    own = answers.unflatten(1, (4, 2)).mean(-1).diagonal()
    torch.testing.assert_close(own, torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    assert [len(fact.contexts) for fact in located] == [2, 2, 2, 2]


def test_the_price_is_what_ordinary_text_feels(model: GPT) -> None:
    _, _, updates = edited(model)
    with torch.no_grad(), capture(model, [("mlp_key", 1)]) as seen:
        model(covariance_blocks())
    keys = seen["mlp_key", 1].flatten(0, 1).double()
    felt = (keys @ (updates[1].left @ updates[1].right).T).square().sum(-1).mean()
    layer = refine_module._LayerResiduals.of(updates[1], model)
    assert float(layer.price(torch.zeros(48, 4))) == pytest.approx(float(felt), rel=1e-3)


def test_refining_lowers_the_loss_and_leaves_the_model_as_it_was(model: GPT) -> None:
    patch, located, updates = edited(model)
    with patch.applied(model):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        start = plain_nll(model, located)
        better = refine_residuals(model, located, updates, replace(CONFIG, refine_steps=10))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        for layer, left in better.items():
            with torch.no_grad():
                edited_weight(model, layer).add_((left - updates[layer].left) @ updates[layer].right)
        assert plain_nll(model, located).sum() < 0.5 * start.sum()


@torch.no_grad()
def test_the_kl_is_between_before_and_now(model: GPT) -> None:
    patch, _, _ = edited(model)
    blocks = covariance_blocks()[:5]
    text = OrdinaryText.of(model, blocks, CONFIG)
    rows = torch.arange(5)
    assert float(text.kl(model, rows, 0)) == pytest.approx(0.0, abs=1e-6)
    before = model(blocks).log_softmax(-1)
    with patch.applied(model):
        now, found = model(blocks).log_softmax(-1), text.kl(model, rows, 0)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(CONFIG.seed))
    assert float(found) == pytest.approx(float((before.exp() * (before - now)).sum(-1)[order].mean()), rel=1e-3)


def test_the_kl_spares_ordinary_text() -> None:
    model = trained_model()
    blocks = covariance_blocks()
    felt = []
    for weight in (0.0, 30.0):
        config = replace(CONFIG, refine_steps=25, refine_weight=0.0, refine_kl=weight)
        patch = edit_model(model, facts(2), config, covariance_blocks=blocks)
        text = OrdinaryText.of(model, blocks, config)
        with patch.applied(model), torch.no_grad():
            felt.append(float(text.kl(model, torch.arange(len(text.states)), 0)))
    assert felt[1] < 0.8 * felt[0]


def test_chunks_do_not_change_the_result(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, located, updates = edited(model)
    config = replace(CONFIG, refine_steps=3)
    with patch.applied(model):
        whole = refine_residuals(model, located, updates, config)
        monkeypatch.setattr(refine_module, "CHUNK_TOKENS", 1)
        parts = refine_residuals(model, located, updates, config)
    for layer in whole:
        torch.testing.assert_close(parts[layer], whole[layer], rtol=1e-3, atol=1e-3)


def test_a_heavy_price_undoes_the_edit() -> None:
    """But what sets the contexts of a fact apart: they move together."""
    model = trained_model()
    patch, located, updates = edited(model)
    with patch.applied(model):
        weak = refine_residuals(model, located, updates, replace(CONFIG, refine_steps=60, refine_weight=1e4))
    for layer, left in weak.items():
        assert (left @ updates[layer].right).norm() < 0.4 * (updates[layer].left @ updates[layer].right).norm()


@pytest.mark.parametrize("method", ["memit", "alphaedit"])
def test_an_edit_refined_says_the_facts(method: str) -> None:
    model = trained_model()
    config = replace(CONFIG, method=method, null_share=0.3, ridge=1e-3, refine_steps=20, batch_size=2)  # type: ignore[arg-type]
    weak = edit_model(model, facts(4), replace(config, refine_steps=0), covariance_blocks=covariance_blocks())
    sure = edit_model(model, facts(4), config, covariance_blocks=covariance_blocks())
    before, after = score_patch(model, weak), score_patch(model, sure)
    assert after.success.value == 1.0
    assert after.p_target_after.value > before.p_target_after.value
