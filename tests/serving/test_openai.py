"""The API as OpenAI's own client sees it, against the engine that the texts come from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from needs_serving import openai
from serving_run import Served, served, small_model

from nanogpt_edit.common.reasoning import REASONING_TEMPLATE
from nanogpt_edit.engine.generate import generate
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.models import Shelf

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
