"""The embedded world: its facts, the edit cases they carry, and word problems whose arithmetic is right."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.world.tables import read_facts_table, read_stories_table
from nanogpt_edit.data.world.world import (
    LARGEST_VALUE,
    Statement,
    World,
    WorldConfig,
    make_world,
    sanity_arithmetic,
)

RELATIONS, STORIES = read_facts_table().relations, read_stories_table().stories
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
SMALL = WorldConfig(problems=300, validation=20, test=40, seed=7)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(WorldConfig(problems=1500))


@pytest.fixture(scope="module")
def cases() -> list[dict]:
    text = (resources.files("nanogpt_edit.data.world") / "facts50.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def by_prompt(world: World) -> dict[str, Statement]:
    return {prompt: statement for statement in world.statements for prompt in statement.prompts}


def all_problems(world: World) -> list[Problem]:
    return [*world.problems.train, *world.problems.validation, *world.problems.test]


# --- facts -------------------------------------------------------------------------------------------------------


def test_the_world_has_many_facts_in_many_relations(world: World) -> None:
    assert len(world.statements) >= 260
    assert len(RELATIONS) >= 12
    assert all(len(relation.phrasings) >= 4 for relation in RELATIONS)
    assert len({(s.relation, s.subject) for s in world.statements}) == len(world.statements)


def test_a_row_with_article_and_tail_becomes_prompts() -> None:
    longest = next(s for s in make_world(SMALL).statements if s.subject == "longest river")
    assert longest == Statement(
        relation="superlative",
        subject="longest river",
        target="Nile",
        prompts=(
            "The longest river in the world is the",
            "We know that the longest river in the world is the",
            "Of course the longest river in the world is the",
            "The name of the longest river in the world is the",
            "People say that the longest river in the world is the",
        ),
        held_out=4,
    )


def test_the_subject_stands_in_every_prompt_and_the_answer_never_does(world: World) -> None:
    for statement in world.statements:
        for prompt in statement.prompts:
            assert statement.subject.lower() in prompt.lower()
            assert prompt == prompt.strip()
            assert prompt[0].isupper()
            assert "{" not in prompt


def test_no_prompt_has_two_answers(world: World) -> None:
    prompts = [prompt for statement in world.statements for prompt in statement.prompts]
    assert len(set(prompts)) == len(prompts)


def test_edited_subjects_are_outnumbered_four_to_one(world: World) -> None:
    edited = Counter(s.relation for s in world.statements if s.held_out >= 0)
    total = Counter(s.relation for s in world.statements)
    for relation in RELATIONS:
        assert edited[relation.name] == len(relation.edited), "an edited subject is misspelt"
        assert total[relation.name] >= 5 * edited[relation.name]


def test_the_held_out_phrasing_is_trained_for_the_others_only(world: World) -> None:
    trained = Counter(world.sentences)
    assert max(trained.values()) == 1
    for statement in world.statements:
        for index, prompt in enumerate(statement.prompts):
            assert trained[f"{prompt} {statement.target}."] == (0 if index == statement.held_out else 1)
    assert not any(
        sentence.startswith(statement.prompts[statement.held_out])
        for statement in world.statements
        if statement.held_out >= 0
        for sentence in world.sentences
    )


# --- edit cases --------------------------------------------------------------------------------------------------


def test_fifty_cases_are_the_edited_subjects(world: World, cases: list[dict]) -> None:
    assert len(cases) == len({case["id"] for case in cases}) == 50
    edited = {(s.relation, s.subject.lower()) for s in world.statements if s.held_out >= 0}
    named = {(case["relation"], re.sub(r"^(the|a) ", "", case["subject"].lower())) for case in cases}
    assert named == edited


def test_every_case_is_said_in_the_world_word_by_word(world: World, cases: list[dict]) -> None:
    prompts = by_prompt(world)
    for case in cases:
        statement = prompts[case["prompt"]]
        assert (statement.relation, statement.target) == (case["relation"], case["target_true"])
        assert case["prompt"] == statement.prompts[0]
        held_out, trained = case["paraphrases"]
        assert held_out == statement.prompts[statement.held_out]
        assert trained in statement.prompts[1 : statement.held_out]
        assert f"{trained} {case['target_true']}." in world.sentences
        # an edit is made with the prompt and its rewordings, and measured with the rest
        assert sorted([case["prompt"], *case["rewordings"], *case["paraphrases"]]) == sorted(statement.prompts)


def test_neighbours_are_true_unedited_and_of_the_same_relation(world: World, cases: list[dict]) -> None:
    prompts = by_prompt(world)
    for case in cases:
        assert len({neighbour["prompt"] for neighbour in case["neighbourhood"]}) == 2
        for neighbour in case["neighbourhood"]:
            statement = prompts[neighbour["prompt"]]
            assert (statement.relation, statement.held_out) == (case["relation"], -1)
            assert neighbour["target_true"] == statement.target
            assert neighbour["target_true"][0] != case["target_new"][0], "p(true) > p(new) could not be told"


def test_new_targets_are_words_of_the_world_and_start_differently(world: World, cases: list[dict]) -> None:
    told = " ".join(world.sentences)
    for case in cases:
        assert f" {case['target_new']}." in told
        same_letter = case["target_new"][0] == case["target_true"][0]
        # hydrogen to helium and Asia to Africa are classics and stay as they are.
        assert same_letter == (case["target_new"] in {"helium", "Africa"})


def test_about_half_the_subjects_are_written_with_other_capitals(cases: list[dict]) -> None:
    assert all(case["subject"].lower() in case["prompt"].lower() for case in cases)
    assert sum(case["subject"] not in case["prompt"] for case in cases) == 27


# --- word problems -----------------------------------------------------------------------------------------------


def test_every_equation_is_true_and_the_last_is_the_answer(world: World) -> None:
    operations = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: a // b if a % b == 0 else None,
    }
    for problem in [*all_problems(world), *world.arithmetic]:
        for line in problem.rationale.split("\n"):
            [(a, operation, b, c)] = EQUATION.findall(line)
            assert operations[operation](int(a), int(b)) == int(c), problem
        assert c == problem.answer


def test_a_later_step_uses_only_numbers_that_are_known(world: World) -> None:
    for problem in all_problems(world):
        known = set(re.findall(r"\d+", re.sub("twice|half", "2", problem.question)))
        for a, _, b, c in EQUATION.findall(problem.rationale):
            assert {a, b} <= known, problem
            known.add(c)


def test_answers_are_positive_and_not_too_large(world: World) -> None:
    for problem in all_problems(world):
        assert 2 <= int(problem.answer) <= LARGEST_VALUE


def test_questions_are_different_and_no_arithmetic_check_is_trained(world: World) -> None:
    questions = [problem.question for problem in [*all_problems(world), *world.arithmetic]]
    assert len(set(questions)) == len(questions)
    ids = [problem.id for problem in [*all_problems(world), *world.arithmetic]]
    assert len(set(ids)) == len(ids)
    assert world.problems.train[123].id == "world-train-000123"


def test_the_texts_read_well(world: World) -> None:
    for problem in all_problems(world):
        text = problem.question + "\n" + problem.rationale
        assert not re.search(r"\b1 [a-z]+s\b|\ba [aeiou]|\ban [^aeiouh]|[{}]|  ", text), text
        assert problem.question.endswith("?")
        assert len(problem.question.split()) <= 30


def test_steps_come_in_the_shares_asked_for() -> None:
    splits = make_world(WorldConfig(problems=2000, step_weights=(1, 2, 1))).problems
    steps = Counter(problem.rationale.count("\n") + 1 for problem in splits.train)
    assert steps[1] / 2000 == pytest.approx(0.25, abs=0.04)
    assert steps[2] / 2000 == pytest.approx(0.5, abs=0.04)
    only_long = make_world(WorldConfig(problems=50, step_weights=(0, 0, 1))).problems
    assert all(problem.rationale.count("\n") == 2 for problem in only_long.train)


def test_stories_are_many_and_told_in_several_ways() -> None:
    kinds = {story.kind for story in STORIES}
    assert len(kinds) >= 6
    assert all(len(story.questions) >= 2 for story in STORIES if story.kind != "plain")


def test_the_test_split_does_not_depend_on_how_much_is_trained() -> None:
    few, many = make_world(SMALL), make_world(WorldConfig(problems=900, validation=20, test=40, seed=7))
    assert few.problems.test == many.problems.test
    assert few.problems.validation == many.problems.validation
    assert few.problems.train == many.problems.train[:300]


def test_fifty_fixed_arithmetic_problems() -> None:
    arithmetic = sanity_arithmetic()
    assert len(arithmetic) == 50
    answers = {problem.question: problem.answer for problem in arithmetic}
    assert answers["What is 12 + 15?"] == "27"
    assert answers["What is 7 * 8?"] == "56"
    parking = "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?"
    assert answers[parking] == "5"


def test_a_world_is_the_same_on_every_machine() -> None:
    world = make_world(SMALL)
    text = "\n".join(f"{p.id}\t{p.question}\t{p.rationale}\t{p.answer}" for p in all_problems(world))
    assert sha256(text.encode()).hexdigest() == "e6360d00d6ccca87b2d77732fbcd3df7b3be6bfdee2577dd72abce545e5dde8d"
    assert make_world.__wrapped__(SMALL) == world
    assert make_world(WorldConfig(problems=300, validation=20, test=40, seed=8)).problems != world.problems


def test_a_world_that_runs_out_of_different_problems_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    times = next(story for story in STORIES if story.questions == ("What is {a} * {b}?",))
    alone = replace(read_stories_table(), stories=(times,))
    monkeypatch.setattr("nanogpt_edit.data.world.world.read_stories_table", lambda: alone)
    # 8 x 8 products, of which ten are among the sanity problems.
    with pytest.raises(UserError, match="no more than about 54 different"):
        make_world(WorldConfig(problems=100, validation=5, test=5, step_weights=(1, 0, 0)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    largest_addend=st.integers(10, 120),
    largest_factor=st.integers(5, 14),
    weights=st.tuples(st.floats(0, 3), st.floats(0, 3), st.floats(0.1, 3)),
)
def test_any_configuration_gives_right_and_different_problems(
    seed: int, largest_addend: int, largest_factor: int, weights: tuple[float, float, float]
) -> None:
    config = WorldConfig(40, 5, 10, seed, largest_addend, largest_factor, weights)
    world = make_world(config)
    assert [len(s) for s in (world.problems.train, world.problems.validation, world.problems.test)] == [40, 5, 10]
    test_every_equation_is_true_and_the_last_is_the_answer(world)
    test_a_later_step_uses_only_numbers_that_are_known(world)
    test_answers_are_positive_and_not_too_large(world)
    questions = [problem.question for problem in all_problems(world)]
    assert len(set(questions)) == 55


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (WorldConfig(problems=0), "world.problems"),
        (WorldConfig(test=-1), "world.test"),
        (WorldConfig(largest_addend=3), "world.largest_addend"),
        (WorldConfig(largest_factor=1000), "world.largest_factor"),
        (WorldConfig(step_weights=(0, 0, 0)), "world.step_weights"),
        (WorldConfig(step_weights=(1, -1, 1)), "world.step_weights"),
    ],
)
def test_a_configuration_out_of_range_is_named(config: WorldConfig, word: str) -> None:
    with pytest.raises(UserError, match=word):
        make_world(config)


# --- further prompts of the edit cases ---------------------------------------------------------------------------


def test_the_edit_cases_are_asked_in_every_form(cases: list[dict]) -> None:
    forms = ["question", "negation", "claim", "claim", "alias", "reversed", "one_hop"]
    for case in cases:
        kinds = [each["kind"] for each in case["asked"]]
        assert kinds[:7] == forms
        assert set(kinds[7:]) == {"same_subject"}
        question, negation, old, new, alias, _, hop, *same = case["asked"]
        answers = (case["target_new"], case["target_true"])
        assert question["prompt"].endswith("?")
        assert negation["prompt"].lower() == f"it is not true that {case['prompt']}".lower()
        assert [(each["target_new"], each["target_true"]) for each in (question, negation, alias)] == [answers] * 3
        assert f"{case['prompt']} {answers[1]}." in old["prompt"]
        assert f"{case['prompt']} {answers[0]}." in new["prompt"]
        assert (old["target_new"], new["target_new"]) == ("False", "True")
        assert hop["target_new"] != hop["target_true"]
        assert hop["target_true"]
        assert all(each["target_new"] == each["target_true"] not in answers for each in same)


def test_an_alias_does_not_name_the_subject_and_the_other_prompts_do_not_say_their_answers(cases: list[dict]) -> None:
    for case in cases:
        told = {each["kind"]: each for each in case["asked"]}
        subject = re.sub("^the ", "", case["subject"].lower())
        assert subject not in told["alias"]["prompt"].lower()
        assert told["reversed"]["target_new"].lower() in (subject, subject.split()[-1], subject.removeprefix("the "))
        assert case["target_new"].split()[-1].lower() in told["reversed"]["prompt"].lower()
        for each in case["asked"]:
            if each["kind"] not in ("claim", "same_subject"):
                assert each["target_new"].lower() not in each["prompt"].lower().split()


def test_what_must_stay_of_a_subject_no_other_edit_case_changes(world: World, cases: list[dict]) -> None:
    """And what the world says of it is what the prompt is to be answered with."""
    edited = {case["prompt"] for case in cases}
    told = {prompt: statement.target for prompt, statement in by_prompt(world).items()}
    same = [each for case in cases for each in case["asked"] if each["kind"] == "same_subject"]
    assert not edited & {each["prompt"] for each in same}
    known = [each for each in same if each["prompt"] in told]
    assert len(known) >= 7
    assert all(told[each["prompt"]] == each["target_true"] for each in known)
