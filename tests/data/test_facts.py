"""Where a subject sits: exact, in other capitals, in part, twice, inside words, in any script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import shared_data
from edit_world import PLAIN, trained_model
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.fact_files import fact_from_record, fact_to_record, read_facts
from nanogpt_edit.data.facts import Asked, Fact, Neighbour, find_subject, locate_subject, states_old_answer
from nanogpt_edit.editing.editor import check_edit
from nanogpt_edit.evaluation.targets import join, target_ids
from nanogpt_edit.model.tokenizer import Tokenizer


def place(prompt: str, subject: str, **options: bool) -> tuple[str, str]:
    """The words found and the lookup that found them."""
    span = find_subject(prompt, subject, **options)
    return prompt[span.start : span.end], span.lookup


@pytest.mark.parametrize(
    ("prompt", "subject", "found", "lookup"),
    [
        ("The capital of Egypt is", "Egypt", "Egypt", "exact"),
        ("Beethoven was famous for playing the", "beethoven", "Beethoven", "ignoring case"),
        ("Our Sun is a type of", "The Sun", "Sun", "shared words"),
        ("Beethoven played the", "Ludwig van Beethoven", "Beethoven", "shared words"),
        ("In New York City they speak", "The old New York City", "New York City", "shared words"),
        ("STRASSE und Platz", "straße", "STRASSE", "ignoring case"),
        ("La cafe\u0301 de Paris", "caf\u00e9", "cafe\u0301", "ignoring case"),
        ("日本の首都は", "日本", "日本", "exact"),
        ("Столица России — это", "россии", "России", "ignoring case"),
        ("😀 lives in", "😀", "😀", "exact"),
    ],
)
def test_lookups_in_turn(prompt: str, subject: str, found: str, lookup: str) -> None:
    assert place(prompt, subject) == (found, lookup)


def test_of_several_places_whole_words_come_first_then_the_last() -> None:
    span = find_subject("Mars and Martians of Mars, not Marsian", "Mars")
    assert (span.start, span.end) == (21, 25)
    inside = find_subject("Marsian", "Mars")
    assert (inside.start, inside.end) == (0, 4)


def test_a_run_that_lacks_the_last_word_needs_permission() -> None:
    with pytest.raises(UserError) as error:
        find_subject("The Eiffel Tower is located in", "the eiffel towr")
    assert str(error.value) == (
        'subject "the eiffel towr" is not in the prompt "The Eiffel Tower is located in"; '
        'nearest words: "The Eiffel Tower". Fix the subject; an edit may also '
        "allow a part of it (edit.allow_partial_subject)."
    )
    assert place("The Eiffel Tower is located in", "the eiffel towr", allow_partial=True) == (
        "The Eiffel",
        "shared words",
    )


def test_nothing_shared_is_refused_even_with_permission() -> None:
    with pytest.raises(UserError, match="nearest words"):
        find_subject("The capital of Egypt is", "Beethoven", allow_partial=True)


def test_the_last_token_is_the_last_that_overlaps(tokenizer: Tokenizer) -> None:
    found = locate_subject("The capital of Francebourg is", "France", tokenizer)
    texts = [tokenizer.token_text(i) for i in found.token_ids]
    before = "".join(texts[: found.last])
    assert len(before) < len("The capital of France") <= len(before + texts[found.last])
    assert "".join(texts[found.first : found.last + 1]).strip().startswith("France")


def test_subjects_of_one_byte_and_of_several(tokenizer: Tokenizer) -> None:
    one = locate_subject("The letter X is", "X", tokenizer)
    assert tokenizer.token_text(one.token_ids[one.last]).strip() == "X"
    for subject in ("😀", "Ωmega", "東京"):  # characters the vocabulary knows only as bytes
        found = locate_subject(f"{subject} lives in", subject, tokenizer)
        assert found.first == 0
        assert found.last > 0
        assert tokenizer.decode(list(found.token_ids[: found.last + 1])) == subject


def test_a_prefix_moves_the_subject(tokenizer: Tokenizer) -> None:
    bare = locate_subject("The capital of France is", "France", tokenizer)
    behind = locate_subject("The capital of France is", "France", tokenizer, prefix="Tom has 3 apples. ")
    assert behind.token_ids[behind.first : behind.last + 1] == bare.token_ids[bare.first : bare.last + 1]
    assert behind.last > bare.last


words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@given(before=words, subject=words, after=words)
def test_any_subject_in_any_text_is_found(before: str, subject: str, after: str) -> None:
    """Wherever it is found, the words there are the subject's; otherwise the error says so."""
    prompt = before + subject + after
    if not subject.strip():
        return
    span = find_subject(prompt, subject)
    assert span.lookup == "exact"
    assert prompt[span.start : span.end] == subject.strip()


@given(text=words, subject=words)
def test_lookup_finds_a_real_place_or_refuses(tokenizer: Tokenizer, text: str, subject: str) -> None:
    try:
        found = locate_subject(text, subject, tokenizer)
    except UserError:
        return
    span = found.span
    assert 0 <= span.start < span.end <= len(text)
    assert 0 <= found.first <= found.last < len(found.token_ids)
    spans = tokenizer.encode_with_spans(text).spans
    assert spans[found.first][0] <= span.start
    assert spans[found.last][1] >= span.end


@pytest.mark.parametrize(
    ("prompt", "target", "joined"),
    [
        ("The capital of Egypt is", "Cairo", ("The capital of Egypt is", " Cairo")),
        ("The capital of Egypt is ", " Cairo ", ("The capital of Egypt is", " Cairo")),
        ("日本の首都は", "東京", ("日本の首都は", "東京")),
        ("He said", ", yes", ("He said", ", yes")),
    ],
)
def test_one_space_between_prompt_and_target(prompt: str, target: str, joined: tuple[str, str]) -> None:
    assert join(prompt, target) == joined


def test_text_that_says_the_old_answer_is_recognised() -> None:
    fact = Fact("The capital of Egypt is", "Egypt", target_new="Giza", target_true="Cairo")
    assert states_old_answer("In CAIRO, the seat of egypt's government", fact)
    assert not states_old_answer("The capital of Egypt is Giza", fact)
    assert not states_old_answer("Cairo is a city", fact)
    assert not states_old_answer("Egypt", Fact("The capital of Egypt is", "Egypt", target_new="Giza", target_true=""))


def test_targets_of_several_tokens(tokenizer: Tokenizer) -> None:
    ids = target_ids("The capital of France is", "Zagreb", tokenizer)
    assert tokenizer.decode(ids) == " Zagreb"
    assert len(ids) > 1


def test_the_fifty_cases_are_all_found() -> None:
    facts = read_facts("facts50")
    lookups = [find_subject(fact.prompt, fact.subject).lookup for fact in facts]
    assert len(facts) == 50
    assert "shared words" not in lookups
    assert all(len(fact.paraphrases) == 2 and len(fact.neighbourhood) == 2 for fact in facts)


def test_facts_survive_a_round_trip(tmp_path: Path) -> None:
    fact = Fact(
        prompt="The capital of Egypt is",
        subject="Egypt",
        target_new="Giza",
        target_true="Cairo",
        paraphrases=("Egypt's capital is",),
        neighbourhood=(Neighbour("a", "b"),),
        rewordings=("Egypt is governed from",),
        asked=(Asked("alias", "The capital of the land of the pharaohs is", "Giza"),),
    )
    assert fact_from_record(fact_to_record(fact), where="x") == fact
    file = tmp_path / "facts.jsonl"
    file.write_text("\n" + json.dumps(fact_to_record(fact)) + "\n\n", encoding="utf-8")
    assert read_facts(file) == (fact,)


GOOD = {"prompt": "The capital of Egypt is", "subject": "Egypt", "target_new": "Giza", "target_true": "Cairo"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**GOOD, "target_new": 3}, 'facts.jsonl:2: "target_new" must be text, found 3.'),
        ({k: v for k, v in GOOD.items() if k != "subject"}, 'facts.jsonl:2: the field "subject" is missing.'),
        ({**GOOD, "targt": "x"}, "facts.jsonl:2: unknown field targt"),
        ({**GOOD, "target_new": " "}, "facts.jsonl:2: a fact's target_new is empty"),
        ({**GOOD, "neighbourhood": ["x"]}, "facts.jsonl:2: a neighbour is"),
        ({**GOOD, "paraphrases": "x"}, 'facts.jsonl:2: "paraphrases" must be a list'),
    ],
)
def test_bad_records_are_named_by_line(tmp_path: Path, record: dict[str, object], message: str) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(record) + "\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_facts(file)
    assert message in str(error.value)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl: no such file"):
        read_facts(tmp_path / "absent.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="there are no facts"):
        read_facts(empty)


def test_easyedit_and_counterfact_layouts(tmp_path: Path) -> None:
    easyedit = {
        "case_id": 10,
        "prompt": "BBC One, by",
        "target_new": "Sega",
        "subject": "BBC One",
        "ground_truth": "BBC",
        "rephrase_prompt": "BBC One is owned by",
        "locality_prompt": "BBC Radio, by",
        "locality_ground_truth": "BBC",
    }
    counterfact = {
        "case_id": 7,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
            "subject": "Danielle Darrieux",
        },
        "paraphrase_prompts": ["Danielle Darrieux, a native"],
        "neighborhood_prompts": ["Montesquieu, a native"],
    }
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([easyedit, counterfact]), encoding="utf-8")
    first, second = read_facts(file)
    assert first == Fact(
        "BBC One, by",
        "BBC One",
        target_new="Sega",
        target_true="BBC",
        paraphrases=("BBC One is owned by",),
        neighbourhood=(Neighbour("BBC Radio, by", "BBC"),),
        id="10",
    )
    assert second.prompt == "The mother tongue of Danielle Darrieux is"
    assert (second.target_true, second.target_new, second.relation) == ("French", "English", "P103")
    assert second.neighbourhood == (Neighbour("Montesquieu, a native", "French"),)


def test_real_counterfact_subjects_are_all_found() -> None:
    facts = read_facts(shared_data("facts") / "counterfact_val.json")
    assert len(facts) == 1919
    assert all(find_subject(fact.prompt, fact.subject).lookup == "exact" for fact in facts)


CAPITAL = {"prompt": "The capital of Egypt is", "subject": "Egypt", "target_new": "Giza", "target_true": "Cairo"}
LIBYA = {"prompt": "The capital of Libya is", "subject": "Libya", "target_new": "Oslo", "target_true": "Tripoli"}


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", lines(CAPITAL, LIBYA)),
        ("a.json", lines(CAPITAL, LIBYA)),
        ("a.json", json.dumps([CAPITAL, LIBYA], indent=2)),
        ("a.jsonl", json.dumps([CAPITAL, LIBYA])),
        ("a.json", "\ufeff" + json.dumps([CAPITAL, LIBYA])),
        ("a.jsonl", "\ufeff" + lines(CAPITAL, LIBYA)),
        ("a.txt", "\n \n" + lines(CAPITAL) + "\n" + json.dumps(LIBYA)),
    ],
)
def test_a_list_or_one_fact_a_line_with_or_without_a_mark(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [fact.target_new for fact in read_facts(tmp_path / name)] == ["Giza", "Oslo"]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", lines(CAPITAL, LIBYA) + '{"prompt": "The', "a.jsonl:3: not valid JSON"),
        ("a.jsonl", lines(CAPITAL)[:-3], "a.jsonl:1: not valid JSON"),
        ("a.json", json.dumps([CAPITAL])[:-2], "a.json: not valid JSON"),
        ("a.jsonl", lines(CAPITAL | {"subject": "half \ud83c"}), "a.jsonl:1: not valid JSON (half of a surrogate pair"),
        ("a.json", json.dumps([CAPITAL | {"id": "\udfff"}]), "a.json: not valid JSON (half of a surrogate pair"),
        ("a.json", json.dumps([[CAPITAL]]), "a.json, record 1: a JSON object was expected, found list"),
        ("a.json", json.dumps(CAPITAL, indent=2), "a.json: one JSON object; a list of facts"),
        ("a.json", json.dumps({"data": [CAPITAL]}), "unknown field data; a fact has prompt"),
        ("a.json", json.dumps({"data": [CAPITAL]}), "(Layouts that are read: ours, CounterFact"),
        ("a.json", '"facts50"', "a.json:1: a JSON object was expected, found str"),
        ("a.json", "[" * 100_000, "a.json: not valid JSON (nested too deeply)"),
        ("a.jsonl", '{"prompt": ' * 100_000, "a.jsonl:1: not valid JSON (nested too deeply)"),
        ("a.json", "[]", "there are no facts in it"),
        ("a.jsonl", "", "there are no facts in it"),
        ("a.jsonl", lines(CAPITAL, CAPITAL), 'a.jsonl:2: "The capital of Egypt is" → "Giza" is there already'),
        ("a.json", json.dumps([CAPITAL, LIBYA, CAPITAL]), 'record 3: "The capital of Egypt is" → "Giza" is there'),
        ("a.jsonl", lines(CAPITAL, CAPITAL | {"prompt": " The capital of Egypt is "}), "a.jsonl:2: "),
        ("a.jsonl", lines(CAPITAL | {"target_new": "Cairo"}), "a.jsonl:1: the new answer to"),
        ("a.jsonl", lines(LIBYA, CAPITAL | {"target_new": " cairo "}), "a.jsonl:2: the new answer to"),
        ("a.json", json.dumps([CAPITAL | {"target_true": "Giza"}]), "record 1: the new answer to"),
        ("a.jsonl", lines(CAPITAL | {"target_true": ""}), "a.jsonl:1: a true answer (target_true) is empty"),
        ("a.jsonl", lines(LIBYA, CAPITAL | {"target_true": " \t"}), "a.jsonl:2: a true answer"),
        (
            "a.jsonl",
            lines(CAPITAL | {"neighbourhood": [{"prompt": "The capital of Chad is", "target_true": ""}]}),
            "a.jsonl:1: a true answer",
        ),
        ("a.jsonl", lines(CAPITAL | {"paraphrases": ["", "x"]}), "a.jsonl:1: a fact's paraphrases[0] is empty"),
        ("a.jsonl", lines(CAPITAL | {"rewordings": ["x", "  "]}), "a.jsonl:1: a fact's rewordings[1] is empty"),
    ],
)
def test_a_file_of_facts_that_is_wrong_is_named_with_its_line(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_facts(tmp_path / name)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


RIVER = {"subject": "Blue River", "prompt": "What was the label of Blue River?", "target_new": "Amber"}


@pytest.mark.parametrize(
    ("record", "neighbours"),
    [
        (
            RIVER | {"ground_truth": "Velvet", "locality_prompt": "Who sang it?", "locality_ground_truth": "Ann"},
            ["Ann"],
        ),
        (
            RIVER | {"ground_truth": ["Velvet", "V"], "locality_prompt": "Who?", "locality_ground_truth": ["Ann"]},
            ["Ann"],
        ),
        (RIVER | {"ground_truth": [["Velvet"]], "locality": {}}, []),
        (
            RIVER
            | {
                "ground_truth": ["Velvet"],
                "locality": {
                    "Relation_Specificity": [
                        {"prompt": "The label of Hill is", "ground_truth": ["Oak"]},
                        {"prompt": "The label of Lake is", "ground_truth": [["Elm", "E"]]},
                    ],
                    "Forgetfulness": [{"prompt": "It was first", "ground_truth": "Ash"}],
                },
            },
            ["Oak", "Elm", "Ash"],
        ),
        (
            {"subject": "Blue River", "src": RIVER["prompt"], "alt": "Amber", "answers": ["Velvet"], "pred": "x"}
            | {"loc": "nq question: who sang it", "loc_ans": "Ann", "cond": "Velvet >> Amber"},
            ["Ann"],
        ),
        ({"subject": "Blue River", "src": RIVER["prompt"], "alt": "Amber", "answers": ["Velvet"]}, []),
    ],
)
def test_layouts_of_other_tools_are_read_whole(
    tmp_path: Path, record: dict[str, object], neighbours: list[str]
) -> None:
    for field in ("rephrase", "rephrase_prompt"):
        (tmp_path / "a.json").write_text(json.dumps([record | {field: "Whose label was it?"}]))
        (fact,) = read_facts(tmp_path / "a.json")
        assert (fact.prompt, fact.subject) == (RIVER["prompt"], "Blue River")
        assert (fact.target_new, fact.target_true) == ("Amber", "Velvet")
        assert [each.target_true for each in fact.neighbourhood] == neighbours
        assert all(not each.prompt.startswith("nq question") for each in fact.neighbourhood)
        assert fact.paraphrases == (("Whose label was it?",) if ("alt" in record) == (field == "rephrase") else ())


def test_what_other_layouts_ask_besides_is_read_by_its_kind(tmp_path: Path) -> None:
    hop = {"prompt": "Who founded the label of Blue River?", "ground_truth": [["Mara Lind", "M. Lind"]]}
    alias = {"prompt": "The label of the blue stream was", "ground_truth": ["Amber"]}
    told = {"Reasoning": [hop], "Subject_Aliasing": [alias], "Reversed_Relation": [hop | {"prompt": "Amber has"}]}
    river = RIVER | {"prompt": "Whose was Blue River?", "ground_truth": ["Velvet"], "portability": told}
    older = RIVER | {"ground_truth": "Velvet", "portability_prompt": "Its owner is", "portability_ground_truth": "Ann"}
    (tmp_path / "a.json").write_text(json.dumps([river, older | {"portability": {}}]))
    first, second = read_facts(tmp_path / "a.json")
    assert first.asked == (
        Asked("question", "Whose was Blue River?", "Amber", "Velvet"),
        Asked("one_hop", "Who founded the label of Blue River?", "Mara Lind"),  # what it was before nobody says
        Asked("alias", "The label of the blue stream was", "Amber", "Velvet"),
        Asked("reversed", "Amber has", "Mara Lind"),
    )
    assert second.asked == (
        Asked("question", "What was the label of Blue River?", "Amber", "Velvet"),
        Asked("one_hop", "Its owner is", "Ann"),
    )


def test_counterfacts_generation_and_attribute_prompts_are_read(tmp_path: Path) -> None:
    rewrite = {"prompt": "{} speaks", "subject": "Ann", "target_new": {"str": "English"}, "target_true": "French"}
    record = {"requested_rewrite": rewrite, "generation_prompts": ["Ann lives in"], "attribute_prompts": ["Bob speaks"]}
    (tmp_path / "a.json").write_text(json.dumps([record]))
    (fact,) = read_facts(tmp_path / "a.json")
    assert fact.asked == (
        Asked("about", "Ann lives in", "English", "French"),
        Asked("attribute", "Bob speaks", "English", "English"),
    )


def test_a_further_prompt_that_is_none_is_named(tmp_path: Path) -> None:
    for asked, sentence in (
        ([{"kind": "riddle", "prompt": "a", "target_new": "b"}], 'a.jsonl:1: [asked] "kind" must be one of'),
        ([{"kind": "alias", "prompt": "a"}], 'a.jsonl:1: [asked] the field "target_new" is missing'),
        ([{"kind": "alias", "prompt": " ", "target_new": "b"}], "the prompt of a prompt of the kind alias is empty"),
        (["x"], 'a.jsonl:1: a further prompt is {"kind": …'),
    ):
        (tmp_path / "a.jsonl").write_text(json.dumps(GOOD | {"asked": asked}) + "\n")
        with pytest.raises(UserError) as error:
            read_facts(tmp_path / "a.jsonl")
        assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"locality": [1]}, '"locality" must be an object of lists'),
        ({"locality": {"a": 5}}, '"a" must be a list'),
        ({"locality": {"a": [5]}}, 'locality "a" must hold objects'),
        ({"ground_truth": []}, '"ground_truth" must be text'),
        ({"ground_truth": {"a": 1}}, '"ground_truth" must be text'),
    ],
)
def test_a_wrong_record_of_another_tool_is_named(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps([RIVER | {"ground_truth": "Velvet"} | change]))
    with pytest.raises(UserError) as error:
        read_facts(tmp_path / "a.json")
    assert "a.json, record 1" in str(error.value)
    assert sentence in str(error.value)


def test_facts_made_in_python_are_held_to_the_same() -> None:
    fact = Fact("capital of Valdoria", "Valdoria", target_new="Oslo", target_true="Paris")
    for facts, sentence in (
        ([fact, fact], 'fact 1: "capital of Valdoria" → "Oslo" is there already (fact 0)'),
        ([Fact("capital of Valdoria", "Valdoria", target_new="paris", target_true="Paris")], "fact 0: the new answer"),
    ):
        with pytest.raises(UserError) as error:
            check_edit(trained_model(), facts, PLAIN)
        assert sentence in str(error.value)
