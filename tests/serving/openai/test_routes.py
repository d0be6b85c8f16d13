"""The API as OpenAI's own client sees it, against the engine that the texts come from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from needs_serving import openai
from serving_run import Served, served, small_model

from nanogpt_edit.common.reasoning import REASONING_TEMPLATE
from nanogpt_edit.engine.generate import generate
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.room import Room

PROMPT = "Tom has 3"


@pytest.fixture(scope="module")
def model() -> GPT:
    model = small_model()
    assert model.tokenizer is not None
    model.tokenizer.chat_template = REASONING_TEMPLATE
    return model


@pytest.fixture(scope="module")
def here(model: GPT) -> Iterator[Served]:
    shelf = Shelf()
    shelf.add("small", model)
    shelf.add("other", small_model(seed=1), parent="small")
    with served(shelf) as found:
        yield found


@pytest.fixture(scope="module")
def client(here: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{here.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed_by_name(client: openai.OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["small", "other"]
    assert client.models.retrieve("other").id == "other"
    with pytest.raises(openai.NotFoundError, match='no model "smal"; did you mean "small"'):
        client.models.retrieve("smal")


def test_texts_are_those_of_generate(client: openai.OpenAI, model: GPT) -> None:
    expected = generate(model, PROMPT, n=3, temperature=1.0, top_k=None, top_p=0.9, max_new_tokens=20, seed=5)
    found = client.completions.create(
        model="small", prompt=PROMPT, n=3, temperature=1.0, top_p=0.9, max_tokens=20, seed=5
    )
    assert [each.text for each in found.choices] == [each.text for each in expected]
    assert [each.finish_reason for each in found.choices] == [each.finish_reason for each in expected]
    assert found.usage is not None
    assert found.usage.completion_tokens == sum(len(each.token_ids) for each in expected)


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI) -> None:
    asked = {"model": "small", "prompt": [PROMPT, "Paris is"], "n": 2, "max_tokens": 25, "seed": 3, "logprobs": 2}
    whole = client.completions.create(**asked)
    texts, logprobs, reasons = [""] * 4, [[] for _ in range(4)], [None] * 4
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            logprobs[choice.index] += choice.logprobs.token_logprobs
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        usage = chunk.usage
    assert texts == [each.text for each in whole.choices]
    assert reasons == [each.finish_reason for each in whole.choices]
    assert logprobs == [each.logprobs.token_logprobs for each in whole.choices]
    assert usage == whole.usage


def test_without_a_seed_texts_differ_from_request_to_request(client: openai.OpenAI) -> None:
    found = {client.completions.create(model="small", prompt=PROMPT, max_tokens=20).choices[0].text for _ in range(3)}
    assert len(found) == 3


def test_logprobs_are_the_models_of_prompt_and_text(client: openai.OpenAI, model: GPT) -> None:
    """With echo the prompt's are told too: what lm-evaluation-harness scores answers by."""
    tokenizer = tokenizer_of(model)
    prompt = tokenizer.encode("Tom has 3 apples")
    found = client.completions.create(
        model="small",
        prompt=prompt,
        echo=True,
        logprobs=3,
        max_tokens=4,
        temperature=0,
        extra_body={"return_token_ids": True},
    ).choices[0]
    ids = found.token_ids
    assert ids[: len(prompt)] == prompt and len(ids) == len(prompt) + 4
    expected = model(torch.tensor([ids])).detach()[0, :, : tokenizer.vocab_size].log_softmax(-1)
    assert found.logprobs.token_logprobs[0] is None
    assert found.logprobs.token_logprobs[1:] == pytest.approx(
        [float(expected[place, token]) for place, token in enumerate(ids[1:])], abs=1e-4
    )
    for place, top in enumerate(found.top_tokens[1:]):
        assert [each["id"] for each in top] == expected[place].topk(3).indices.tolist()
    assert "".join(found.logprobs.tokens[: len(prompt)]) == "Tom has 3 apples"
    assert found.text.startswith("Tom has 3 apples")
    assert found.logprobs.text_offset[:4] == [
        tokenizer.encode_with_spans("Tom has 3 apples").spans[i][0] for i in range(4)
    ]


def test_a_prompt_can_be_scored_and_nothing_written(client: openai.OpenAI) -> None:
    asked = {"model": "small", "prompt": PROMPT, "echo": True, "logprobs": 1, "temperature": 0}
    scored = client.completions.create(**asked, max_tokens=0).choices[0]
    longer = client.completions.create(**asked, max_tokens=1).choices[0]
    assert scored.text == PROMPT
    assert scored.logprobs.token_logprobs == longer.logprobs.token_logprobs[:-1]
    (only,) = client.completions.create(**asked, max_tokens=0, stream=True)
    assert only.choices[0].text == PROMPT


def test_a_stop_cuts_the_text_before_it_streamed_and_not(client: openai.OpenAI) -> None:
    asked = {"model": "small", "prompt": PROMPT, "max_tokens": 40, "seed": 1, "top_p": 0.9}
    free = client.completions.create(**asked).choices[0].text
    stop = free[9:12]
    cut = client.completions.create(**asked, stop=[stop, "never written"]).choices[0]
    assert (cut.text, cut.finish_reason) == (free[: free.index(stop)], "stop")
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stop=stop, stream=True)]
    assert "".join(pieces) == cut.text


def test_a_chat_is_the_models_template_and_its_answer(client: openai.OpenAI, model: GPT) -> None:
    tokenizer = tokenizer_of(model)
    messages = [
        {"role": "system", "content": "ignored"},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
    ]
    asked = {"model": "small", "messages": messages, "seed": 2, "max_completion_tokens": 12, "n": 2}
    ids = tokenizer.encode(f"{PROMPT}<think>")
    same = client.completions.create(model="small", prompt=ids, seed=2, max_tokens=12, n=2)
    found = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert [each.message.content for each in found.choices] == [each.text for each in same.choices]
    assert found.usage.prompt_tokens == len(ids)
    assert all(len(each.logprobs.content) and len(each.logprobs.content[0].top_logprobs) == 2 for each in found.choices)
    texts, roles, prompts = ["", ""], set(), []
    for chunk in client.chat.completions.create(**asked, stream=True, extra_body={"return_token_ids": True}):
        for choice in chunk.choices:
            roles.add(choice.delta.role)
            texts[choice.index] += choice.delta.content or ""
            prompts += [choice.prompt_token_ids] if hasattr(choice, "prompt_token_ids") else []
    assert texts == [each.text for each in same.choices]
    assert roles == {"assistant", None} and prompts == [ids, ids]


def test_a_model_without_a_template_has_no_chat(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    ("asked", "param", "sentence"),
    [
        ({"prompt": ""}, None, "the prompt is empty"),
        ({"prompt": ["a", ""]}, None, "prompt 1 is empty"),
        ({"prompt": "apples " * 80}, None, "this model takes 63 here"),
        ({"prompt": [9999]}, None, "the model's last is 299"),
        ({"prompt": [-1]}, "prompt", "greater than or equal to 0"),
        ({"prompt": 7}, "prompt", "valid string"),
        ({"prompt": ["a"] * 65, "n": 2}, "n", "128 texts can be asked for"),
        ({"max_tokens": 1025}, "max_tokens", "1,024 can be asked for here"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"temperature": 1e-9}, "temperature", "too low to divide by"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 2.5}, "n", "valid integer"),
        ({"seed": 2**63}, "seed", "less than or equal to"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"stop": ""}, "stop", "empty text"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"presence_penalty": 1.0}, "presence_penalty", "less than or equal to 0"),
        ({"best_of": 3}, "best_of", "must be n"),
        ({"suffix": "x"}, "suffix", "should be ''"),
    ],
)
def test_a_bad_request_is_a_sentence_about_its_field(
    client: openai.OpenAI, asked: dict[str, object], param: str | None, sentence: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**({"model": "small", "prompt": "a"} | asked))
    error = caught.value.body
    assert sentence in error["message"] and error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_what_is_asked_beyond_the_apis_words_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match='unknown field "heat"'):
        client.completions.create(model="small", prompt="a", extra_body={"heat": 1})
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="nobody", prompt="a")
    assert caught.value.code == "model_not_found"


def test_a_full_server_says_when_to_come_back(model: GPT) -> None:
    shelf = Shelf()
    shelf.add("small", model)
    with (
        served(shelf, room=Room(rows=1, waiting=1)) as here,
        openai.OpenAI(base_url=f"http://127.0.0.1:{here.port}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="small", prompt="a", n=3)
        assert caught.value.response.headers["retry-after"] == "1"
        assert client.completions.create(model="small", prompt="a", n=2, max_tokens=2).choices[1].text is not None


def test_texts_that_the_clock_cuts_are_what_was_written_by_then() -> None:
    shelf, asked = Shelf(), {"prompt": PROMPT, "max_tokens": 1000, "n": 2, "seed": 1, "return_token_ids": True}
    shelf.add("long", model := small_model(block_size=1100))
    expected = generate(model, PROMPT, n=2, temperature=1.0, top_k=None, max_new_tokens=1000, seed=1)
    with served(shelf, room=Room(seconds=0.1)) as here:
        found = here.post("/v1/completions", asked)
    choices, usage = found["choices"], found["usage"]
    assert isinstance(choices, list)
    assert isinstance(usage, dict)
    for choice, whole in zip(choices, expected, strict=True):
        ids = choice["token_ids"]
        assert ids == list(whole.token_ids[: len(ids)])
        assert choice["text"] == tokenizer_of(model).decode([i for i in ids if i not in tokenizer_of(model).end_ids])
        assert choice["finish_reason"] == ("length" if len(ids) < len(whole.token_ids) else whole.finish_reason)
    assert usage["completion_tokens"] == sum(len(choice["token_ids"]) for choice in choices)
