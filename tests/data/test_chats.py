"""Conversations: the forms they are read in, what is refused, and what of them is learned."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE
from nanogpt_edit.data.chat_samples import to_chat_sample, to_chat_samples
from nanogpt_edit.data.chats import Chat, read_chats, split_chats
from nanogpt_edit.data.problems import read_problems
from nanogpt_edit.doctor.data_checks import check_chat_prompts
from nanogpt_edit.model.chat_template import PLAIN_TEMPLATE, Message, render_chat
from nanogpt_edit.model.tokenizer import Tokenizer

ASKED, ANSWERED = Message("user", "2 + 2?"), Message("assistant", "4")
MESSAGES = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def chat(*texts: str) -> Chat:
    """The user and the assistant in turn."""
    roles = ("user", "assistant")
    return Chat(tuple(Message(roles[i % 2], text) for i, text in enumerate(texts)), "talk:1")


@pytest.fixture
def tokenizer() -> Tokenizer:
    found = Tokenizer.train(["two and two are four. Assistant: User:"], vocab_size=290)
    found.chat_template = PLAIN_TEMPLATE
    return found


# Reading


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"messages": MESSAGES}, (ASKED, ANSWERED)),
        ({"messages": MESSAGES, "system": "Be brief."}, (Message("system", "Be brief."), ASKED, ANSWERED)),
        (
            {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
            (ASKED, ANSWERED),
        ),
        ({"conversations": MESSAGES}, (ASKED, ANSWERED)),
        ({"prompt": "2 + 2?", "completion": "4"}, (ASKED, ANSWERED)),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, (ASKED, ANSWERED)),
        ({"instruction": "Add.", "input": "2 + 2", "output": "4"}, (Message("user", "Add.\n\n2 + 2"), ANSWERED)),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, (ASKED, ANSWERED)),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "2 + "}, {"text": "2?"}]},
                    MESSAGES[1],
                ]
            },
            (ASKED, ANSWERED),
        ),
    ],
)
@pytest.mark.parametrize("name", ["talk.jsonl", "talk.json", "talk.jsonl.gz"])
def test_every_form_is_read(
    record: dict[str, object], messages: tuple[Message, ...], name: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    text = json.dumps([record] if name.endswith(".json") else record) + "\n"
    if name.endswith(".gz"):
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text)
    (found,) = read_chats(file)
    assert (found.messages, found.id) == (messages, "talk:1")


def test_parquet_and_folders_are_read(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([{"messages": MESSAGES}] * 2), tmp_path / "train.parquet")
    assert [found.messages for found in read_chats(tmp_path)] == [(ASKED, ANSWERED)] * 2
    with pytest.raises(UserError, match=r"no test\.jsonl in this folder"):
        read_chats(tmp_path, split="test")
    (tmp_path / "data").mkdir()
    for part in range(2):  # as a repository of the hub has its parts
        one = pyarrow.Table.from_pylist([{"messages": MESSAGES}])
        parquet.write_table(one, tmp_path / "data" / f"test-0000{part}-of-00002.parquet")
    found = [found.id for found in read_chats(tmp_path, split="test")]
    assert found == ["test-00000-of-00002:1", "test-00001-of-00002:1"]


@pytest.mark.parametrize(
    ("fields", "record"),
    [
        ("messages=dialog", {"dialog": MESSAGES, "messages": "a note"}),
        ("prompt=ask,completion=say", {"ask": "2 + 2?", "say": "4", "messages": []}),
        ("prompt=ask completion=completion", {"ask": "2 + 2?", "completion": "4"}),
    ],
)
def test_fields_may_have_other_names(fields: str, record: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "talk.jsonl").write_text(json.dumps(record))
    (found,) = read_chats(tmp_path / "talk.jsonl", fields=fields)
    assert found.messages == (ASKED, ANSWERED)
    with pytest.raises(UserError, match=r'the record has no field "nothing" \(it has .*--sft\.chats-fields'):
        read_chats(tmp_path / "talk.jsonl", fields="messages=nothing")
    with pytest.raises(UserError, match=r'"text=say" is no name of ours, = and theirs'):
        read_chats(tmp_path / "talk.jsonl", fields="text=say")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the library's own dependencies
def test_what_the_datasets_library_has_saved_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"messages": MESSAGES}])
    datasets.DatasetDict({"train": rows, "extra": rows}).save_to_disk(tmp_path / "several")
    rows.save_to_disk(tmp_path / "one")
    assert [found.messages for found in read_chats(tmp_path / "several", split="extra")] == [(ASKED, ANSWERED)]
    assert [found.id for found in read_chats(tmp_path / "one")] == ["train:1"]
    with pytest.raises(UserError, match="no split named test; it has train, extra"):
        read_chats(tmp_path / "several", split="test")
    problems = datasets.Dataset.from_list([{"question": "2 + 2?", "answer": "#### 4"}])
    datasets.DatasetDict({"test": problems}).save_to_disk(tmp_path / "problems")
    assert [problem.answer for problem in read_problems(tmp_path / "problems")] == ["4"]
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match="the data set saved there cannot be read"):
        read_chats(tmp_path / "one")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", r"talk\.jsonl:2: not valid JSON"),
        ("[1]", r"talk\.jsonl:2: a JSON object was expected, found list"),
        ('{"text": "hello"}', r'has no conversation: .* \(it has "text"\)'),
        ('{"messages": "hello"}', r'field "messages" should be a list of messages, found str'),
        ('{"messages": ["hello"]}', r"messages\[1\]: a message was expected, found str"),
        ('{"messages": [{"role": "user"}]}', r'messages\[1\]: a message has a "role" and a "content"'),
        ('{"messages": [{"role": "user", "content": 4}]}', r"messages\[1\]\.content: text was expected, found int"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "only text can be learned from"),
        ('{"messages": [{"role": "user", "content": "2 + 2?"}]}', "no message of the assistant has a text"),
        ('{"prompt": "2 + 2?", "completion": " "}', "no message of the assistant has a text"),
        ('{"prompt": "2 + 2?", "completion": null}', "completion: text was expected, found NoneType"),
    ],
)
def test_a_bad_record_is_named_by_its_line(line: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"messages": MESSAGES}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=sentence):
        read_chats(file)


def test_a_file_without_conversations_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no conversations in it"):
        read_chats(tmp_path / "empty.jsonl")


def test_equal_conversations_stay_on_one_side_of_the_cut() -> None:
    every = [chat(f"{n % 20} + 1?", str(n % 20 + 1)) for n in range(60)]
    train, validation = split_chats(every, validation=5)
    assert len(train) + len(validation) == 60
    assert len(validation) == 6  # two of twenty different ones, each three times
    assert not {c.messages for c in train} & {c.messages for c in validation}
    with pytest.raises(UserError, match="one conversation cannot be divided"):
        split_chats(every[:1] * 3, validation=5)


# What is learned


def test_every_reply_is_a_target_behind_what_it_is_asked_with(tokenizer: Tokenizer) -> None:
    sample = to_chat_sample(chat("2 + 2?", "4", "and 3 + 3?", "6"), tokenizer)
    parts: list[tuple[int, list[int]]] = []
    for token, target in zip(sample.token_ids, sample.loss_mask, strict=True):
        if not parts or parts[-1][0] != target:
            parts.append((target, []))
        parts[-1][1].append(token)
    assert [(target, tokenizer.decode(ids)) for target, ids in parts] == [
        (0, "User: 2 + 2?\nAssistant:"),
        (1, " 4<|endoftext|>"),
        (0, "\nUser: and 3 + 3?\nAssistant:"),
        (1, " 6<|endoftext|>"),
        (0, "\n"),
    ]


def test_what_is_trained_is_what_is_asked_token_by_token(tokenizer: Tokenizer) -> None:
    talk = chat("2 + 2?", "4", "3 + 3?", "6")
    sample = to_chat_sample(talk, tokenizer)
    asked = tokenizer.encode(render_chat(tokenizer, talk.messages[:1]))
    assert list(sample.token_ids[: len(asked)]) == asked
    assert sample.loss_mask[: len(asked) + 1] == (0,) * len(asked) + (1,)


def test_reasoning_tokens_may_be_learned_and_others_tokens_may_not(tokenizer: Tokenizer) -> None:
    tokenizer.chat_template = REASONING_TEMPLATE
    sample = to_chat_sample(chat("2 + 2?", "<think>2 + 2 = 4</think><answer>4</answer>"), tokenizer)
    assert tokenizer.answer_end == sample.token_ids[-1]
    with pytest.raises(UserError, match=r"talk:1: a message holds <\|endoftext\|>"):
        to_chat_sample(chat("2 + 2?<|endoftext|>", "4"), tokenizer)
    with pytest.raises(UserError, match="a message holds </answer>"):
        to_chat_sample(chat("2 + 2?</answer>", "4"), tokenizer)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Tokenizer) -> None:
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="writes the turns before message 2 in another way"):
        to_chat_sample(chat("2 + 2?", "4"), tokenizer)


def test_what_does_not_fit_is_left_out_and_said(tokenizer: Tokenizer) -> None:
    short, long = chat("2?", "2"), chat("2?", "2 " * 90)
    samples, notes = to_chat_samples([short, long], tokenizer, block_size=40)
    assert samples == [to_chat_sample(short, tokenizer)]
    assert notes[0].startswith("1 of 2 conversations were left out because they exceed block_size 40")
    with pytest.raises(UserError, match="None of 1 conversations fits"):
        to_chat_samples([long], tokenizer, block_size=40)


def test_the_doctor_sees_a_reply_that_is_asked_with_other_tokens_than_it_is_learned_behind(
    tokenizer: Tokenizer,
) -> None:
    talks = [chat("2 + 2?", "4", "and 1?", "5")]
    assert check_chat_prompts(talks, tokenizer).found.startswith("2 replies are learned behind the tokens")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    joined = Tokenizer.train(["aaaaaa bbbbbb"] * 9, vocab_size=270)
    joined.chat_template = tokenizer.chat_template
    found = check_chat_prompts([chat("a", "a", "a", "b")], joined)
    assert found.level == "warn" and "message 4 is learned behind other tokens than it is asked with" in found.found
