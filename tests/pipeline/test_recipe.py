"""Recipes: found by name, read, overridden, saved, and what a wrong one earns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt_edit.commands.parse import parse
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.pipeline.recipe import (
    PACKAGED,
    ModelConfig,
    Recipe,
    load_recipe,
    packaged_recipes,
    refuse_unread,
    save_recipe,
)


def test_tiny_is_packaged() -> None:
    assert "tiny" in packaged_recipes()
    assert load_recipe("tiny").name == "tiny"


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_packaged_recipe_comes_back_from_its_resolved_file(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    save_recipe(recipe, tmp_path / "recipe.toml")
    assert load_recipe(tmp_path / "recipe.toml") == recipe
    assert load_recipe(PACKAGED / f"{name}.toml") == recipe


def test_a_recipe_without_a_name_is_called_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text("[model]\nn_layer = 2\n")
    recipe = load_recipe(tmp_path / "small.toml")
    assert recipe == replace(Recipe(), name="small", model=ModelConfig(n_layer=2))


def test_an_unknown_recipe_names_the_nearest_and_all() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("tinny")
    assert str(caught.value).startswith('there is no recipe "tinny"; did you mean "tiny"? Packaged: ')
    with pytest.raises(UserError, match="mine.toml: no such file"):
        load_recipe("mine.toml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[grpo]\nstepz = 3", 'my.toml: [grpo] has an unknown field "stepz"; did you mean "steps"?'),
        ("[gprpo]\nsteps = 3", 'my.toml has an unknown field "gprpo"; did you mean "grpo"?'),
        ("[sft]\nsteps = -3", "my.toml: [sft] steps is -3; it cannot be negative."),
        ("[grpo.rewards]\nformat = true", 'my.toml: [grpo.rewards] "format" must be a number, found true.'),
        (
            'stages = ["base", "edit"]',
            'my.toml: "stages[1]" must be one of "base", "sft", "grpo", "edited", found "edit".',
        ),
        ("stages = []", "my.toml: stages is empty; it begins with base, the model that the others are made from."),
        ('stages = ["edited"]', "my.toml: stages begins with edited; it begins with base, the model that"),
        ('stages = ["base", "grpo", "sft"]', "my.toml: stages is base, grpo, sft; each stands there once at most, in"),
        ('stages = ["base", "edited", "edited"]', "my.toml: stages is base, edited, edited; each stands there once at"),
        ('stages = ["base", "grpo", "edited", "sft"]', "my.toml: stages is base, grpo, edited, sft; each stands there"),
        (
            'stages = ["base", "base"]',
            "my.toml: stages is base, base; each stands there once at most, in the order base,",
        ),
        ("[expect]\nedit.success = '>= 1'", 'my.toml: [expect] "edit" must be text in quotes, found '),
    ],
)
def test_a_wrong_recipe_earns_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "my.toml")
    assert str(caught.value).startswith(sentence)


def test_every_field_can_be_overridden_on_the_command_line() -> None:
    tiny = load_recipe("tiny")
    arguments = ["--problems.path", "data/gsm8k", "--grpo.steps", "7", "--grpo.rewards", "accuracy=2", "tests:f=-0.5"]
    arguments += ["--evaluate.top-k", "None", "--edit.layers", "1", "2", "--seed=5"]
    chosen = parse(Recipe, arguments, verb="run tiny", default=tiny)
    assert chosen == replace(
        tiny,
        seed=5,
        problems=replace(tiny.problems, path="data/gsm8k"),
        grpo=replace(tiny.grpo, steps=7, rewards={"accuracy": 2.0, "tests:f": -0.5}),
        evaluate=replace(tiny.evaluate, top_k=None),
        edit=replace(tiny.edit, layers=(1, 2)),
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--problems.path", "data/gsm8k", "--world.seed", "3"], r"world.seed is given, but the problems are those of"),
        (["--model.source", "gpt2", "--model.n-layer", "6"], r"model.n_layer is given, but the model is gpt2"),
        (["--stages=base", "--sft.steps", "6"], r"sft.steps is given, but the stages are base \(stages\), so nothing"),
        (["--stages=base", "--facts", "my.jsonl"], r"facts is given, but the stages are base \(stages\), so nothing"),
    ],
)
def test_what_nothing_would_read_is_refused(arguments: list[str], sentence: str) -> None:
    tiny = load_recipe("tiny")
    given = parse(Recipe, arguments, verb="run tiny", default=tiny)
    with pytest.raises(UserError, match=sentence):
        refuse_unread(given, tiny)
    refuse_unread(parse(Recipe, arguments[:-2], verb="run tiny", default=tiny), tiny)
    refuse_unread(parse(Recipe, arguments[-2:], verb="run tiny", default=tiny), tiny)


def test_an_overridden_recipe_comes_back_too(tmp_path: Path) -> None:
    tiny = load_recipe("tiny")
    recipe = replace(tiny, evaluate=replace(tiny.evaluate, top_k=None), threads=2)
    save_recipe(recipe, tmp_path / "recipe.toml")
    assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_help_explains_every_field_of_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Recipe, ["--help"], verb="run tiny", default=load_recipe("tiny"))
    printed = " ".join(capsys.readouterr().out.replace("│", "").split())
    for shown in (
        "--problems.path",
        "--pretrain.steps",
        "--sft.replay",
        "--grpo.clip-high",
        "--edit.covariance-weight",
    ):
        assert shown in printed
    assert "Optimizer steps; 0 leaves the stage out. (default:" in printed
