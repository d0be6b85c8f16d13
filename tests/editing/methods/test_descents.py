"""UltraEdit and LocFT-BF step by step: each fact alone through the whole model, slopes by autograd, Adam by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from edit_world import PLAIN, facts, random_model
from torch import Tensor

from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.contexts import locate_facts
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.methods import locft
from nanogpt_edit.editing.methods.ultraedit import answer_features
from nanogpt_edit.editing.patch import edited_weight
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import capture
from nanogpt_edit.model.tokenizer import tokenizer_of

LAYERS = (0, 2)
UNEQUAL = tuple(
    replace(fact, target_new=answer) for fact, answer in zip(facts(3), ("Quito", "Rome Lima", "Accra x"), strict=True)
)


def asked(model: GPT, fact: Fact) -> tuple[Tensor, Tensor]:
    """The prompt with the answer, and the answer's tokens."""
    tokenizer = tokenizer_of(model)
    whole = tokenizer.encode(f"{fact.prompt} {fact.target_new}")
    answer = len(whole) - len(tokenizer.encode(fact.prompt))
    return torch.tensor([whole[:-1]]), torch.tensor(whole[-answer:])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ultraedits_features_are_those_of_every_answer_token(family: str) -> None:
    model = random_model(family)
    located = locate_facts(model, UNEQUAL, ())
    found = answer_features(model, located, LAYERS)
    assert {len(fact.target_ids) for fact in located} != {1}
    for layer in LAYERS:
        keys, slopes = [], []
        for fact in UNEQUAL:
            token_ids, answer = asked(model, fact)
            weight = edited_weight(model, layer).requires_grad_()
            with capture(model, [("mlp_key", layer), ("mlp_out", layer)]) as seen:
                nats = F.cross_entropy(model(token_ids)[0, -len(answer) :], answer, reduction="sum")
                slope = torch.autograd.grad(nats, seen["mlp_out", layer])[0][0, -len(answer) :]
            keys.append(seen["mlp_key", layer][0, -len(answer) :].detach())
            slopes.append(slope)
            weight.requires_grad_(False)
        torch.testing.assert_close(found[layer][0].float(), torch.cat(keys), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[layer][1].float(), torch.cat(slopes), rtol=1e-3, atol=1e-5)


def test_ultraedit_goes_on_from_the_batch_before() -> None:
    """Two batches: the second's slopes are of the edited model, its statistics of both batches; layers share them."""
    model, rate = random_model(), 1e-4
    config = replace(PLAIN, method="ultraedit", layers=(0, 1), batch_size=2, ultraedit_rate=rate, n_prefixes=0)
    patch = edit_model(model, UNEQUAL, config)
    assert patch.batches == (2, 1)
    rows: list[Tensor] = []
    for batch in (UNEQUAL[:2], UNEQUAL[2:]):
        features = answer_features(model, locate_facts(model, batch, ()), (0, 1))
        rows += [torch.cat(each, dim=1) for each in features.values()]
        mean, deviation = torch.cat(rows).mean(0), torch.cat(rows).std(0)
        for layer, (h, g) in features.items():
            h_hat = (h - mean[: h.shape[1]]) / deviation[: h.shape[1]]
            g_hat = (g - mean[h.shape[1] :]) / deviation[h.shape[1] :]
            v = -rate * h_hat.square().sum(1, keepdim=True) * g_hat
            delta = torch.linalg.solve(h.T @ h + torch.eye(h.shape[1], dtype=h.dtype), h.T @ v).T
            with torch.no_grad():
                edited_weight(model, layer).add_(delta.float())
    fresh = random_model()
    for layer, update in patch.layers.items():
        moved = edited_weight(model, layer).detach() - edited_weight(fresh, layer).detach()
        torch.testing.assert_close(update.delta().float(), moved, rtol=1e-3, atol=1e-5)


def test_locft_is_adam_in_mini_batches_over_epochs() -> None:
    config = replace(PLAIN, method="locft", layers=(1,), steps=3, ft_batch_size=2, ft_learning_rate=2e-3, n_prefixes=0)
    patch = edit_model(random_model(), UNEQUAL, config)
    model, order = random_model(), torch.Generator().manual_seed(config.seed)
    weight = edited_weight(model, 1)
    original, first, second = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    step = 0
    for _ in range(3):
        for rows in torch.randperm(3, generator=order).split(2):
            weight.requires_grad_()
            losses = []
            for row in rows.tolist():
                token_ids, answer = asked(model, UNEQUAL[row])
                losses.append(F.cross_entropy(model(token_ids)[0, -len(answer) :], answer))
            (slope,) = torch.autograd.grad(torch.stack(losses).mean(), weight)
            weight.requires_grad_(False)
            step += 1
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            weight -= 2e-3 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    assert step == 6
    torch.testing.assert_close(patch.layers[1].delta().float(), weight - original, rtol=1e-3, atol=2e-5)


def test_locft_stops_when_an_epoch_has_nothing_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(PLAIN, method="locft", layers=(1,), steps=20, ft_learning_rate=0.02, n_prefixes=0)
    learned = edit_model(random_model(), facts(2), config)
    monkeypatch.setattr(locft, "ENOUGH", 1.0)
    stopped = edit_model(random_model(), facts(2), config)
    assert learned.edited[0].steps == 20 > stopped.edited[0].steps > 1
    monkeypatch.setattr(locft, "ENOUGH", 100.0)
    untouched = edit_model(random_model(), facts(2), config)
    assert (untouched.edited[0].steps, untouched.layers[1].norm()) == (1, 0.0)
