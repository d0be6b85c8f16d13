"""Rewards: what the built-in ones pay for, how others are found, and what is said when one fails."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nanogpt_edit.data.problems import Problem
from nanogpt_edit.errors import UserError
from nanogpt_edit.train.rewards import accuracy, find_reward, format_reward, length, score

PROBLEM = Problem(question="What is 8 * 9?", rationale="8 * 9 = 72", answer="72", id="train:17")


@pytest.mark.parametrize(
    ("text", "right", "formed"),
    [
        ("<think>8 * 9 = 72</think><answer>72</answer>", 1, 1),
        ("<think></think><answer>72</answer>", 1, 1),  # thinking is free
        ("<think>8 * 9 = 72</think><answer>$72.00</answer>", 1, 1),  # the same number
        ("<think>8 * 9 = 72</think><answer>71</answer>", 0, 1),
        ("<think>8 * 9 = 72</think><answer></answer>", 0, 1),
        ("<think>8 * 9 = 72</think><answer>72", 0, 0),  # cut off
        ("72", 0, 0),  # right, but not in the format
        ("<answer>72</answer>", 0, 0),
        (" <think></think><answer>72</answer>", 0, 0),  # something outside
        ("<think></think><answer>72</answer><answer>72</answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_accuracy_and_format(text: str, right: int, formed: int) -> None:
    assert accuracy(PROBLEM, text) == right
    assert format_reward(PROBLEM, text) == formed


def test_length_is_measured_against_the_worked_solution() -> None:
    wanted = len("<think>8 * 9 = 72</think><answer>72</answer>")
    assert [length(PROBLEM, "x" * n) for n in (0, wanted // 2, wanted, wanted * 3 // 2, 2 * wanted, 9 * wanted)] == [
        0,
        0.5,
        1,
        0.5,
        0,
        0,
    ]


def test_model_text_is_read_and_never_run(tmp_path: Path) -> None:
    evidence = tmp_path / "ran"
    text = f"<think></think><answer>__import__('pathlib').Path({str(evidence)!r}).touch() or 72</answer>"
    score({"accuracy": 1.0, "format": 1.0}, PROBLEM, [text, "{9*8}", "$(echo 72)"])
    assert not evidence.exists()


def test_scores_come_by_name_and_without_their_weights() -> None:
    texts = ["<think></think><answer>72</answer>", "<think></think><answer>7</answer>", "72"]
    scores = score({"accuracy": 5.0, "format": 0.1}, PROBLEM, texts)
    assert scores == {"accuracy": [1.0, 0.0, 0.0], "format": [1.0, 1.0, 0.0]}


# Rewards of one's own


def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, *, name: str) -> None:
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)


def test_any_importable_function_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def brief(problem, text):\n    return len(problem.answer) / len(text)\n"
    own_module(tmp_path, monkeypatch, source, name="my_rewards")
    assert score({"my_rewards:brief": 1.0}, PROBLEM, ["12345678", "1234"]) == {"my_rewards:brief": [0.25, 0.5]}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("acuracy", 'no reward "acuracy"; did you mean "accuracy"?'),
        ("math:", 'no reward "math:"'),
        ("no_such_module:f", 'module "no_such_module" cannot be imported'),
        (":f", 'module "" cannot be imported'),
        (".relative:f", 'module ".relative" cannot be imported'),
        ("math:no_such_function", 'module "math" has no function "no_such_function"'),
        ("math:pi", 'reward "math:pi" is not a function'),
        ("os:getcwd", r'reward "os:getcwd" does not take \(problem, completion_text\)'),
    ],
)
def test_a_reward_that_cannot_be_found_is_named(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        find_reward(name)


@pytest.mark.parametrize("mistake", ["def f(:\n", "import sys\nsys.no_such_thing\n", "raise ValueError('no')\n"])
def test_a_module_with_a_mistake_in_it_is_named(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"mistaken_{len(mistake)}"
    own_module(tmp_path, monkeypatch, mistake, name=name)
    with pytest.raises(UserError, match=f'module "{name}" cannot be imported'):
        find_reward(f"{name}:f")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("1 / 0", "failed: ZeroDivisionError: division by zero"),
        ("return 'much'", "failed: ValueError: could not convert"),
        ("return None", "failed: TypeError"),
        ("return float('nan')", "gave nan; a reward must be a finite number"),
        ("return -float('inf')", "gave -inf"),
    ],
)
def test_a_reward_that_fails_is_named_with_the_problem_and_the_completion(
    body: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"failing_{len(body)}"
    own_module(tmp_path, monkeypatch, f"def f(problem, text):\n    {body}\n", name=name)
    with pytest.raises(UserError, match=sentence) as caught:
        score({"accuracy": 1.0, f"{name}:f": 1.0}, PROBLEM, ["some text\nof two lines"])
    assert f"reward \"{name}:f\" on problem train:17, completion 'some text\\nof two lines'" in str(caught.value)


def test_a_reward_may_be_any_finite_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_module(tmp_path, monkeypatch, "import math\ndef f(problem, text):\n    return -math.pi\n", name="negative")
    assert score({"negative:f": 1.0}, PROBLEM, [""]) == {"negative:f": [-math.pi]}
