"""The server as lm-evaluation-harness sees it: scores through `local-completions` are those of the model itself.

The harness is not among the extras of the other tests: `make interop` installs it and runs this file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness_tasks import WRITTEN
from serving_run import served
from writer import ANSWER, writer

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer, tokenizer_of
from nanogpt_edit.serving.models import Shelf

QUESTIONS = [f"Tom has {number} apples and buys 14 more. How many?" for number in range(6)]
CHOICES = [" Paris.", " 17", " apples."]
CHOOSE = """\
task: chosen
dataset_path: json
dataset_kwargs: {data_files: {test: test.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{best}}"
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness: `make interop` runs this"
)
def test_local_completions_scores_what_the_model_scores(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Texts that are written, and choices that are scored by a prompt echoed with its log-probabilities."""
    model = writer("llama", tokenizer)
    checkpoint.save(model, tmp_path / "m")
    best = [likeliest(model, question) for question in QUESTIONS]
    rows = [
        json.dumps({"question": question, "answer": ANSWER if i % 2 else "3", "choices": CHOICES, "best": best[i]})
        for i, question in enumerate(QUESTIONS)
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "write.yaml").write_text(WRITTEN)
    (tmp_path / "choose.yaml").write_text(CHOOSE)
    shelf = Shelf()
    shelf.add("m", model)
    with served(shelf) as here:
        url = f"http://127.0.0.1:{here.port}/v1/completions"
        settings = f"model=m,base_url={url},tokenizer_backend=huggingface,tokenizer=m,num_concurrent=3,max_length=256"
        arguments = ["--model", "local-completions", "--model_args", settings, "--tasks", "written,chosen"]
        command = [sys.executable, "-m", "lm_eval", *arguments, "--include_path", ".", "--output_path", "out"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]
    assert found["written"]["exact_match,last-number"] == pytest.approx(1 / 2)
    assert found["chosen"]["acc,none"] == 1


def likeliest(model: GPT, question: str) -> int:
    """Which of the choices has the largest log-probability, by one forward pass each."""
    tokenizer, sums = tokenizer_of(model), []
    for choice in CHOICES:
        prompt, whole = tokenizer.encode(question), tokenizer.encode(question + choice)
        logprobs = model(torch.tensor([whole])).detach()[0].log_softmax(-1)
        sums.append(sum(float(logprobs[i - 1, whole[i]]) for i in range(len(prompt), len(whole))))
    return max(range(len(CHOICES)), key=lambda i: sums[i])
