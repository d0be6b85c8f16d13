"""Rewards: what the built-in ones pay for, how others are found, and what is said when one fails."""

from __future__ import annotations

import gc
import math
import sys
import zlib
from pathlib import Path

import pytest

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.training.rewards import (
    accuracy,
    cosine,
    find_reward,
    find_rewards,
    format_reward,
    length,
    repetition,
    score,
)

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


def test_cosine_by_hand() -> None:
    # The worked solution has 44 characters, so long is 88. Right with 34 characters: ½ + ¼ (1 + cos(π 34/88)).
    right, wrong = "<think></think><answer>72</answer>", "<think></think><answer>71</answer>"
    assert (len(right), len("<think>8 * 9 = 72</think><answer>72</answer>")) == (34, 44)
    assert cosine(PROBLEM, right) == pytest.approx(0.5 + (1 + math.cos(math.pi * 34 / 88)) / 4)
    assert cosine(PROBLEM, wrong) == pytest.approx(-0.5 - (1 + math.cos(math.pi * 34 / 88)) / 4)
    assert cosine(PROBLEM, "") == -1.0
    assert cosine(PROBLEM, "x" * 88) == cosine(PROBLEM, "x" * 900) == -0.5
    longer = f"<think>{'8 * 9 = 72 ' * 9}</think><answer>72</answer>"
    assert cosine(PROBLEM, longer) == 0.5


def test_repetition_by_hand() -> None:
    assert repetition(PROBLEM, "one two three four") == 0
    assert repetition(PROBLEM, "one two") == repetition(PROBLEM, "") == 0
    # abc, bca, cab, abc, bca, cab, abc: three of seven are new.
    assert repetition(PROBLEM, "a b c a b c a b c") == pytest.approx(3 / 7 - 1)


def test_model_text_is_read_and_never_run(tmp_path: Path) -> None:
    evidence = tmp_path / "ran"
    text = f"<think></think><answer>__import__('pathlib').Path({str(evidence)!r}).touch() or 72</answer>"
    score(find_rewards(("accuracy", "format")), PROBLEM, [text, "{9*8}", "$(echo 72)"])
    assert not evidence.exists()


def test_scores_come_by_name_and_without_their_weights() -> None:
    texts = ["<think></think><answer>72</answer>", "<think></think><answer>7</answer>", "72"]
    scores = score(find_rewards(("accuracy", "format")), PROBLEM, texts)
    assert scores == {"accuracy": [1.0, 0.0, 0.0], "format": [1.0, 1.0, 0.0]}


# Rewards of one's own


def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, *, name: str) -> None:
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)


def test_any_importable_function_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def brief(problem, text):\n    return len(problem.answer) / len(text)\n"
    own_module(tmp_path, monkeypatch, source, name="own_brevity")
    assert score(find_rewards(["own_brevity:brief"]), PROBLEM, ["12345678", "1234"]) == {
        "own_brevity:brief": [0.25, 0.5]
    }


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
        ("import sys; sys.exit('bye')", "failed: SystemExit: bye"),
        ("raise SystemExit", "failed: SystemExit"),
        ("raise GeneratorExit", "failed: GeneratorExit"),
        ("raise RecursionError('deep')", "failed: RecursionError: deep"),
        ("return 'much'", "gave str 'much'; a reward must return one number"),
        ("return '1.5'", "gave str '1.5'; a reward must return one number"),
        ("return None", "gave None; a reward must return one number"),
        ("pass", "gave None; a reward must return one number"),
        ("return [1.0]", "gave list \\[1.0\\]; a reward must return one number"),
        ("return {'reward': 1}", "gave dict {'reward': 1}"),
        ("return 1j", "gave complex 1j"),
        ("return (n for n in (1, 2))", "gave generator "),
        ("import torch; return torch.ones(2)", "gave Tensor tensor"),
        ("import numpy; return numpy.ones(3)", "gave ndarray array"),
        ("return 10 ** 400", "gave int 1000"),
        ("return float('nan')", "gave nan; a reward must be a finite number"),
        ("return -float('inf')", "gave -inf"),
        ("import torch; return torch.tensor(float('nan'))", "gave nan; a reward must be a finite number"),
    ],
)
def test_a_reward_that_fails_is_named_with_the_problem_and_the_completion(
    body: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"failing_{zlib.crc32(body.encode())}"
    own_module(tmp_path, monkeypatch, f"def f(problem, text):\n    {body}\n", name=name)
    with pytest.raises(UserError, match=sentence) as caught:
        score(find_rewards(("accuracy", f"{name}:f")), PROBLEM, ["some text\nof two lines"])
    assert f"reward \"{name}:f\" on problem train:17, completion 'some text\\nof two lines'" in str(caught.value)


def test_further_numbers_stand_beside_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def f(problem, text):\n    return len(text), {'words': len(text.split()), 'loud': text.isupper()}\n"
    own_module(tmp_path, monkeypatch, source, name="further")
    assert score(find_rewards(["further:f"]), PROBLEM, ["a b", "ABCD"]) == {
        "further:f": [3.0, 4.0],
        "further:f.words": [2.0, 1.0],
        "further:f.loud": [0.0, 1.0],
    }


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return 1.0, {'words': 'many'}", "gave str 'many' for failing_further:f.words"),
        ("return 1.0, {'words': float('nan')}", "gave nan for failing_further:f.words"),
        ("return 1.0, 2.0", r"gave tuple \(1.0, 2.0\); a reward must return one number"),
        ("return 1.0, ({'words': 2} if text else {})", "gave further numbers none; before, failing_further:f.words"),
    ],
)
def test_further_numbers_are_checked_as_the_reward_is(
    body: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_module(tmp_path, monkeypatch, f"def f(problem, text):\n    {body}\n", name="failing_further")
    monkeypatch.delitem(sys.modules, "failing_further", raising=False)
    with pytest.raises(UserError, match=sentence):
        score(find_rewards(["failing_further:f"]), PROBLEM, ["some text", ""])


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("async def f(problem, text):\n    return 1.0\n", "is async, and nothing would await it"),
        ("async def f(problem, text):\n    yield 1.0\n", "is async, and nothing would await it"),
        ("def f(problem, text):\n    yield 1.0\n", "yields; it is to return one number"),
        ("import sys\nsys.exit(0)\n", "cannot be imported"),
    ],
)
def test_what_can_never_be_a_reward_is_refused_before_it_is_called(
    source: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"never_{zlib.crc32(source.encode())}"
    own_module(tmp_path, monkeypatch, source, name=name)
    with pytest.raises(UserError, match=sentence):
        find_reward(f"{name}:f")


def test_a_coroutine_is_closed_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "async def inner():\n    return 1.0\ndef f(problem, text):\n    return inner()\n"
    own_module(tmp_path, monkeypatch, source, name="awaited_by_nobody")
    with pytest.raises(UserError, match="gave coroutine .*; a reward must return one number"):
        score(find_rewards(["awaited_by_nobody:f"]), PROBLEM, ["text"])
    gc.collect()  # a coroutine that nothing awaited would warn here, and warnings are errors


def test_an_interrupt_inside_a_reward_interrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_module(tmp_path, monkeypatch, "def f(problem, text):\n    raise KeyboardInterrupt\n", name="interrupted")
    with pytest.raises(KeyboardInterrupt):
        score(find_rewards(["interrupted:f"]), PROBLEM, ["text"])


@pytest.mark.parametrize(
    ("body", "value"),
    [("return True", 1.0), ("return 3", 3.0), ("import torch; return torch.tensor([0.5])", 0.5)],
)
def test_what_plainly_is_one_number_counts_as_it(
    body: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"plain_{zlib.crc32(body.encode())}"
    own_module(tmp_path, monkeypatch, f"def f(problem, text):\n    {body}\n", name=name)
    assert score(find_rewards([f"{name}:f"]), PROBLEM, [""]) == {f"{name}:f": [value]}


def test_a_reward_may_be_any_finite_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_module(tmp_path, monkeypatch, "import math\ndef f(problem, text):\n    return -math.pi\n", name="negative")
    assert score(find_rewards(["negative:f"]), PROBLEM, [""]) == {"negative:f": [-math.pi]}
