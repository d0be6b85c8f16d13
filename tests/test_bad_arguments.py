"""Every bad argument of the Python API ends in one sentence that names the argument and what is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nanogpt_edit as ne
from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.model.gpt import GPT

PROMPT = "Tom has 3 apples."
FACT = {"prompt": "The capital of France is", "subject": "France", "target_new": "Tom", "target_true": "Paris"}
TEXT = ["The capital of France is Paris. Tom has 3 apples."] * 50

ADDED = ne.Problem("1 + 1", "", "2", "a")
Call = Callable[[GPT], object]

LOAD: list[tuple[Call, str]] = [
    (lambda m: ne.load(None), 'ne.load: "source" must be text or a path, found None'),
    (lambda m: ne.load(123), '"source" must be text or a path, found 123'),
    (lambda m: ne.load(b"runs"), '"source" must be text or a path, found a bytes'),
    (lambda m: ne.load(["runs"]), '"source" must be text or a path, found ["runs"]'),
    (lambda m: ne.load(m), '"source" must be text or a path, found a GPT'),
    (lambda m: ne.load("runs/\ud800"), "source has '\\ud800' at character 6, half of a surrogate pair"),
    (lambda m: ne.load("no/such/model/at/all"), "no/such/model/at/all: no such"),
    (lambda m: ne.load("."), "no config.json"),
    (lambda m: ne.load(".", dtype="float31"), "dtype float31 is none that weights can have; use float32, bfloat16"),
    (lambda m: ne.load(".", dtype=torch.int8), "dtype int8 is none that weights can have"),
    (lambda m: ne.load(".", dtype="load"), "dtype load is none that weights can have"),
    (lambda m: ne.load(".", dtype=32), '"dtype" must be a torch.dtype or text or None, found 32'),
    (lambda m: ne.load(".", device="gpu"), 'device "gpu" cannot be used here; this machine has: cpu'),
    (lambda m: ne.load(".", device="cuda:99"), 'device "cuda:99" cannot be used here'),
    (lambda m: ne.load(".", device=0), '"device" must be a torch.device or text, found 0'),
    (lambda m: ne.load(), "ne.load: missing a required argument: 'source'; it is called as ne.load(source"),
    (lambda m: ne.load(".", devise="cpu"), "got an unexpected keyword argument 'devise'; it is called as"),
    (lambda m: ne.save("model", "out"), 'ne.save: "model" must be a model (ne.load gives one), found "model"'),
    (lambda m: ne.save(m, None), '"directory" must be a path or text, found None'),
    (lambda m: ne.save(m, "out", lineage_note=3), '"lineage_note" must be text or a LineageEntry or None, found 3'),
    (lambda m: ne.load_patch(None), 'ne.load_patch: "path" must be text or a path, found None'),
    (lambda m: ne.load_patch("none.safetensors"), "none.safetensors: no such file"),
]

GENERATE: list[tuple[Call, str]] = [
    (lambda m: ne.generate("runs/tiny", PROMPT), '"model" must be a model (ne.load gives one), found "runs/tiny"'),
    (lambda m: ne.generate(None, PROMPT), '"model" must be a model (ne.load gives one), found None'),
    (lambda m: ne.generate(m, None), 'ne.generate: "prompts" must be text or a list of text, found None'),
    (lambda m: ne.generate(m, [None]), '"prompts[0]" must be text, found None'),
    (lambda m: ne.generate(m, [PROMPT, 7]), '"prompts[1]" must be text, found 7'),
    (lambda m: ne.generate(m, b"Tom"), '"prompts" must be text or a list of text, found a bytes'),
    (lambda m: ne.generate(m, {"prompt": PROMPT}), '"prompts" must be text or a list of text, found a table of prompt'),
    (lambda m: ne.generate(m, [[1, 2]]), '"prompts[0]" must be text, found [1, 2]'),
    (lambda m: ne.generate(m, torch.zeros(2)), '"prompts[0]" must be text, found a Tensor'),
    (lambda m: ne.generate(m, ""), "the prompt is empty"),
    (lambda m: ne.generate(m, [PROMPT, " \n"]), "prompt 1 is empty"),
    (lambda m: ne.generate(m, "Tom \udfff"), "prompts has '\\udfff' at character 5, half of a surrogate pair"),
    (lambda m: ne.generate(m, [PROMPT, "\ud83d"]), "prompts[1] has '\\ud83d' at character 1"),
    (lambda m: ne.generate(m, PROMPT * 200), "the model's block_size is 256; shorten it"),
    (lambda m: ne.generate(m, PROMPT, n=2.5), '"n" must be a whole number, found 2.5'),
    (lambda m: ne.generate(m, PROMPT, n="3"), '"n" must be a whole number, found "3"'),
    (lambda m: ne.generate(m, PROMPT, n=True), '"n" must be a whole number, found true'),
    (lambda m: ne.generate(m, PROMPT, n=0), "n is 0; it must be at least 1"),
    (lambda m: ne.generate(m, PROMPT, n=-4), "n is -4; it must be at least 1"),
    (lambda m: ne.generate(m, PROMPT, n=10**9), "1,000,000,000 completions would need about"),
    (lambda m: ne.generate(m, PROMPT, n=10**5000), "n is a number of 16610 bits; it can have 63 at most"),
    (lambda m: ne.generate(m, PROMPT, temperature=math.nan), "temperature is nan; it must be a finite number"),
    (lambda m: ne.generate(m, PROMPT, temperature=math.inf), "temperature is inf; it must be a finite number"),
    (lambda m: ne.generate(m, PROMPT, temperature=-1), "temperature -1.0 is negative"),
    (lambda m: ne.generate(m, PROMPT, temperature=1e-320), "is too low to divide by; use at least 1e-06, or 0"),
    (lambda m: ne.generate(m, PROMPT, temperature=None), '"temperature" must be a number, found None'),
    (lambda m: ne.generate(m, PROMPT, temperature=10**400), "must be a number, found one of 1329 bits"),
    (lambda m: ne.generate(m, PROMPT, seed=2**64), "seed is a number of 65 bits; it can have 63 at most"),
    (lambda m: ne.generate(m, PROMPT, seed=-(10**30)), "seed is a number of 100 bits"),
    (lambda m: ne.generate(m, PROMPT, seed=1e3), '"seed" must be a whole number, found 1000.0'),
    (lambda m: ne.generate(m, PROMPT, top_k=0), "top_k 0 leaves no token"),
    (lambda m: ne.generate(m, PROMPT, top_k=0.5), '"top_k" must be a whole number or None, found 0.5'),
    (lambda m: ne.generate(m, PROMPT, top_p=0), "top_p 0.0 is not in (0, 1]"),
    (lambda m: ne.generate(m, PROMPT, top_p=math.nan), "top_p is nan; it must be a finite number"),
    (lambda m: ne.generate(m, PROMPT, max_new_tokens=0), "max_new_tokens 0 leaves nothing to generate"),
    (lambda m: ne.generate(m, PROMPT, max_new_tokens=None), '"max_new_tokens" must be a whole number, found None'),
    (lambda m: ne.generate(m, PROMPT, seed=-1), "seed is -1; it cannot be negative"),
    (lambda m: ne.generate(m, PROMPT, tokens=5), "got an unexpected keyword argument 'tokens'; it is called as"),
]

FACTS: list[tuple[Call, str]] = [
    (lambda m: ne.edit(m, None, text=TEXT), 'ne.edit: "facts" must be text or a path or a Fact or a list of a Fact'),
    (lambda m: ne.edit(m, 50, text=TEXT), "found 50"),
    (lambda m: ne.edit(m, "facts51", text=TEXT), "facts51: no such file. Give a .jsonl or .json of facts, or one of"),
    (lambda m: ne.edit(m, [], text=TEXT), "facts is empty; give at least one fact"),
    (lambda m: ne.edit(m, {"prompt": "Paris"}, text=TEXT), 'ne.edit: [facts] the field "subject" is missing'),
    (lambda m: ne.edit(m, {**FACT, "subjekt": "a"}, text=TEXT), 'unknown field "subjekt"; did you mean "subject"?'),
    (lambda m: ne.edit(m, [FACT, None], text=TEXT), '"facts[1]" must be a Fact, found None'),
    (lambda m: ne.edit(m, [FACT, "facts50"], text=TEXT), '"facts[1]" must be a Fact, found "facts50"'),
    (lambda m: ne.edit(m, [{**FACT, "target_new": 7}], text=TEXT), '[facts[0]] "target_new" must be text, found 7'),
    (lambda m: ne.edit(m, [{**FACT, "prompt": "\ud800"}], text=TEXT), "prompt has '\\ud800' at character 1"),
    (lambda m: ne.edit(m, [{**FACT, "target_new": " "}], text=TEXT), "a fact's target_new is empty"),
    (lambda m: ne.edit(m, FACT, text=3), '"text" must be text or a path or a list of text or None, found 3'),
    (lambda m: ne.edit(m, FACT, text=[None]), '"text[0]" must be text, found None'),
    (lambda m: ne.edit(m, FACT, text=TEXT, config="memit"), '"config" must be an EditConfig or None, found "memit"'),
    (lambda m: ne.edit(m, FACT, text=TEXT, config=ne.EvaluateConfig()), '"config" must be an EditConfig or None'),
    (lambda m: ne.edit(m, FACT, text=TEXT, method="mend"), 'method is "mend". There are memit, rome, alphaedit'),
    (lambda m: ne.edit(m, FACT, text=TEXT, layers="all"), '"layers" must be a list of a whole number, found "all"'),
    (lambda m: ne.edit(m, FACT, text=TEXT, layers=[9]), "9"),
    (lambda m: ne.edit(m, FACT, text=TEXT, clamp=math.inf), "clamp is inf; it must be a finite number"),
    (lambda m: ne.edit(m, FACT, text=TEXT, steps=2.5), '"steps" must be a whole number, found 2.5'),
    (lambda m: ne.edit(m, FACT, text=TEXT, seed=2**70), "seed is a number of 71 bits"),
    (lambda m: ne.edit(m, FACT, text=TEXT, layer=1), 'an edit has no setting "layer"; did you mean "layers"?'),
    (lambda m: ne.score(m, []), "facts is empty; give at least one fact"),
    (lambda m: ne.score(m, None), 'ne.score: "facts" must be'),
    (lambda m: ne.score(m), "missing a required argument: 'facts'; it is called as ne.score(model"),
    (lambda m: ne.read_facts(None), 'ne.read_facts: "source" must be text or a path, found None'),
    (lambda m: ne.read_facts("facts50", limit=3), "got an unexpected keyword argument 'limit'; it is called as"),
    (lambda m: ne.Fact(None, "a", "b", "c"), 'Fact: "prompt" must be text, found None'),
    (lambda m: ne.Fact("a", "a", "b", "c", paraphrases="d"), 'Fact: "paraphrases" must be a list of text, found "d"'),
    (lambda m: ne.Neighbour("a", 5), 'Neighbour: "target_true" must be text, found 5'),
    (lambda m: ne.EditConfig(layers=3), 'EditConfig: "layers" must be a list of a whole number, found 3'),
    (lambda m: ne.EditConfig(lr=3), 'EditConfig has an unknown field "lr"'),
    (lambda m: ne.EditConfig(layer=(1,)), 'unknown field "layer"; did you mean "layers"?'),
    (lambda m: ne.GRPOConfig(stps=3), 'GRPOConfig has an unknown field "stps"; did you mean "steps"?'),
    (lambda m: ne.PretrainConfig(txt="a"), 'PretrainConfig has an unknown field "txt"; did you mean "text"?'),
    (lambda m: replace(ne.EvaluateConfig(), sample=3), 'unknown field "sample"; did you mean "samples"?'),
    (lambda m: ne.EvaluateConfig(samples="3"), 'EvaluateConfig: "samples" must be a whole number, found "3"'),
    (lambda m: ne.trace(m, None, "Tom"), 'ne.trace: "prompt" must be text, found None'),
    (lambda m: ne.trace(m, "Tom is", ["Tom"]), '"subject" must be text, found ["Tom"]'),
    (lambda m: ne.trace(m, "Tom is", "Anna"), 'subject "Anna" is not in the prompt "Tom is"'),
    (lambda m: ne.trace(m, "", ""), "cannot be empty"),
    (lambda m: ne.trace(m, "Tom is", "Tom", target=1), '"target" must be text or None, found 1'),
    (lambda m: ne.trace(m, "Tom is", "Tom", config={"draws": "8"}), '"draws" must be a whole number, found "8"'),
    (lambda m: ne.trace(m, "Tom is", "Tom").save(None), 'Trace.save: "path" must be text or a path, found None'),
    (lambda m: ne.trace(m, "Tom is", "Tom").save("a.gif"), "pictures are written as .svg or .png"),
    (lambda m: ne.trace(m, "Tom is", "Tom").save("a.svg", site="mlp"), '"site" must be one of "resid_post", "mlp_out"'),
]

PROBLEMS: list[tuple[Call, str]] = [
    (lambda m: ne.evaluate(m, None), 'ne.evaluate: "problems" must be text or a path or a Problem or a list'),
    (lambda m: ne.evaluate(m, []), "problems is empty; give at least one problem"),
    (lambda m: ne.evaluate(m, "problems-that-are-not-here.jsonl"), "problems-that-are-not-here.jsonl"),
    (lambda m: ne.evaluate(m, [PROMPT]), '"problems[0]" must be a Problem, found "Tom has 3 apples."'),
    (lambda m: ne.evaluate(m, {"question": "1 + 1"}), 'ne.evaluate: [problems] the field "rationale" is missing'),
    (lambda m: ne.evaluate(m, [ne.Problem("", "", "1", "a")], n=1), "empty"),
    (lambda m: ne.evaluate(m, ne.Problem("1 + 1", "", "2", "a"), n=0), "n is 0; it must be at least 1"),
    (lambda m: ne.evaluate(m, ne.Problem("1 + 1", "", "2", "a"), n=2.5), '"n" must be a whole number, found 2.5'),
    (lambda m: ne.evaluate(m, ne.Problem("1 + 1", "", "2", "a"), n=10**9), "1,000,000,000 completions would need"),
    (lambda m: ne.evaluate(m, "a.jsonl", config=ne.EditConfig()), '"config" must be an EvaluateConfig or None'),
    (lambda m: ne.Problem("1 + 1", "", 2, "a"), 'Problem: "answer" must be text, found 2'),
    (lambda m: ne.EvaluateConfig(samples=0), "samples is 0; it must be at least 1"),
    (lambda m: ne.read_problems(7), 'ne.read_problems: "source" must be text or a path, found 7'),
    (lambda m: ne.run(123, out="runs/a"), 'ne.run: "recipe" must be text or a path or a Recipe, found 123'),
    (lambda m: ne.run("tiny"), "missing a required argument: 'out'; it is called as ne.run(recipe"),
    (lambda m: ne.run("tiny", out=None), '"out" must be text or a path, found None'),
    (lambda m: ne.run("tinny", out="runs/a"), 'there is no recipe "tinny"; did you mean "tiny"?'),
    (lambda m: ne.run({"sed": 1}, out="runs/a"), 'ne.run: [recipe] has an unknown field "sed"; did you mean "seed"?'),
]


TRAIN: list[tuple[Call, str]] = [
    (lambda m: ne.sft(m), "missing a required argument: 'out'; it is called as ne.sft("),
    (lambda m: ne.sft("m", out="a"), 'ne.sft: "model" must be a model (ne.load gives one), found "m"'),
    (lambda m: ne.sft(m, [PROMPT], out="a"), '"problems[0]" must be a Problem, found "Tom'),
    (lambda m: ne.sft(m, [], out="a"), "problems is empty; give at least one problem"),
    (lambda m: ne.sft(m, [ADDED], out="a"), "fewer than two of them are different, and one has to validate"),
    (lambda m: ne.sft(m, "no-such.jsonl", out="a"), "no-such.jsonl"),
    (lambda m: ne.sft(m, out="a", config={"steps": "a"}), '"steps" must be a whole number'),
    (lambda m: ne.sft(m, out="a", stepz=3), 'SFTConfig has an unknown field "stepz"; did you mean "steps"?'),
    (lambda m: ne.sft(m, out="a", steps=-1), "steps is -1; it cannot be negative"),
    (lambda m: ne.to_samples(), "ne.to_samples: missing a required argument: 'problems'; it is called as"),
    (lambda m: ne.to_samples([1], m.tokenizer, block_size=9), '"problems[0]" must be a Problem, found 1'),
    (lambda m: ne.to_samples([], m, block_size=9), '"tokenizer" must be a tokenizer (model.tokenizer), found a GPT'),
    (lambda m: ne.token_stream(3, m.tokenizer, context_tokens=3), '"documents" must be a list of text, found 3'),
    (lambda m: ne.token_stream(["a"], None, context_tokens=3), '"tokenizer" must be a tokenizer (model.tokenizer)'),
    (lambda m: ne.token_stream(TEXT, m.tokenizer, context_tokens=0), "context_tokens is 0; a window has at least 1"),
    (lambda m: ne.grpo(m, 7, out="a"), '"problems" must be text or a path or a Problem or a list of a Problem'),
    (lambda m: ne.grpo(m, out="a", config=ne.SFTConfig()), '"config" must be a GRPOConfig'),
    (lambda m: ne.grpo(m, out="a", rewards={"acuracy": 1.0}), "acuracy"),
    (lambda m: ne.pretrain(m, out="a"), "too many positional arguments; it is called as ne.pretrain("),
    (lambda m: ne.pretrain(out="a", text=[3]), '"text[0]" must be text, found 3'),
    (lambda m: ne.pretrain(out="a", model={"n_layr": 3}), 'an unknown field "n_layr"; did you mean "n_layer"?'),
]


@pytest.mark.parametrize(("call", "sentence"), TRAIN + LOAD + GENERATE + FACTS + PROBLEMS)
def test_a_bad_argument_is_one_sentence(
    call: Call, sentence: str, speaking_gpt: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = fingerprint(speaking_gpt)
    with pytest.raises(ne.UserError) as raised:
        call(speaking_gpt)
    said = str(raised.value)
    assert sentence in said
    assert said[-1] in ".?)"
    assert "\n" not in said
    said.encode()  # it can be shown
    assert fingerprint(speaking_gpt) == before
    assert not list(tmp_path.iterdir())
