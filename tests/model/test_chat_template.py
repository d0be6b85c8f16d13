"""Conversations as text: as transformers renders them, and what a template may not do."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE
from nanogpt_edit.model.chat_template import PLAIN_TEMPLATE, Message, render_chat
from nanogpt_edit.model.tokenizer import Tokenizer

TALK = (
    Message("system", "Be brief. "),
    Message("user", 'Say "hi" <b>\n'),
    Message("assistant", "hi é"),
    Message("user", "2 + 2?"),
)
CHATML = """\
{% for message in messages %}
    {% if message['role'] not in ['system', 'user', 'assistant'] %}
        {{ raise_exception('no role ' + message['role']) }}
    {% endif %}
<|im_start|>{{ message.role }}
    {% generation %}
{{ message.content | trim }}<|im_end|>
    {% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
{{ bos_token }}{{ eos_token }}{{ messages | tojson }}
{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["two and two"], vocab_size=270)


@pytest.mark.parametrize("template", [CHATML, PLAIN_TEMPLATE, REASONING_TEMPLATE], ids=["chatml", "plain", "reasoning"])
@pytest.mark.parametrize("reply", [True, False])
def test_a_conversation_is_rendered_as_transformers_renders_it(
    template: str, reply: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.chat_template = template
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    talk = [{"role": each.role, "content": each.content} for each in TALK]
    wanted = theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=reply)
    assert render_chat(tokenizer, TALK, reply=reply) == wanted


def test_the_plain_template_by_hand(tokenizer: Tokenizer) -> None:
    tokenizer.chat_template = PLAIN_TEMPLATE
    assert render_chat(tokenizer, TALK) == (
        'System: Be brief.\nUser: Say "hi" <b>\nAssistant: hi é<|endoftext|>\nUser: 2 + 2?\nAssistant:'
    )


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "has no chat template"),
        (CHATML.replace("'user', ", ""), r"does not take this conversation \(no role user\)"),
        ("{% for %}", "does not take this conversation"),
        ("{{ 1 / 0 }}", r"fails \(ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", r"fails \(TypeError"),
        ("{{ messages.__class__.__mro__ }}", "does not take this conversation"),  # the sandbox
        ("{% for i in range(10 ** 9) %}{% endfor %}", r"fails \(OverflowError"),
        ("{% set _ = messages.append(1) %}", "does not take this conversation"),
    ],
)
def test_what_a_template_may_not_do_is_one_sentence(template: str | None, sentence: str, tokenizer: Tokenizer) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=sentence):
        render_chat(tokenizer, TALK)
