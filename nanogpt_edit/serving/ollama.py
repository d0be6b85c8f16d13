"""An Ollama Modelfile: the settings under which Ollama runs a GGUF file as the model is run here.

ollama create tiny -f tiny.Modelfile
ollama run tiny "Tom has 3 apples. He buys 14 more. How many apples does Tom have?"
"""

from __future__ import annotations

from pathlib import Path

from nanogpt_edit.common.reasoning import REASONING_TEMPLATE, TAGS
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of

LARGEST_CONTEXT = 4096  # tokens; Ollama's own choice, for a long context takes memory that few questions need

# `REASONING_TEMPLATE` in Go's template language, which is the one that Ollama reads: the last question, then `<think>`,
# or as far as an answer is given that the model is to go on with.
GO_TEMPLATE = """\
{{- $question := "" }}{{ $answer := "<think>" }}
{{- range .Messages }}
{{- if eq .Role "user" }}{{ $question = .Content }}{{ $answer = "<think>" }}
{{- else if eq .Role "assistant" }}{{ $answer = .Content }}
{{- end }}
{{- end }}
{{- $question }}{{ $answer }}"""


def modelfile(model: GPT, gguf: Path) -> str:
    """The text of a Modelfile that lies beside `gguf`.

    A chat template that came with the model is left to Ollama, which finds it in the file.
    """
    template = [f'TEMPLATE """{GO_TEMPLATE}"""'] if tokenizer_of(model).chat_template == REASONING_TEMPLATE else []
    lines = [
        f"# ollama create {gguf.stem} -f {gguf.stem}.Modelfile",
        f'FROM "./{gguf.name}"',
        *template,
        *(f"PARAMETER {name} {value}" for name, value in _parameters(model).items()),
    ]
    return "\n".join(lines) + "\n"


def _parameters(model: GPT) -> dict[str, object]:
    """Sampling as `nanogpt-edit sample` does it; Ollama would punish repetition, which spoils arithmetic."""
    ours = Sampling()
    return {
        "num_ctx": min(model.config.block_size, LARGEST_CONTEXT),
        "num_predict": ours.max_new_tokens,
        "temperature": ours.temperature,
        "top_k": ours.top_k,
        "top_p": ours.top_p,
        "repeat_penalty": 1.0,
        "stop": f'"{TAGS[-1]}"',
    }
