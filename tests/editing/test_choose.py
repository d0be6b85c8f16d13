"""Settings that an edit chooses for its model: each rule by hand, and whole edits without any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from edit_world import covariance_blocks, facts, tokenizer, trained_model

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.editing import choose
from nanogpt_edit.editing.choose import (
    Trial,
    best_of,
    candidate_layers,
    group_up_to,
    is_held_back,
    own_prompts,
    probed,
    suited,
    walk_the_line,
)
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.contexts import locate_facts
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch_files import load_patch, save_patch
from nanogpt_edit.editing.records import Edit
from nanogpt_edit.editing.scores import edit_record, score_patch
from nanogpt_edit.editing.sinks import SinkNorms
from nanogpt_edit.editing.values import TargetValues
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT

AUTO = EditConfig(preset="auto")
ORDINARY, SINK = SinkNorms(1.0, 1.0), SinkNorms(100.0, 1.0)


def test_layers_by_depth_and_sinks() -> None:
    """SmolLM2's 30 layers: sinks but after 0, 9 and 10; 0.36 of the depth is 10.44. GPT-2's 12 have them from 3 on."""
    smol = [ORDINARY if layer in (0, 9, 10) else SINK for layer in range(30)]
    assert candidate_layers(smol) == [10, 9]
    assert candidate_layers([ORDINARY] * 30) == [10, 7, 14]
    assert candidate_layers([ORDINARY] * 3 + [SINK] * 9) == [2]
    assert candidate_layers([SINK] * 12) == [4, 3, 5]  # nowhere ordinary: by depth alone
    assert [candidate_layers([ORDINARY] * n) for n in (1, 2, 3)] == [[0], [0], [1, 0]]


def test_as_many_layers_as_covariances_fit() -> None:
    """In a GiB of float64: SmolLM2's of 1,536² all (56 would, 56.9 times 18.9 MB), one of 11,008² (0.97 GB)."""
    smol = GPTConfig(vocab_size=49_216, block_size=8192, n_layer=30, n_head=9, n_embd=576, mlp_dim=1536)
    assert group_up_to(10, smol) == tuple(range(11))
    assert group_up_to(60, replace(smol, n_layer=90)) == tuple(range(5, 61))
    assert group_up_to(11, replace(smol, n_layer=32, mlp_dim=11_008)) == (7, 8, 9, 10, 11)
    assert group_up_to(3, replace(smol, n_layer=12, mlp_dim=11_008)) == (2, 3)
    assert group_up_to(0, replace(smol, n_layer=1)) == (0,)
    assert group_up_to(10, smol, share=False) == (6, 7, 8, 9, 10)


def test_layers_are_probed_until_none_could_be_clearly_better() -> None:
    def marks(*values: float) -> tuple[dict[int, float], int]:
        given = dict(zip((10, 7, 14), values, strict=True))
        return probed(list(given), given.__getitem__)

    assert marks(0.9, 0.94, 0.96) == ({10: 0.9, 7: 0.94, 14: 0.96}, 14)  # 0.94 is not more than 0.05 better
    assert marks(0.5, 0.6, 0.4) == ({10: 0.5, 7: 0.6, 14: 0.4}, 7)
    assert marks(0.97, 0.99, 1.0) == ({10: 0.97}, 10)
    assert marks(0.3, 0.98, 1.0) == ({10: 0.3, 7: 0.98}, 7)


def line(said: dict[float, float]) -> list[Trial]:
    return list(walk_the_line(9.0, lambda strength: Trial(strength, said[strength], disturbed=1 / strength)))


def test_the_line_goes_up_while_the_own_prompts_hold() -> None:
    trials = line({9.0: 0.98, 27.0: 0.98, 81.0: 0.975, 243.0: 0.9})
    assert [trial.strength for trial in trials] == [9.0, 27.0, 81.0, 243.0]
    assert best_of(trials).strength == 81.0  # within three points of the best
    trials = line({9.0: 0.86, 27.0: 0.85, 81.0: 0.8})
    assert [trial.strength for trial in trials] == [9.0, 27.0, 81.0]
    assert best_of(trials).strength == 27.0


def test_the_line_goes_down_where_they_do_not() -> None:
    trials = line({9.0: 0.7, 27.0: 0.6, 3.0: 0.9, 1.0: 0.905})
    assert [trial.strength for trial in trials] == [9.0, 27.0, 3.0, 1.0]
    assert best_of(trials).strength == 3.0
    trials = line({9.0: 0.0, 3.0: 0.0, 1.0: 0.1, 1 / 3: 0.2})
    assert [trial.strength for trial in trials] == [9.0, 3.0, 1.0, 1 / 3]
    assert best_of(trials).strength == 1 / 3
    assert [trial.strength for trial in line({9.0: 0.7, 27.0: 0.6, 3.0: 0.7})] == [9.0, 27.0, 3.0]


def test_only_a_clamp_that_was_reached_is_widened() -> None:
    values = TargetValues(torch.zeros(3, 1), probabilities=(0.5, 0.5, 0.9), shifts=(2.0, 1.1, 2.0), steps=(1, 1, 1))
    assert [is_held_back(values, fact, 2.0) for fact in range(3)] == [True, False, False]


def test_which_of_its_own_prompts_an_edit_is_asked() -> None:
    model = trained_model()
    more = replace(facts(1)[0], rewordings=("to Valdoria", "in Valdoria"))
    (fact,) = locate_facts(model, [more], ["Lo. ", "Oh. "])
    assert own_prompts(fact) == (fact.contexts[0], fact.contexts[2], fact.contexts[4])
    (alone,) = locate_facts(model, facts(1), [])
    assert own_prompts(alone) == alone.contexts


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_edit_without_settings_says_its_facts(family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    monkeypatch.setattr(choose, "say", said.append)
    model = trained_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    patch = edit_model(model, facts(4), AUTO, covariance_blocks=covariance_blocks())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert score_patch(model, patch).success.value == 1.0
    assert (patch.config.preset, patch.config.full_stop) == ("given", True)
    assert any(line.startswith("Edit: layers ") for line in said)
    assert any(line.startswith(f"Edit: covariance_weight {patch.config.covariance_weight:g} (") for line in said)
    chosen = {each.setting: each.value for each in patch.tried if each.chosen}
    assert chosen["covariance_weight"] == patch.config.covariance_weight
    assert chosen["layers"] == patch.config.layers[-1]
    save_patch(patch, tmp_path / "mine.safetensors")
    assert load_patch(tmp_path / "mine.safetensors").tried == patch.tried
    edit_record("mine", patch, score_patch(model, patch)).save(tmp_path)
    assert Edit.load(tmp_path / "mine.json").tried == patch.tried
    again = edit_model(model, facts(4), patch.config, covariance_blocks=covariance_blocks())
    assert (again.tried, list(again.layers)) == ((), list(patch.layers))


def test_one_fact_alone_is_found_by_polyaks_steps() -> None:
    model = trained_model()
    one, two = (locate_facts(model, facts(n), (), allow_partial=False) for n in (1, 2))
    assert suited(model, one, AUTO, None)[0].descent == "polyak"
    assert suited(model, two, AUTO, None)[0].descent == "adam"
    assert suited(model, one, AUTO.with_fields({"descent": "adam"}), None)[0].descent == "adam"
    patch = edit_model(model, facts(1), AUTO, covariance_blocks=covariance_blocks())
    assert score_patch(model, patch).success.value == 1.0 and patch.config.descent == "polyak"


def test_what_is_given_is_not_chosen() -> None:
    config = replace(AUTO, layers=(1,), steps=3, n_prefixes=1, prefix_tokens=2, method="alphaedit", ridge=0.03)
    patch = edit_model(trained_model(), facts(2), config, covariance_blocks=covariance_blocks())
    chosen = patch.config
    assert (list(patch.layers), chosen.steps, chosen.n_prefixes, chosen.ridge) == ([1], 3, 1, 0.03)
    assert (chosen.clamp, chosen.full_stop) == (2.0, True)


def test_what_is_given_stays_where_it_equals_its_default() -> None:
    """layers (0, 1), λ 300 and steps 40 are the defaults; nobody could tell by their values that they were given."""
    config = AUTO.with_fields({"layers": (0, 1), "covariance_weight": 300.0, "n_prefixes": 1, "prefix_tokens": 2})
    assert not AUTO.is_given("layers") and config.is_given("layers") and config.is_given("covariance_weight")
    patch = edit_model(trained_model(), facts(2), replace(config, steps=3), covariance_blocks=covariance_blocks())
    assert (list(patch.layers), patch.config.covariance_weight) == ([0, 1], 300.0)
    assert (patch.config.preset, patch.config.given, patch.config.clamp) == ("given", None, 2.0)


@pytest.mark.parametrize(
    ("base", "changes", "layers"),
    [
        ("gpt2", {}, 1),
        ("llama", {}, 2),
        ("llama", {"model_type": "qwen2", "qkv_bias": True}, 1),
        ("llama", {"model_type": "qwen3", "qk_norm": True}, 1),
    ],
)
def test_any_family_can_be_edited_without_settings(base: str, changes: dict[str, object], layers: int) -> None:
    """Random weights, one block or two: nothing is learned, and nothing breaks."""
    small = tiny_config(base, vocab_size=tokenizer().vocab_size, block_size=96)
    model = GPT(replace(small, n_layer=layers, **changes), seed=0)  # type: ignore[arg-type]
    model.tokenizer = tokenizer()
    patch = edit_model(model, facts(2), replace(AUTO, steps=2), covariance_blocks=covariance_blocks()[:9])
    assert patch.layers


def test_the_published_preset_is_memits_alone() -> None:
    config = EditConfig(preset="published")
    assert (config.context_weight, config.refine_steps, config.full_stop, config.rounds) == (0, 0, False, 1)
    with pytest.raises(UserError, match="is published, the authors' MEMIT, and method is rome"):
        EditConfig(preset="published", method="rome")
