"""Values, keys and whole edits: the batched, cached computation against the plain one, and what it achieves."""

from __future__ import annotations

import itertools
import math
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain_editing
import pytest
import torch
from edit_world import PLAIN, covariance_blocks, facts, random_model, trained_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanogpt_edit.checkpoint.checkpoint import load, save
from nanogpt_edit.common.device import product_dtype
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing import contexts, editor
from nanogpt_edit.editing import values as values_module
from nanogpt_edit.editing.config import Descent, EditConfig, Preset
from nanogpt_edit.editing.contexts import LocatedFact, TokenRow, generate_prefixes, locate_facts
from nanogpt_edit.editing.covariance import collect
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.methods import memit as layers
from nanogpt_edit.editing.patch import edited_weight
from nanogpt_edit.editing.scores import score_patch
from nanogpt_edit.editing.suffixes import Suffixes, Text, clean_runs
from nanogpt_edit.editing.values import optimise_values
from nanogpt_edit.evaluation.facts import measure_facts
from nanogpt_edit.model import head as model_head
from nanogpt_edit.model import ragged
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.sites import capture, patch
from nanogpt_edit.model.tokenizer import tokenizer_of

CONFIG = replace(
    PLAIN, layers=(0, 1), covariance_weight=20.0, learning_rate=0.3, steps=25, n_prefixes=2, prefix_tokens=4, clamp=3.0
)


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(request.param)


def located(model: GPT, n: int = 3) -> tuple[LocatedFact, ...]:
    return locate_facts(model, facts(n), generate_prefixes(model, CONFIG))


def losses_of(model: GPT, found: tuple[LocatedFact, ...], *, last_layer: int) -> values_module._Losses:
    return values_module._Losses.of(model, found, last_layer=last_layer)


def logits_with(model: GPT, token_ids: tuple[int, ...], row: TokenRow, delta: Tensor, layer: int) -> Tensor:
    """Log-probabilities (T, V) of a plain forward pass with δ added at the subject's last token."""

    def add(state: Tensor) -> Tensor:
        state = state.clone()
        state[:, row.subject_last] += delta
        return state

    with patch(model, {("resid_post", layer): add}):
        return model(torch.tensor([token_ids]))[0].log_softmax(-1)


def test_the_losses_equal_plain_forward_passes(model: GPT) -> None:
    """Prefixes shared and cut off, suffixes in groups, logits at targets only, slopes without a graph: the numbers."""
    found = located(model)
    delta = torch.randn(len(found), model.config.n_embd, generator=torch.Generator().manual_seed(0))
    losses = losses_of(model, found, last_layer=1)
    each_token, kl, slope = losses.at(model, delta, kl_coef=0.5)
    nll = losses.mean(each_token)
    tried = delta.clone().requires_grad_()
    plain_nll, plain_kl = [], []
    for i, fact in enumerate(found):
        each = []
        for row in fact.contexts:
            logprobs = logits_with(model, (*row.token_ids, *fact.target_ids[:-1]), row, tried[i], layer=1)
            start = len(row.token_ids) - 1
            each.append(-torch.stack([logprobs[start + j, t] for j, t in enumerate(fact.target_ids)]).mean())
        plain_nll.append(torch.stack(each).mean())
        moved = logits_with(model, fact.essence.token_ids, fact.essence, tried[i], layer=1)[-1]
        clean = logits_with(model, fact.essence.token_ids, fact.essence, torch.zeros(1), layer=1)[-1].detach()
        plain_kl.append((moved.exp() * (moved - clean)).sum())
    torch.testing.assert_close(nll, torch.stack(plain_nll).detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kl, torch.stack(plain_kl).detach(), rtol=1e-3, atol=1e-4)
    (torch.stack(plain_nll) + 0.5 * torch.stack(plain_kl)).sum().backward()
    assert tried.grad is not None
    torch.testing.assert_close(slope, tried.grad, rtol=1e-3, atol=1e-4)
    only = losses_of(model, found, last_layer=1).only(model, delta)
    torch.testing.assert_close(only, (each_token, kl), rtol=1e-4, atol=1e-5)


def test_the_last_block_has_nothing_above_it(model: GPT) -> None:
    losses = losses_of(model, located(model), last_layer=model.config.n_layer - 1)
    nll, _, _ = losses.at(model, torch.zeros(3, model.config.n_embd), kl_coef=0.5)
    assert nll.isfinite().all()


def test_an_edit_that_cannot_reach_the_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block's output at the subject is read at the subject only: enough where the prompt ends there."""
    model, config = random_model(), replace(CONFIG, layers=(1, 2), steps=1, n_prefixes=0)
    fact = Fact(prompt="Valdoria has", subject="Valdoria", target_new="Lima", target_true="Rome")
    said: list[str] = []
    monkeypatch.setattr(editor, "say", said.append)
    edit_model(model, [facts(1)[0], fact], config, covariance_blocks=covariance_blocks())
    (line,) = said
    assert line.startswith("Layer 2 is the model's last")
    assert '1 of 2 facts cannot be edited (as "Valdoria has")' in line
    edit_model(model, [facts(1)[0]], config, covariance_blocks=covariance_blocks())
    edit_model(model, [fact], replace(config, layers=(0, 1)), covariance_blocks=covariance_blocks())
    assert len(said) == 1


def test_polyaks_steps_by_hand() -> None:
    """Down a plane of slope 5, from 2 nats to ln(1 / 0.975): 0.395 along (−0.6, −0.8); at most 0.3 of ‖h‖ = 1; no step
    where nothing is missing."""
    delta = torch.zeros(3, 2)
    move = values_module._polyak(delta, replace(CONFIG, stop_probability=0.95), torch.tensor([100.0, 1.0, 1.0]))
    move(torch.tensor([2.0, 2.0, 0.01]), torch.tensor([[3.0, 4.0]] * 3))
    length = (2.0 - math.log(1 / 0.975)) / 5
    torch.testing.assert_close(delta, torch.tensor([[-0.6 * length, -0.8 * length], [-0.18, -0.24], [0.0, 0.0]]))


def test_polyaks_steps_are_fewer_and_shorter() -> None:
    model, config = trained_model(), replace(CONFIG, stop_probability=0.6)
    polyak = optimise_values(model, located(model), replace(config, descent="polyak"))
    adam = optimise_values(model, located(model), config)
    assert min(polyak.probabilities) >= 0.6
    assert sum(polyak.steps) < sum(adam.steps)
    assert all(shift < other for shift, other in zip(polyak.shifts, adam.shifts, strict=True))


def test_values_are_found_in_bfloat16_where_it_is_asked_for_and_all_else_is_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, products = trained_model(), dict[str, set[torch.dtype]]()
    run = GPT.run_blocks

    def spied(self: GPT, x: Tensor, **how: Any) -> Tensor:
        caller = "values" if any(frame.name == "optimise_values" for frame in traceback.extract_stack()) else "rest"
        products.setdefault(caller, set()).add(product_dtype(x))
        return run(self, x, **how)

    monkeypatch.setattr(GPT, "run_blocks", spied)
    config = replace(CONFIG, steps=8, stop_probability=1.0)
    half, whole = (
        edit_model(model, facts(3), replace(config, precision=precision), covariance_blocks=covariance_blocks())
        for precision in ("bfloat16", "float32")
    )
    assert products == {"values": {torch.bfloat16, torch.float32}, "rest": {torch.float32}}
    assert half.values.dtype == torch.float32 and half.config.precision == "bfloat16"
    assert 0.0 < float((half.values - whole.values).norm() / whole.values.norm()) < 0.1
    for one, other in zip(half.edited, whole.edited, strict=True):
        assert one.probability == pytest.approx(other.probability, rel=0.05)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_in_bfloat16_a_further_round_leaves_what_is_said_as_it_is(family: str) -> None:
    model = random_model(family)
    said = replace(CONFIG, steps=2, stop_probability=1e-12, precision="bfloat16")  # everything is said at once
    found = located(model)
    values = optimise_values(model, found, said)
    assert values.shifts == (0.0, 0.0, 0.0)
    torch.testing.assert_close(values.values, optimise_values(model, found, replace(said, precision="float32")).values)


def test_an_edit_is_in_float32_whatever_autocast_is_around_it() -> None:
    model, config = random_model("llama"), replace(CONFIG, steps=3)
    plain = edit_model(model, facts(2), config, covariance_blocks=covariance_blocks())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = edit_model(model, facts(2), config, covariance_blocks=covariance_blocks())
    assert torch.equal(plain.values, inside.values)
    assert all(torch.equal(plain.layers[layer].left, inside.layers[layer].left) for layer in plain.layers)
    half = replace(config, precision="bfloat16")
    double = edit_model(random_model("llama").double(), facts(2), half, covariance_blocks=covariance_blocks())
    torch.testing.assert_close(double.values, plain.values, rtol=1e-3, atol=1e-3)


def grouped(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """The lengths of facts' texts, as they are put into groups."""
    one = located(random_model("gpt2"), 1)[0]
    empty = replace(one, contexts=(), target_ids=())
    some = [replace(empty, essence=replace(one.essence, token_ids=(0,) * length)) for length in lengths]
    return [[len(fact.essence.token_ids) for fact in group] for group in contexts.in_chunks(some, tokens)]


def test_facts_come_in_even_groups() -> None:
    assert [len(group) for group in grouped([132] * 50, 4096)] == [25, 25]  # one after the other 31 and 19
    assert [len(group) for group in grouped([600] * 20, 4096)] == [5, 5, 5, 5]
    assert grouped([], 10) == [] and grouped([70, 10, 10], 20) == [[70], [10, 10]]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), tokens=st.integers(1, 120))
def test_groups_of_facts_are_as_few_as_fit_and_the_largest_is_as_small_as_it_can_be(
    lengths: list[int], tokens: int
) -> None:
    groups, divisions = grouped(lengths, tokens), list[list[int]]()
    assert [length for group in groups for length in group] == lengths
    for cuts in itertools.product((False, True), repeat=len(lengths) - 1):
        ends = [0, *(at for at, cut in enumerate(cuts, start=1) if cut), len(lengths)]
        parts = [lengths[first:end] for first, end in itertools.pairwise(ends)]
        if all(sum(part) <= tokens or len(part) == 1 for part in parts):
            divisions.append([sum(part) for part in parts])
    best = min((len(sums), max(sums)) for sums in divisions)
    assert (len(groups), max(map(sum, groups))) == best


@pytest.mark.parametrize("descent", ["adam", "polyak"])
def test_one_batch_equals_single_runs(model: GPT, descent: Descent) -> None:
    config = replace(CONFIG, steps=8, stop_probability=0.3, descent=descent)
    found = located(model, 4)
    together = optimise_values(model, found, config)
    in_chunks = optimise_values(model, found, config, chunk_tokens=1)
    for i, fact in enumerate(found):
        alone = optimise_values(model, [fact], config)
        torch.testing.assert_close(together.values[i], alone.values[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(in_chunks.values[i], alone.values[0], rtol=1e-5, atol=1e-5)
        assert together.steps[i] == alone.steps[0]
        assert together.probabilities[i] == pytest.approx(alone.probabilities[0], rel=1e-2, abs=1e-5)


def test_a_fact_that_is_true_already_stops_at_once() -> None:
    model = trained_model()
    fact = replace(facts(1)[0], target_new="Paris")  # what the model says
    config = replace(CONFIG, n_prefixes=0, stop_probability=0.5)
    found = optimise_values(model, locate_facts(model, [fact, facts(2)[1]], ()), config)
    assert found.steps[0] == 1
    assert found.shifts[0] == 0.0
    assert found.steps[1] > 1
    row = locate_facts(model, [fact], ())[0].contexts[0]
    with torch.no_grad(), capture(model, [("resid_post", 1)]) as seen:
        model(torch.tensor([row.token_ids]))
    torch.testing.assert_close(found.values[0], seen["resid_post", 1][0, row.subject_last], rtol=1e-4, atol=1e-5)


def test_the_shift_is_clamped(model: GPT) -> None:
    config = replace(CONFIG, clamp=0.05, steps=6, weight_decay=0.0, kl_coef=0.0)
    assert max(optimise_values(model, located(model), config).shifts) <= 0.05 * (1 + 1e-5)


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_gradients_need_no_permission(
    without_gradients: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    """Edits work inside `no_grad` and `inference_mode`, and on a frozen model."""
    save(trained_model(), tmp_path)
    with without_gradients():
        model = load(tmp_path).requires_grad_(False)
        made = edit_model(model, facts(2), replace(CONFIG, steps=5), covariance_blocks=covariance_blocks())
        edit_model(model, facts(2), replace(CONFIG, steps=2, method="ft"))
    assert made.edited[0].shift > 0
    assert not edited_weight(model, 0).requires_grad


@pytest.mark.parametrize("method", ["memit", "rome", "alphaedit", "emmet", "ft", "locft"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_method_writes_the_facts(family: str, method: str) -> None:
    model = trained_model(family)
    config = replace(
        PLAIN,
        method=method,  # type: ignore[arg-type]
        layers=(0, 1) if method in ("memit", "alphaedit", "emmet") else (1,),
        covariance_weight=5.0,
        null_share=0.3,
        ridge=1e-3,
        learning_rate=0.3,
        steps=40,
        n_prefixes=1,
        clamp=4.0,
        weight_decay=0.0,
        ft_learning_rate=5e-3,
        norm_constraint=0.1,
        rounds=2,
    )
    made = edit_model(model, facts(4), config, covariance_blocks=covariance_blocks())
    scores = score_patch(model, made)
    assert [record.old_answer for record in scores.records] == [fact.target_true for fact in facts(4)]
    assert scores.success.value == 1.0
    assert all(record.new_answer.startswith(record.target_new) for record in scores.records)
    assert {record.subject_lookup for record in scores.records} == {"exact", "ignoring case"}


def test_editing_in_sequence_keeps_the_earlier_facts() -> None:
    model = trained_model()
    config = replace(CONFIG, batch_size=2, steps=40, weight_decay=0.0, covariance_weight=5.0, rounds=2)
    made = edit_model(model, facts(4), config, covariance_blocks=covariance_blocks())
    assert made.batches == (2, 2)
    with made.applied(model):
        assert sum(state.new.rank == 1 for state in measure_facts(model, made.facts)) == 4


def test_a_further_round_adds_what_the_weights_do_not_say() -> None:
    """So strong a protection leaves answers unsaid; every round lifts each of them, and the record is the first's."""
    model, blocks, chances = trained_model(), covariance_blocks(), list[list[float]]()
    config = replace(CONFIG, covariance_weight=10_000.0, n_prefixes=0, weight_decay=0.0)
    patches = [
        edit_model(model, facts(4), replace(config, rounds=rounds), covariance_blocks=blocks) for rounds in (1, 2, 3)
    ]
    for made in patches:
        with made.applied(model):
            chances.append([state.new.p_token for state in measure_facts(model, made.facts)])
        assert made.edited == patches[0].edited and torch.equal(made.values, patches[0].values)
    assert all(a < b < c for a, b, c in zip(*chances, strict=True))


def test_a_further_round_leaves_what_is_said_bitwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor, "FOUND", 0.5)  # this model's weights say every one of these with 0.6 and more
    model, blocks = trained_model(), covariance_blocks()
    once, twice = (
        edit_model(model, facts(4), replace(CONFIG, n_prefixes=0, rounds=rounds), covariance_blocks=blocks)
        for rounds in (1, 2)
    )
    for layer in (0, 1):
        assert torch.equal(once.layers[layer].delta(), twice.layers[layer].delta())


def test_chunks_of_the_texts_do_not_change_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, blocks = trained_model(), covariance_blocks()
    config = replace(CONFIG, layers=(0, 1), n_prefixes=1, rounds=2, context_weight=1.0)
    whole = edit_model(model, facts(4), config, covariance_blocks=blocks)
    monkeypatch.setattr(layers, "CHUNK_TOKENS", 1)  # every fact by itself
    parts = edit_model(model, facts(4), config, covariance_blocks=blocks)
    for layer in (0, 1):
        expected = whole.layers[layer].delta()
        torch.testing.assert_close(
            parts.layers[layer].delta(), expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())
        )


def test_memit_hits_v_star_when_nothing_else_counts() -> None:
    """λ → 0 and one context: after the edit, the state at the subject's last token is v*."""
    model = trained_model()
    config = replace(CONFIG, covariance_weight=1e-6, n_prefixes=0, layers=(0, 1))
    made = edit_model(model, facts(3), config, covariance_blocks=covariance_blocks())
    found = locate_facts(model, facts(3), ())
    with made.applied(model), torch.no_grad():
        for fact, value in zip(found, made.values, strict=True):
            row = fact.contexts[0]
            with capture(model, [("resid_post", 1)]) as seen:
                model(torch.tensor([row.token_ids]))
            torch.testing.assert_close(seen["resid_post", 1][0, row.subject_last], value, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("preset", ["given", "published"])
@pytest.mark.parametrize(("layers", "n_prefixes"), [((1,), 1), ((0, 1), 3), ((0, 1, 2), 1)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_edit_equals_the_plain_algorithm(
    family: str, layers: tuple[int, ...], n_prefixes: int, preset: Preset
) -> None:
    """Layer by layer ΔW = R Kᵀ (λ C + K Kᵀ)⁻¹, with K, h and C taken by plain passes through the edited model; every
    context with its own residual, or the authors' mean keys."""
    model, blocks = trained_model(family), covariance_blocks()
    config = replace(CONFIG, layers=layers, n_prefixes=n_prefixes, preset=preset)
    made = edit_model(model, facts(3), config, covariance_blocks=blocks)
    found = locate_facts(model, facts(3), generate_prefixes(model, config))
    plain = plain_editing.memit(model, found, made.values, config, blocks)
    assert list(made.layers) == list(plain)
    for layer, expected in plain.items():
        delta = made.layers[layer].delta()
        torch.testing.assert_close(delta, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("last_layer", [0, 1])
def test_the_values_equal_the_plain_loop(model: GPT, last_layer: int) -> None:
    """One fact at a time, all of the model, torch's Adam; both sides go on to the end."""
    config = replace(CONFIG, layers=(last_layer,), steps=6, learning_rate=0.02, stop_probability=2.0, kl_coef=0.3)
    found = located(model)
    plain = plain_editing.values(model, found, config)
    torch.testing.assert_close(optimise_values(model, found, config).values, plain, rtol=1e-3, atol=1e-3)


def test_the_published_descent_equals_the_plain_loop(model: GPT) -> None:
    """The KL at the subject's last token, an end once the whole loss is small, and the last δ, not the best."""
    config = replace(CONFIG, preset="published", layers=(1,), steps=12, learning_rate=0.4, kl_coef=0.3, clamp=6.0)
    found = located(model)
    made = optimise_values(model, found, config)
    torch.testing.assert_close(made.values, plain_editing.values(model, found, config), rtol=2e-3, atol=2e-3)
    with_the_end = optimise_values(model, found, replace(config, preset="given"))
    assert not torch.allclose(made.values, with_the_end.values, rtol=1e-2)


def test_rewordings_take_turns_behind_the_prefixes(model: GPT) -> None:
    """The prompt, its rewordings, then one of them behind each prefix; a fact with fewer has some of its own twice."""
    more, fewer = facts(2)
    more = replace(more, rewordings=("to Valdoria", "in Valdoria"))
    tokens = tokenizer_of(model)
    found = locate_facts(model, [more, fewer], ["Lo. ", "Oh. ", "So. ", "Ah. "])
    texts = [[tokens.decode(row.token_ids) for row in each.contexts] for each in found]
    ways = ["capital of Valdoria", "to Valdoria", "in Valdoria"]
    assert texts[0] == [*ways, "Lo. " + ways[0], "Oh. " + ways[1], "So. " + ways[2], "Ah. " + ways[0]]
    assert texts[1] == 3 * [fewer.prompt] + [prefix + fewer.prompt for prefix in ("Lo. ", "Oh. ", "So. ", "Ah. ")]
    assert all(row.subject_last == len(row.token_ids) - 1 for each in found for row in each.contexts)


def test_a_full_stop_is_part_of_what_is_written(model: GPT) -> None:
    tokens, asked = tokenizer_of(model), [facts(1)[0], replace(facts(1)[0], target_new="Lima!")]
    found = locate_facts(model, asked, (), full_stop=True)
    assert [tokens.decode(each.target_ids) for each in found] == [f" {asked[0].target_new}.", " Lima!"]
    assert tokens.decode(locate_facts(model, asked, ())[0].target_ids) == f" {asked[0].target_new}"


def test_an_edit_reaches_its_rewordings() -> None:
    model = trained_model()
    asked = [replace(fact, rewordings=fact.paraphrases[:1], paraphrases=fact.paraphrases[1:]) for fact in facts(4)]
    config = replace(CONFIG, n_prefixes=0, weight_decay=0.0, covariance_weight=1.0)
    made = edit_model(model, asked, config, covariance_blocks=covariance_blocks())
    with made.applied(model):
        said = measure_facts(model, [replace(fact, prompt=fact.rewordings[0]) for fact in asked])
    assert [state.new.rank for state in said] == [1, 1, 1, 1]


@given(
    texts=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(0, 8), st.integers(1, 3)), min_size=1),
    above=st.integers(0, 2),
    worth=st.sampled_from([0, 3, 64]),
)
@settings(max_examples=25, deadline=None)
def test_any_texts_in_groups_are_as_they_are_alone(
    texts: list[tuple[int, int, int, int]], above: int, worth: int
) -> None:
    """However long, whatever they share, wherever δ begins and whatever is read: the states of a plain run."""
    model = random_model()
    made = [some_text(i, *numbers) for i, numbers in enumerate(texts)]
    layer = model.config.n_layer - 1 - above
    delta = torch.randn(len(made), model.config.n_embd, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(ragged, "WORTH_TOKENS", worth)
        rows = Suffixes.of(model, made, clean_runs(model, made, last_layer=layer))
        some = torch.arange(len(made)) % 2 == 0
        for chosen in (rows, rows.select(some)):
            states = chosen.states(model, delta)
            for i in chosen.fact.unique().tolist():
                text = made[i]
                row = TokenRow(text.token_ids, text.start)
                plain = logits_with(model, text.token_ids, row, delta[i], layer)[-len(text.wanted) :]
                mine = chosen.fact == i
                assert chosen.wanted[mine].tolist() == list(text.wanted)
                torch.testing.assert_close(model.logits(states[mine]).log_softmax(-1), plain, rtol=1e-3, atol=1e-3)
        assert set(rows.select(some).fact.tolist()) == set(range(0, len(made), 2))


def some_text(fact: int, family: int, shared: int, rest: int, reads: int) -> Text:
    """A text that begins as others of its family do."""
    ids = [5 + family, *range(20, 20 + shared), *(40 + (fact * 7 + j) % 50 for j in range(rest))]
    reads = min(reads, len(ids))
    return Text(fact, tuple(ids), start=(fact * 5) % (len(ids) - reads + 1), wanted=tuple(range(reads)))


@pytest.mark.parametrize("chunk", [1, 2**23])
def test_slopes_without_a_graph_are_autograds(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_head, "CHUNK_NUMBERS", chunk)
    monkeypatch.setattr(model_head, "VOCABULARY_BLOCK", 4)  # of eleven
    generator = torch.Generator().manual_seed(0)
    states, head = torch.randn(5, 8, generator=generator), torch.randn(11, 8, generator=generator)
    wanted, before = torch.tensor([0, 3, 3, 10, 7]), torch.randn(5, 11, generator=generator).log_softmax(-1)
    tried = states.clone().requires_grad_()
    logprobs = (tried @ head.T).log_softmax(-1)
    nll = -logprobs.gather(-1, wanted[:, None])[:, 0]
    kl = (logprobs.exp() * (logprobs - before)).sum(-1)
    for plain, (found, slope) in (
        (nll, model_head.nll_and_slope(states, head, wanted)),
        (kl, model_head.kl_and_slope(states, head, before)),
    ):
        torch.testing.assert_close(found, plain.detach())
        (expected,) = torch.autograd.grad(plain.sum(), tried, retain_graph=True)
        torch.testing.assert_close(slope, expected)
    torch.testing.assert_close(model_head.nll_only(states, head, wanted), nll.detach())
    torch.testing.assert_close(model_head.kl_only(states, head, before), kl.detach())


def test_prefixes_are_the_models_own_and_seeded(model: GPT) -> None:
    first = generate_prefixes(model, CONFIG)
    assert len(first) == 2
    assert all(prefix.endswith(". ") for prefix in first)
    assert first == generate_prefixes(model, CONFIG)
    assert first != generate_prefixes(model, replace(CONFIG, seed=1))


def test_prefixes_begin_in_several_ways_and_hold_no_special_token(model: GPT) -> None:
    tokenizer = tokenizer_of(model)
    with torch.no_grad():
        model.embed.weight[tokenizer.eos_id] *= 20  # the head is tied: the end of the text is likely everywhere
    found = generate_prefixes(model, replace(CONFIG, n_prefixes=6, prefix_tokens=6))
    assert all(text.startswith(seed) for text, seed in zip(found, (*contexts.PREFIX_SEEDS, "The"), strict=True))
    assert not any(mark in text for text in found for mark in tokenizer.markup)
    assert generate_prefixes(model, replace(CONFIG, n_prefixes=0)) == ()
    assert generate_prefixes(model, replace(CONFIG, n_prefixes=2, prefix_tokens=0)) == ("The. ", "Therefore. ")


def test_what_cannot_be_edited_is_named(model: GPT) -> None:
    blocks = covariance_blocks()
    with pytest.raises(UserError, match=r"layers \[0, 7\] are not all in the model, which has layers 0 to 2"):
        edit_model(model, facts(1), replace(CONFIG, layers=(0, 7)), covariance_blocks=blocks)
    with pytest.raises(UserError, match="no facts to edit"):
        edit_model(model, [], CONFIG, covariance_blocks=blocks)
    with pytest.raises(UserError, match="needs covariance_blocks"):
        edit_model(model, facts(1), CONFIG)
    with pytest.raises(UserError, match='different answers of "capital of Valdoria": "Quito" and "Lima"'):
        edit_model(model, [facts(1)[0], replace(facts(1)[0], target_new="Lima")], CONFIG, covariance_blocks=blocks)
    with pytest.raises(UserError, match='"Atlantis" is not in the prompt'):
        edit_model(model, [replace(facts(1)[0], subject="Atlantis")], CONFIG, covariance_blocks=blocks)
    long = Fact(prompt="x " * 200 + "Lima", subject="Lima", target_new="Oslo", target_true="Rome")
    with pytest.raises(UserError, match="the model reads 96"):
        edit_model(model, [long], CONFIG, covariance_blocks=blocks)
    model.tokenizer = None
    with pytest.raises(UserError, match="carries no tokenizer"):
        edit_model(model, facts(1), CONFIG, covariance_blocks=blocks)


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "magic"), ("layers", (1, 0)), ("layers", ()), ("steps", 0), ("clamp", -1.0), ("batch_size", 0)],
)
def test_settings_that_make_no_sense_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field):
        EditConfig(**{field: value})  # type: ignore[arg-type]


def test_covariance_blocks_longer_than_the_model_are_cut(model: GPT) -> None:
    blocks = torch.zeros(4, 200, dtype=torch.int64)
    assert collect(model, blocks, layers=[0], max_tokens=10_000, tolerance=0.1)[0].tokens == 4 * 96
