"""What other programs make of a saved model: lm-evaluation-harness's score, llama.cpp's conversion.

They are not among the extras of the other tests: `make interop` installs them and runs this file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import shared_data, tiny_config
from writer import ANSWER, writer

import nanogpt_edit as ne
from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE, TAGS
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer

TASK = """\
task: bare_questions
dataset_path: json
dataset_kwargs: {data_files: {test: test.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
num_fewshot: 0
generation_kwargs: {do_sample: false, max_gen_toks: 30, until: ["\\n\\n\\n"]}
filter_list:
  - name: last-number
    filter:
      - {function: regex, regex_pattern: "(-?\\\\d+)", group_select: -1}
      - {function: take_first}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
# llama.cpp knows vocabularies by a hash of their ids for one text; so one of ours, cut as SmolLM's, is converted.
CONVERT = """\
import sys
sys.path.insert(0, {folder!r})
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""
RMS = {"norm": "rmsnorm", "activation": "swiglu", "positions": "rope", "n_kv_head": 2, "mlp_dim": 48}
FAMILIES = {
    "gpt2": {},
    "llama": {**RMS, "bias": False, "qkv_bias": False},
    "qwen2": {**RMS, "bias": False},
    "qwen3": {**RMS, "bias": False, "qkv_bias": False, "qk_norm": True, "head_dim": 16},
}


def run(*command: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


# lm-evaluation-harness


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lm_eval_scores_what_we_score(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-evaluation-harness is not installed; `make interop` installs it and runs this")
    golds = [ANSWER, "3", ANSWER, "12", "8", ANSWER, "5"]
    questions = [f"Tom has {number} apples and buys 14 more. How many?" for number in range(len(golds))]
    problems = [Problem(question=q, rationale="", answer=gold, id=q) for q, gold in zip(questions, golds, strict=True)]
    checkpoint.save(writer(family, tokenizer), tmp_path / "m")
    rows = [json.dumps({"question": problem.question, "answer": problem.answer}) for problem in problems]
    (tmp_path / "test.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "task.yaml").write_text(TASK)
    arguments = ["--model", "hf", "--model_args", "pretrained=m,dtype=float32", "--device", "cpu"]
    arguments += ["--tasks", "bare_questions", "--include_path", ".", "--output_path", "out"]
    run("-m", "lm_eval", *arguments, folder=tmp_path)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(results.read_text())["results"]["bare_questions"]["exact_match,last-number"]
    config = EvaluateConfig(temperature=0, max_new_tokens=30)
    ours = ne.evaluate(checkpoint.load(tmp_path / "m"), problems, n=1, config=config).metrics["problems"]
    sys.stdout.write(f"\n{family}: lm_eval {theirs:.4f}, evaluate {ours['pass_at_1'].value:.4f}\n")
    assert theirs == pytest.approx(ours["pass_at_1"].value) == pytest.approx(3 / 7)


# llama.cpp's converter


@pytest.fixture(scope="session")
def converter() -> Path:
    """The folder of llama.cpp with convert_hf_to_gguf.py."""
    folder = Path(os.environ.get("LLAMA_CPP", ""))
    if "LLAMA_CPP" not in os.environ or not (folder / "convert_hf_to_gguf.py").is_file():
        pytest.skip("set LLAMA_CPP to llama.cpp's folder with convert_hf_to_gguf.py; `make interop` fetches it")
    return folder.resolve()


def saved(family: str, tokenizer: Tokenizer, directory: Path) -> Path:
    config = replace(tiny_config("gpt2", vocab_size=tokenizer.vocab_size), model_type=family, **FAMILIES[family])
    tokenizer.chat_template = REASONING_TEMPLATE
    checkpoint.save(GPT(config, seed=0), directory, tokenizer=tokenizer)
    return directory


def check(gguf_file: Path, family: str, tokenizer: Tokenizer, *, pre: str) -> None:
    """What the converted file says is what the model is: architecture, context, tokens, ends, no BOS, the template."""
    from gguf import GGUFReader, TokenType

    fields = {name: field.contents() for name, field in GGUFReader(gguf_file).fields.items()}
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert (fields["general.architecture"], fields[f"{family}.context_length"]) == (family, 64)
    assert [tokens[i] for i in tokenizer.reasoning_ids] == list(TAGS)
    assert {kinds[i] for i in tokenizer.reasoning_ids} == {TokenType.USER_DEFINED}  # shown, unlike CONTROL
    assert kinds[tokenizer.eos_id] == TokenType.CONTROL
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.ggml.pre"] == pre
    assert fields["tokenizer.chat_template"] == REASONING_TEMPLATE
    sys.stdout.write(f"\n{family}: converted, {len(tokens)} tokens, pre-tokenizer {pre}\n")


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_llama_cpp_converts_a_known_vocabulary_as_it_is(family: str, converter: Path, tmp_path: Path) -> None:
    """(Not qwen2: transformers cuts any qwen2 directory's text by Qwen2's rules, whatever its vocabulary.)"""
    tokenizer = Tokenizer.load(shared_data("gpt2_tokenizer"))
    directory = saved(family, tokenizer, tmp_path / "m")
    run(str(converter / "convert_hf_to_gguf.py"), str(directory), "--outfile", "m.gguf", folder=tmp_path)
    check(tmp_path / "m.gguf", family, tokenizer, pre="gpt-2")


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_converts_a_vocabulary_of_ours(
    family: str, tokenizer: Tokenizer, converter: Path, tmp_path: Path
) -> None:
    directory = saved(family, tokenizer, tmp_path / "m")
    script = CONVERT.format(folder=str(converter))
    run("-c", script, str(directory), "--outfile", "m.gguf", folder=tmp_path)
    check(tmp_path / "m.gguf", family, tokenizer, pre="smollm")
