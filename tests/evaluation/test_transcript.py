from __future__ import annotations

import json
from dataclasses import asdict

from conftest import shared_data
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_edit.evaluation.transcript import (
    STYLES,
    completion_text,
    count_tokens,
    token_kinds,
    transcript,
    transcript_text,
)
from nanogpt_edit.model.tokenizer import Tokenizer

QUESTION = "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?"
COMPLETION = (
    "<think>There are 3 * 2 = 6 cars\nThere are 6 * 4 = 24 cars\nThere are 24 - 6 = 19 cars left</think>"
    "<answer>19</answer>"
)


def test_kinds_follow_the_tags(tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    think, unthink, answer, unanswer = tokenizer.reasoning_ids
    ids = [a, think, a, b, unthink, b, answer, a, unanswer, b]
    assert token_kinds(ids, tokenizer) == [
        *("outside", "tag", "think", "think", "tag"),
        *("outside", "tag", "answer", "tag", "outside"),
    ]
    assert count_tokens(ids, tokenizer) == (2, 1)


def test_a_completion_cut_short_counts_what_is_there(tokenizer: Tokenizer) -> None:
    a = tokenizer.encode("a")[0]
    assert tokenizer.eos_id is not None
    assert count_tokens([], tokenizer) == (0, 0)
    assert count_tokens([tokenizer.think_start, a, a, a], tokenizer) == (3, 0)
    assert count_tokens([tokenizer.think_start, a, tokenizer.answer_start, a, a], tokenizer) == (1, 2)
    assert count_tokens([tokenizer.think_start, a, tokenizer.eos_id, a], tokenizer) == (1, 0), "the end ends thinking"


@given(st.data())
def test_every_token_has_one_kind(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1) | st.sampled_from(tokenizer.reasoning_ids)))
    kinds = token_kinds(ids, tokenizer)
    assert [kind == "tag" for kind in kinds] == [token_id in tokenizer.reasoning_ids for token_id in ids]
    assert sum(count_tokens(ids, tokenizer)) + kinds.count("tag") + kinds.count("outside") == len(ids)


def test_the_layout_token_by_token(tokenizer: Tokenizer) -> None:
    prompt, completion = tokenizer.encode("a?"), tokenizer.encode("<think>b\nb</think><answer>7</answer>")
    think, unthink, answer, unanswer = tokenizer.reasoning_ids
    ids = {text: tokenizer.encode(text)[0] for text in ("a", "?", "b", "\n", "7")}
    assert transcript_text(prompt, completion, tokenizer).plain.split("\n") == [
        "--- PROMPT TOKENS (2 tokens) ---",
        f"[  0] id={ids['a']:5d} 'a'",
        f"[  1] id={ids['?']:5d} '?'",
        "--- GENERATED TOKENS (8 tokens) ---",
        f"[  2] id={think:5d} *** <think> ***",
        f"[  3] id={ids['b']:5d} 'b'",
        f"[  4] id={ids[chr(10)]:5d} '\\n'",
        f"[  5] id={ids['b']:5d} 'b'",
        f"[  6] id={unthink:5d} *** </think> ***",
        f"[  7] id={answer:5d} *** <answer> ***",
        f"[  8] id={ids['7']:5d} '7'",
        f"[  9] id={unanswer:5d} *** </answer> ***",
        "Decoded: <think>b\\nb</think><answer>7</answer>",
        "Stats: 8 generated tokens total, 3 thinking tokens, 1 answer token.",
    ]


def test_in_a_terminal_thinking_is_dim_and_the_answer_bright(tokenizer: Tokenizer) -> None:
    text = transcript_text(tokenizer.encode("a"), tokenizer.encode("<think>b</think><answer>7</answer>"), tokenizer)
    styles = {text.plain[span.start : span.end].split()[-1]: str(span.style) for span in text.spans}
    assert styles["'b'"] == "dim"
    assert "bold" in styles["'7'"]


def test_a_completions_text_is_styled_where_it_thinks_and_answers() -> None:
    shown = completion_text("<think>3\n+4</think> x <answer>7</answer> y")
    spans = {shown.plain[span.start : span.end]: span.style for span in shown.spans}
    tags = dict.fromkeys(("<think>", "</think>", "<answer>", "</answer>"), STYLES["tag"])
    assert spans == {"3\n+4": "dim", "7": "bold green", **tags}
    (tag, thought) = completion_text("<think>cut").spans
    assert (thought.start, thought.end, thought.style) == (7, 10, "dim")
    assert tag.style == STYLES["tag"]


def test_control_characters_are_shown_and_not_obeyed(tokenizer: Tokenizer) -> None:
    written = "3\x1b[2J\r\x07\x9b1m\u202e\tfive\n+4"
    assert completion_text(written).plain == "3\\x1b[2J\\r\\x07\\x9b1m\\u202e\tfive\n+4"
    lines = transcript_text([], tokenizer.encode(written), tokenizer).plain.split("\n")
    assert lines[-2] == "Decoded: 3\\x1b[2J\\r\\x07\\x9b1m\\u202e\\tfive\\n+4"
    assert "\x1b" not in "".join(lines)


def test_the_record_is_json_with_a_kind_per_token(tokenizer: Tokenizer) -> None:
    prompt, completion = tokenizer.encode("a"), tokenizer.encode("<think>b</think><answer>7</answer>")
    record = asdict(transcript(prompt, completion, tokenizer, stage="grpo", gold="7", correct=True))
    assert json.loads(json.dumps(record)) == {
        "stage": "grpo",
        "prompt": [[prompt[0], "a"]],
        "completion": [
            [completion[0], "<think>", "tag"],
            [completion[1], "b", "think"],
            [completion[2], "</think>", "tag"],
            [completion[3], "<answer>", "tag"],
            [completion[4], "7", "answer"],
            [completion[5], "</answer>", "tag"],
        ],
        "decoded": "<think>b</think><answer>7</answer>",
        "thinking_tokens": 1,
        "answer_tokens": 1,
        "gold": "7",
        "correct": True,
    }


def test_a_whole_page_with_gpt2s_own_vocabulary() -> None:
    tokenizer = Tokenizer.load(shared_data("gpt2_tokenizer"))
    lines = transcript_text(tokenizer.encode(QUESTION), tokenizer.encode(COMPLETION), tokenizer).plain.split("\n")
    assert lines[:4] == [
        "--- PROMPT TOKENS (24 tokens) ---",
        "[  0] id= 1532 'If'",
        "[  1] id=  612 ' there'",
        "[  2] id=  389 ' are'",
    ]
    assert lines[25:28] == [
        "--- GENERATED TOKENS (32 tokens) ---",
        "[ 24] id=50257 *** <think> ***",
        "[ 25] id= 1858 'There'",
    ]
    assert lines[-6:-2] == [
        "[ 52] id=50258 *** </think> ***",
        "[ 53] id=50259 *** <answer> ***",
        "[ 54] id= 1129 '19'",
        "[ 55] id=50260 *** </answer> ***",
    ]
    assert lines[-1] == "Stats: 32 generated tokens total, 27 thinking tokens, 1 answer token."
