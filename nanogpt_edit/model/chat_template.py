"""A conversation as the text that a model reads: the Jinja template that comes with its tokenizer, or a plain one.

Rendered as transformers renders it, with the same names in reach and the same line breaks, but in a sandbox: a template
is a program from wherever the model came from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.model.tokenizer import Tokenizer

# For a model that came without one: a name, a colon and the text, and the end of the text behind a reply.
PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{{ message.role | capitalize }}: {{ message.content | trim }}
{%- if message.role == "assistant" %}{{ eos_token }}{% endif %}{{ "\\n" }}
{%- endfor -%}
{%- if add_generation_prompt %}Assistant:{% endif %}"""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: `Message("user", "How many clips did she sell?")`."""

    role: str
    """system, user, assistant, or whatever else the template knows."""
    content: str


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message], *, reply: bool = True) -> str:
    """`messages` as the model's chat template writes them; with `reply` up to where an answer would begin.

    Raises UserError where the template cannot be read, refuses the messages (roles that do not alternate, say), or the
    tokenizer has none.
    """
    source = tokenizer.chat_template
    if source is None:
        raise UserError("the model has no chat template; ask it with a plain prompt, or set tokenizer.chat_template.")
    try:
        return _compiled(source).render(
            messages=[{"role": each.role, "content": each.content} for each in messages],
            add_generation_prompt=reply,
            tools=None,
            documents=None,
            **tokenizer.named_tokens,
        )
    except jinja2.TemplateError as error:
        raise UserError(f"the model's chat template does not take this conversation ({error}).") from None
    except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
        raise UserError(f"the model's chat template fails ({type(error).__name__}: {error}).") from None


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(source)


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks what the model writes; here it is only what stands in it."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(sentence: str) -> NoReturn:
    raise jinja2.TemplateError(sentence)


def _to_json(value: object, indent: int | None = None) -> str:
    """Plain JSON: the built-in filter writes it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
