"""What the OpenAI-compatible routes take and give: the fields of OpenAI's API that mean something here, and vLLM's
names for what OpenAI has none for (`top_k`, `return_token_ids`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_TEXTS = 128  # of one request: samples × prompts
MOST_STOPS = 16
MOST_ALTERNATIVES = 20
LARGEST_SEED = 2**63 - 1

Ids = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]
Text = Annotated[str, Field(strict=True)]
Nothing = Annotated[float, Field(ge=0, le=0)]
"""A penalty that is not offered here: clients send its default."""


class Strict(BaseModel):
    """Numbers are numbers and texts are texts; what is not known is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """What a stream says beside its texts."""

    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False


class Sampled(Strict):
    """What completions and chat completions have in common."""

    model: Text | None = None
    """A name that /v1/models lists; the first of them where none is given."""
    n: Annotated[int, Field(ge=1, le=MOST_TEXTS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = None
    """The same seed gives the same texts; without one every request has its own."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """Only the k most probable tokens can be drawn; 0, -1 or none: all."""
    return_token_ids: bool = False
    """The ids of the prompt and of what is written come too."""
    frequency_penalty: Nothing | None = None
    presence_penalty: Nothing | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: Text | None = None


class CompletionRequest(Sampled):
    """Text that is continued as it stands."""

    prompt: Text | Ids | Annotated[list[Text] | list[Ids], Field(min_length=1, max_length=MOST_TEXTS)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """16 where none is given, as at OpenAI's. 0 writes nothing: with `echo` and `logprobs` the prompt is scored."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_TEXTS)] | None = None
    suffix: Literal[""] | None = None


class TextPart(Strict):
    """A part of a message; here all are text."""

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Text
    content: Text | list[TextPart] | None = None


class ResponseFormat(Strict):
    """Text is the only form there is."""

    type: Literal["text"]


class ChatRequest(Sampled):
    """A conversation, written down by the model's own template."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    response_format: ResponseFormat | None = None


class ErrorBody(BaseModel):
    """What was wrong: a sentence, its kind, the field that it is about, a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every answer of status 400 and more."""

    error: ErrorBody


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopToken(BaseModel):
    """One of the likeliest tokens at a place."""

    id: int
    token: str
    logprob: float


class TokenDetails(BaseModel):
    """With `return_token_ids`."""

    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    top_tokens: list[list[TopToken]] | None = None


class CompletionLogprobs(BaseModel):
    """Nats under the plain softmax, a place per token; nothing for a prompt's first."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TokenDetails):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionReply(BaseModel):
    """All texts of a request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatTopLogprob(BaseModel):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(ChatTopLogprob):
    """A token that was written."""

    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(BaseModel):
    """Nats under the plain softmax, a place per token."""

    content: list[ChatLogprob]
    refusal: None


class ReplyMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TokenDetails):
    """One reply."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatReply(BaseModel):
    """All replies of a request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ModelCard(BaseModel):
    """One model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None


class ModelList(BaseModel):
    """All models that can be asked."""

    object: Literal["list"]
    data: list[ModelCard]
