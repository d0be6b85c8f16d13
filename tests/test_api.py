"""`import nanogpt_edit as ne`: quick to import, and the shortest way to each result."""

from __future__ import annotations

import inspect
import io
import logging
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import nanogpt_edit as ne
from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common import terminal
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import write_jsonl
from nanogpt_edit.data.fact_files import fact_to_record
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.engine.generate import Generation, generate
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import EMBEDDED, LineageEntry
from nanogpt_edit.pipeline.recipe import Recipe
from nanogpt_edit.pipeline.spared import spared_text

QUICK: dict[str, Any] = {"steps": 1, "refine_steps": 0, "n_prefixes": 1, "prefix_tokens": 2}
QUESTIONS = ["Tom has 3 apples. He buys 14 more.", "A baker bakes 120 loaves."]


def test_generate_gives_n_texts_per_prompt_in_order(speaking_gpt: GPT) -> None:
    found = generate(speaking_gpt, QUESTIONS, n=3, max_new_tokens=8)
    assert [generation.prompt for generation in found] == [QUESTIONS[0]] * 3 + [QUESTIONS[1]] * 3
    assert all(1 <= len(generation.token_ids) <= 8 for generation in found)
    assert len({generation.text for generation in found}) > 1
    assert found == generate(speaking_gpt, QUESTIONS, n=3, max_new_tokens=8)
    assert found != generate(speaking_gpt, QUESTIONS, n=3, max_new_tokens=8, seed=1)


def test_one_prompt_needs_no_list_and_temperature_0_is_greedy(speaking_gpt: GPT) -> None:
    (first,) = generate(speaking_gpt, QUESTIONS[0], temperature=0, max_new_tokens=8)
    (again,) = generate(speaking_gpt, QUESTIONS[0], temperature=0, max_new_tokens=8, seed=7)
    assert isinstance(first, Generation)
    assert first == again


def test_generation_ends_at_the_answer_or_the_end_of_the_text(speaking_gpt: GPT) -> None:
    tokenizer = speaking_gpt.tokenizer
    assert tokenizer is not None
    for stop in (tokenizer.answer_end, tokenizer.eos_id):
        assert stop is not None
        # The tied embedding of the stop token points where the final norm always points: it is the likeliest token.
        speaking_gpt.norm.weight.data.zero_()
        speaking_gpt.norm.bias.data.copy_(speaking_gpt.embed.weight.data[stop] * 1e4)
        (only,) = generate(speaking_gpt, QUESTIONS[0], temperature=0)
        assert only.token_ids == (stop,)
        assert only.finish_reason == "stop"
        assert only.text == ("</answer>" if stop == tokenizer.answer_end else "")


def test_a_model_without_a_tokenizer_is_named(gpt: GPT) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        generate(gpt, "Hello")


def test_an_empty_prompt_is_named(speaking_gpt: GPT) -> None:
    with pytest.raises(UserError, match="prompt 1 is empty"):
        generate(speaking_gpt, ["Hello", "  "])


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, nanogpt_edit as ne; print(ne.__version__, sorted({'torch', 'numpy', 'tyro'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == f"{ne.__version__} []\n"


@pytest.mark.parametrize("name", ne.__all__)
def test_every_public_name_is_there_and_can_be_called(name: str) -> None:
    assert callable(getattr(ne, name))
    assert name in dir(ne)
    assert not {"Any", "importlib", "_find"} & set(dir(ne))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'finetune'"):
        assert ne.finetune


def test_edit_is_a_verb_and_a_room(speaking_gpt: GPT) -> None:
    before = fingerprint(speaking_gpt)
    facts = [Fact("The capital of France", "France", target_new="Tom", target_true="Paris", paraphrases=("In",))]
    text = ["The capital of France is Paris. Tom has 3 apples."] * 100
    loose = {"covariance_weight": 0.01, "clamp": 20.0, "weight_decay": 0.0, "kl_coef": 0.0, "refine_steps": 0}
    patch = ne.edit(speaking_gpt, facts, preset="given", method="memit", text=text, n_prefixes=0, **loose)
    assert fingerprint(speaking_gpt) == before
    old = ne.score(speaking_gpt, patch.facts)
    with patch.applied(speaking_gpt):
        new = ne.score(speaking_gpt, patch.facts)
    assert fingerprint(speaking_gpt) == before
    assert old.success.value == 0
    assert new.facts[0].new.p_target > 1.5 * old.facts[0].new.p_target
    assert new.efficacy.value == 1
    assert new.neighbourhood is None
    assert [line.split("  ")[0] for line in str(new).splitlines()] == [
        "success: the new answer at rank 1",
        "exact: written freely, exactly it",
        "efficacy: p(new) > p(true)",
        "paraphrases: at rank 1",
        "paraphrases: p(new) > p(true)",
    ]


@pytest.mark.parametrize("method", ["memit", "ft"])
def test_facts_are_taken_in_every_plain_form(speaking_gpt: GPT, tmp_path: Path, method: str) -> None:
    fact = Fact("The capital of France", "France", target_new="Tom", target_true="Paris")
    file = tmp_path / "facts.jsonl"
    write_jsonl(file, [fact_to_record(fact)])
    record = {"prompt": fact.prompt, "subject": fact.subject, "target_new": "Tom", "target_true": "Paris"}
    text = ["The capital of France is Paris. Tom has 3 apples."] * 100
    forms: list[Any] = [file, str(file), fact, [fact], record, (each for each in [record])]
    patches = [
        ne.edit(speaking_gpt, form, text=text, config={"method": method, "layers": [0, 1], **QUICK}) for form in forms
    ]
    assert [patch.facts for patch in patches] == [(fact,)] * len(forms)
    assert all(patch.config.layers == (0, 1) for patch in patches)
    assert len({str(ne.score(speaking_gpt, form)) for form in forms[:-1]}) == 1


def test_problems_are_taken_in_every_plain_form(speaking_gpt: GPT, tmp_path: Path) -> None:
    file = tmp_path / "two.jsonl"
    write_jsonl(file, [{"question": question, "answer": "#### 17"} for question in QUESTIONS])
    problems = ne.read_problems(file)
    config = {"max_new_tokens": 4}
    forms: list[Any] = [file, str(file), problems, list(problems), (each for each in problems)]
    found = [ne.evaluate(speaking_gpt, form, n=2, config=config).records for form in forms]
    assert all(records == found[0] for records in found)
    assert ne.evaluate(speaking_gpt, problems[0], n=2, config=config).records == found[0][:2]


def test_a_dtype_and_a_device_are_taken_by_name(speaking_gpt: GPT, tmp_path: Path) -> None:
    ne.save(speaking_gpt, str(tmp_path / "model"))
    assert ne.load(str(tmp_path / "model"), dtype="bfloat16").dtype == torch.bfloat16
    assert ne.load(tmp_path / "model", device=torch.device("cpu"), dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("verb", ["edit", "evaluate", "score", "trace", "run", "generate", "grpo", "sft", "pretrain"])
def test_a_verb_says_how_it_is_called(verb: str) -> None:
    """`edit`, `evaluate` and `trace` are what rooms are nearly called, too: none may hide its signature or its help."""
    function = getattr(ne, verb)
    assert inspect.isfunction(function)
    assert function.__name__ == verb
    signature = inspect.signature(function)
    printed = pydoc.plain(pydoc.render_doc(function))
    assert f"{verb}{signature}" in printed
    assert inspect.getdoc(function).splitlines()[0] in printed
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in signature.parameters.values())


def test_edit_names_its_arguments() -> None:
    names = ["model", "facts", "text", "config", "recipe", "fields"]
    assert list(inspect.signature(ne.edit).parameters) == names
    printed = pydoc.plain(pydoc.render_doc(ne.edit))
    assert "The patch that makes `model` say every fact's `target_new`" in printed
    assert list(inspect.signature(ne.evaluate).parameters) == ["model", "problems", "n", "config"]
    assert "graded completions of each problem" in pydoc.plain(pydoc.render_doc(ne.evaluate))


def test_an_edit_is_silent_where_its_logger_is(speaking_gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    out, logger = io.StringIO(), logging.getLogger("nanogpt_edit")
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=False, width=200))
    fact = Fact("The capital of France", "France", target_new="Tom", target_true="Paris")
    text = ["The capital of France is Paris. Tom has 3 apples."] * 100
    ne.edit(speaking_gpt, fact, text=text, **QUICK)
    assert "covariance" in out.getvalue().lower()
    out.truncate(0)
    logger.setLevel(logging.WARNING)
    try:
        ne.edit(speaking_gpt, fact, text=text, seed=1, **QUICK)
    finally:
        ne.quiet(False)
    assert out.getvalue() == ""
    assert logger.level == logging.INFO


def test_a_model_of_another_world_spares_text_of_its_own(speaking_gpt: GPT) -> None:
    fact, known = Fact("The capital of France", "France", target_new="Tom", target_true="Paris"), "is governed from"
    few = Recipe(edit=EditConfig(covariance_tokens=500))
    own = spared_text(speaking_gpt, [fact], few)
    assert own.shape[1] == min(few.pretrain.context_tokens, speaking_gpt.config.block_size) and len(own) > 1
    assert torch.equal(own, spared_text(speaking_gpt, [fact], few))
    assert speaking_gpt.tokenizer is not None and known not in speaking_gpt.tokenizer.decode(own.flatten().tolist())
    assert ne.edit(speaking_gpt, [fact], method="ft", steps=1).facts == (fact,)
    speaking_gpt.lineage = (LineageEntry("pretrained", "pretrained for 3 steps", text=EMBEDDED, problems=EMBEDDED),)
    assert len(spared_text(speaking_gpt, [fact], Recipe())) > 100


def test_an_unknown_edit_setting_names_the_nearest(speaking_gpt: GPT) -> None:
    with pytest.raises(UserError, match='no setting "layer"; did you mean "layers"?'):
        ne.edit(speaking_gpt, [], layer=3)


def test_evaluate_grades_n_completions_of_each_problem(speaking_gpt: GPT) -> None:
    problems = [
        Problem(question=question, rationale="", answer="17", id=str(i)) for i, question in enumerate(QUESTIONS)
    ]
    found = ne.evaluate(speaking_gpt, problems, n=3, config=EvaluateConfig(max_new_tokens=4))
    assert len(found.records) == 2 * 3
    assert found.metrics["problems"]["pass_at_1"].n == 2


def test_trace_prints_a_table_per_site_and_draws_one(speaking_gpt: GPT, tmp_path: Path) -> None:
    found = ne.trace(speaking_gpt, "The Eiffel Tower is located in", "The Eiffel Tower", target="Paris")
    printed = str(found)
    assert printed.startswith(f"p({found.traced.target!r}) is ")
    marked = [line for line in printed.splitlines() if line.startswith("*")]
    assert len(marked) == 3 * (found.traced.subject_last - found.traced.subject_first + 1)
    found.save(tmp_path / "trace.svg")
    assert (tmp_path / "trace.svg").read_text().lstrip().startswith("<")
    # Restoring the last token after the last block gives the clean run's answer back, whatever the weights.
    assert found.traced.effect["resid_post"][-1, -1] == pytest.approx(found.traced.total_effect, abs=1e-6)


SUMS = [ne.Problem(f"What is {n} + 2?", f"{n} + 2 = {n + 2}.", f"{n + 2}", f"sums:{n}") for n in range(20)]
FEW: dict[str, Any] = {"steps": 2, "batch_size": 2, "evaluate_every": 1}


def test_a_model_is_taught_in_a_folder_stage_by_stage(speaking_gpt: GPT, tmp_path: Path) -> None:
    before = fingerprint(speaking_gpt)
    taught = ne.sft(speaking_gpt, SUMS, out=tmp_path, **FEW)
    assert taught.model is speaking_gpt
    assert fingerprint(speaking_gpt) == fingerprint(ne.load(tmp_path / "sft")) != before
    assert [row["step"] for row in taught.log] == [0, 1]
    assert {"loss", "val_loss"} <= set(taught.log[1])
    assert list(taught.figures) == ["sft-loss"]
    assert "SFT loss" in taught._repr_html_()
    assert str(taught) == f"SFT: 2 steps. The model: {tmp_path / 'sft'}"
    rewards = {"problems_per_step": 2, "group_size": 2, "max_new_tokens": 4, "evaluate_problems": 2}
    improved = ne.grpo(taught.model, SUMS, out=tmp_path, steps=1, **rewards)
    assert [done.kind for done in ne.load(tmp_path / "grpo").lineage][-2:] == ["sft", "grpo"]
    assert (tmp_path / "logs" / "rollouts" / "step_000000.jsonl.gz").is_file()
    assert len(improved.log) == 1


def test_a_stage_that_is_done_is_loaded_and_one_with_other_settings_refused(speaking_gpt: GPT, tmp_path: Path) -> None:
    done = fingerprint(ne.sft(speaking_gpt, SUMS, out=tmp_path, **FEW).model)
    other = GPT(speaking_gpt.config, seed=1).eval()
    other.tokenizer = speaking_gpt.tokenizer
    again = ne.sft(other, SUMS, out=tmp_path, **FEW)
    assert fingerprint(again.model) == done != fingerprint(other)
    with pytest.raises(UserError, match=r"other settings \(problems.path\)"):
        ne.sft(speaking_gpt, SUMS[:10], out=tmp_path, **FEW)
    with pytest.raises(UserError, match=r"other settings \(sft.learning_rate\)"):
        ne.sft(speaking_gpt, SUMS, out=tmp_path, **FEW, learning_rate=0.1)


def test_a_new_model_is_pretrained_on_what_is_given(tmp_path: Path) -> None:
    sizes = ne.ModelConfig(vocab_size=300, block_size=64, n_layer=1, n_head=2, n_embd=16)
    found = ne.pretrain(
        out=tmp_path, model=sizes, problems=SUMS, text=["Ann has a cat."], context_tokens=16, fact_repeats=1, **FEW
    )
    assert found.model.config.n_embd == 16
    assert list(found.figures) == ["pretrain-loss"]
    assert found.model.lineage[-1].problems.startswith("20 problems given in Python")
