"""Dataclasses to TOML and back, and the sentences a misspelt or mistyped setting earns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.settings import differences, read_settings, to_table, write_settings


@dataclass(frozen=True)
class Steps:
    steps: int = 10
    lr: float = 3e-4
    top_k: int | None = 50
    source: str | None = None
    mode: Literal["zscore", "mean"] = "zscore"
    layers: tuple[int, ...] = (0, 1)
    clip: tuple[float, float] = (0.2, 0.28)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError(f"steps must not be negative, found {self.steps}.")


@dataclass(frozen=True)
class Plan:
    name: str
    fast: bool = False
    grpo: Steps = Steps()
    expect: dict[str, str] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0})


def read(tmp_path: Path, text: str) -> Plan:
    file = tmp_path / "tiny.toml"
    file.write_text(text, encoding="utf-8")
    return read_settings(Plan, file)


def test_fields_left_out_keep_their_defaults(tmp_path: Path) -> None:
    plan = read(tmp_path, 'name = "a"\n[grpo]\nlr = 1\nlayers = [3]\ntop_k = "none"\n[expect]\n"a.b" = ">= 1"\n')
    assert plan == Plan("a", grpo=Steps(lr=1.0, layers=(3,), top_k=None), expect={"a.b": ">= 1"})
    assert plan.rewards == {"accuracy": 1.0}
    assert isinstance(plan.grpo.lr, float)


def test_defaults_fill_what_the_file_leaves_out(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("fast = true\n")
    assert read_settings(Plan, file, defaults={"name": "mine", "fast": False}) == Plan("mine", fast=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('name = "a"\n[grpo]\nstepz = 1', 'tiny.toml: [grpo] has an unknown field "stepz"; did you mean "steps"?'),
        ('name = "a"\n[grpo]\nzebra = 1', 'tiny.toml: [grpo] has an unknown field "zebra".'),
        ('name = "a"\n[gpro]\nsteps = 1', 'tiny.toml has an unknown field "gpro"; did you mean "grpo"?'),
        ('name = "a"\n[grpo]\nsteps = "ten"', 'tiny.toml: [grpo] "steps" must be a whole number, found "ten".'),
        ('name = "a"\n[grpo]\nsteps = 1.5', 'tiny.toml: [grpo] "steps" must be a whole number, found 1.5.'),
        ('name = "a"\n[grpo]\nsteps = true', 'tiny.toml: [grpo] "steps" must be a whole number, found true.'),
        ('name = "a"\n[grpo]\nlr = "3e-4"', 'tiny.toml: [grpo] "lr" must be a number, found "3e-4".'),
        ('name = "a"\nfast = 1', 'tiny.toml: "fast" must be true or false, found 1.'),
        (
            'name = "a"\n[rewards]\nformat = "0.1"',
            'tiny.toml: [rewards] "format" must be a number, found "0.1".',
        ),
        ('name = "a"\nrewards = 1', 'tiny.toml: "rewards" must be a table of fields, found 1.'),
        ('name = "a"\ngrpo = 3', 'tiny.toml: "grpo" must be a table of fields ([grpo]), found 3.'),
        (
            'name = "a"\n[grpo]\nmode = "meen"',
            'tiny.toml: [grpo] "mode" must be one of "zscore", "mean", found "meen".',
        ),
        (
            'name = "a"\n[grpo]\ntop_k = "all"',
            'tiny.toml: [grpo] "top_k" must be a whole number or "none", found "all".',
        ),
        (
            'name = "a"\n[grpo]\nlayers = 3',
            'tiny.toml: [grpo] "layers" must be an array ([…]) of a whole number, found 3.',
        ),
        (
            'name = "a"\n[grpo]\nlayers = [0, "1"]',
            'tiny.toml: [grpo] "layers[1]" must be a whole number, found "1".',
        ),
        (
            'name = "a"\n[grpo]\nclip = [0.2]',
            'tiny.toml: [grpo] "clip" must be an array of 2 (a number, a number), found [0.2].',
        ),
        ('name = "a"\n[grpo]\nsteps = -1', "tiny.toml: [grpo] steps must not be negative, found -1."),
        ("fast = true", 'tiny.toml: the field "name" is missing (text in quotes).'),
        ("name = ", "tiny.toml: not valid TOML"),
        (
            'name = "a"\n[grpo]\nlr = 1e-400',
            "tiny.toml: not valid TOML (1e-400 is nearer to zero than a number can be; write 0, or a larger one).",
        ),
    ],
)
def test_a_bad_setting_earns_one_clear_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_setting(tmp_path: Path) -> None:
    file = tmp_path / "marked.toml"
    file.write_bytes(b'\xef\xbb\xbfname = "a"\nfast = true\n')
    assert read_settings(Plan, file) == Plan("a", fast=True)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere.toml: no such file"):
        read_settings(Plan, tmp_path / "nowhere.toml")
    with pytest.raises(UserError, match="a folder"):
        read_settings(Plan, tmp_path)


def test_none_is_left_out_only_where_it_is_the_default() -> None:
    assert "source" not in to_table(Steps(source=None))
    assert to_table(Steps(top_k=None))["top_k"] == "none"


plans = st.builds(
    Plan,
    name=st.text(st.characters(codec="utf-8"), max_size=20),
    fast=st.booleans(),
    grpo=st.builds(
        Steps,
        steps=st.integers(0, 2**40),
        lr=st.floats(allow_nan=False),
        top_k=st.none() | st.integers(0, 99),
        source=st.none() | st.text("abc/._ ", max_size=9),
        mode=st.sampled_from(["zscore", "mean"]),
        layers=st.lists(st.integers(-5, 50), max_size=4).map(tuple),
        clip=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    ),
    expect=st.dictionaries(st.text("ab.-_1 ", min_size=1, max_size=8), st.text(">=<0123456789. ", max_size=8)),
)


@settings(max_examples=30)
@given(plan=plans)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    file = tmp_path_factory.mktemp("settings") / "plan.toml"
    write_settings(plan, file)
    assert read_settings(Plan, file) == plan


def test_differences_name_the_fields_by_their_path() -> None:
    other = Plan("b", grpo=Steps(steps=3, top_k=None), expect={"a": "> 1"})
    assert differences(Plan("a"), other) == ["name", "grpo.steps", "grpo.top_k", "expect"]
    assert differences(other, other) == []
