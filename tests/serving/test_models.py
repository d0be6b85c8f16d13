"""What is offered under which name: a run's checkpoints, models, and patches of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from serving_run import small_model

from nanogpt_edit.checkpoint.checkpoint import save
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import write_text
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch_files import save_patch
from nanogpt_edit.serving.models import Shelf, UnknownModel


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    for seed, stage in enumerate(("grpo", "base")):
        save(small_model(seed=seed), folder / stage)
    write_text(folder / "recipe.toml", "")
    return folder


def test_a_run_offers_its_checkpoints_in_the_order_in_which_they_were_made(run_folder: Path) -> None:
    shelf = Shelf.of([str(run_folder)], device="cpu")
    assert shelf.names() == ["base", "grpo"] and shelf.run_folder == run_folder
    assert shelf.is_open("base") and not shelf.is_open("grpo")
    about = shelf.about("grpo")
    assert shelf.is_open("grpo") and shelf.open("grpo") is shelf.open("grpo")
    assert (about["id"], about["block_size"], about["has_chat_template"], about["parent"]) == ("grpo", 64, False, None)
    assert about["parameters"] == sum(weight.numel() for weight in shelf.open("grpo").parameters())
    with pytest.raises(UnknownModel, match='no model "grp"; did you mean "grpo"'):
        shelf.open("grp")


def test_two_runs_are_told_apart(run_folder: Path, tmp_path: Path) -> None:
    save(small_model(), tmp_path / "other" / "base")
    write_text(tmp_path / "other" / "recipe.toml", "")
    shelf = Shelf.of([str(run_folder), str(tmp_path / "other")], device="cpu")
    assert shelf.names() == ["mine/base", "mine/grpo", "other/base"]


def test_a_patch_is_the_name_of_the_model_that_it_was_made_for(run_folder: Path, tmp_path: Path) -> None:
    shelf = Shelf.of([str(run_folder)], device="cpu")
    config = EditConfig(layers=(0,), steps=1, n_prefixes=0, refine_steps=0, covariance_tokens=500)
    fact, text = Fact("Tom has", "Tom", target_new="Paris", target_true="3"), torch.randint(0, 290, (20, 32))
    patch = edit_model(copy.deepcopy(shelf.open("grpo")), [fact], config, covariance_blocks=text)
    save_patch(patch, tmp_path / "facts.safetensors")
    both = Shelf.of([str(run_folder), str(tmp_path / "facts.safetensors")], device="cpu")
    assert both.names() == ["base", "grpo", "grpo+facts"] and both.parent("grpo+facts") == "grpo"
    before, after = both.open("grpo").state_dict(), both.open("grpo+facts").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"blocks.0.mlp.down.weight"}
    with pytest.raises(UserError, match="the patch of none of these models"):
        Shelf.of([str(run_folder / "base"), str(tmp_path / "facts.safetensors")], device="cpu")
    with pytest.raises(UserError, match="no model to serve"):
        Shelf.of([str(tmp_path / "facts.safetensors")], device="cpu")


def test_what_cannot_be_offered_is_named(run_folder: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "begun" / "recipe.toml", "")
    with pytest.raises(UserError, match="this run has no model yet"):
        Shelf.of([str(tmp_path / "begun")], device="cpu")
    with pytest.raises(UserError, match='two models would be called "base"'):
        Shelf.of([str(run_folder), str(run_folder / "base")], device="cpu")
    silent = small_model()
    silent.tokenizer = None
    save(silent, tmp_path / "silent")
    with pytest.raises(UserError, match="carries no tokenizer"):
        Shelf.of([str(tmp_path / "silent")], device="cpu")


def test_an_edited_model_comes_and_goes() -> None:
    shelf, told = Shelf(), list[int]()
    shelf.on_change = lambda: told.append(1)
    shelf.add("m", small_model())
    shelf.add("m+edit-1", small_model(seed=1), parent="m")
    with pytest.raises(UserError, match='two models would be called "m"'):
        shelf.add("m", small_model())
    shelf.remove("m+edit-1")
    assert shelf.names() == ["m"] and len(told) >= 3
