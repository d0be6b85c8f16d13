"""The adapter that a stage keeps: with the base model that it names it is the stage's model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_stages import PROBLEMS, tiny_model

import nanogpt_edit as ne
from nanogpt_edit import cli
from nanogpt_edit.checkpoint.checkpoint import load, save
from nanogpt_edit.common.files import write_jsonl
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry


def base_of(adapter: Path) -> Path:
    return Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])


def apart(one: GPT, other: GPT) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_an_adapter_names_the_directory_that_its_stage_starts_from(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    save(tiny_model(), tmp_path / "start")
    rows = [{"question": p.question, "answer": f"{p.rationale}\n#### {p.answer}"} for p in PROBLEMS]
    write_jsonl(tmp_path / "problems.jsonl", rows)
    settings = ["--problems.path", str(tmp_path / "problems.jsonl"), "--problems.validation", "4", "--threads", "1"]
    lora = ["--sft.steps", "3", "--sft.lora.rank", "2", "--sft.lora.targets", "mlp.up", "--sft.lora.keep-adapter"]
    assert cli.main(["sft", str(tmp_path / "start"), "--out", str(tmp_path / "out"), *settings, *lora]) == 0
    adapter = tmp_path / "out" / "sft-adapter"
    assert base_of(adapter) == tmp_path / "start"
    found, expected = load(adapter), load(tmp_path / "out" / "sft")
    assert apart(found, expected) == 0
    assert apart(found, tiny_model()) > 1e-4
    assert found.lineage == expected.lineage
    assert found.lineage[-1].sentence == "SFT (LoRA of rank 2) for 3 steps"
    assert not (tmp_path / "out" / "sft-base").exists()


def test_a_model_that_lies_nowhere_is_written_beside_the_adapter(tmp_path: Path) -> None:
    """One with rows for new tokens, which are fitted before the first step."""
    model = tiny_model()
    new = tuple(range(model.config.vocab_size - 4, model.config.vocab_size))
    model.lineage = (LineageEntry("vocabulary", "four tokens added", new_rows=new),)
    lora = ne.LoraConfig(rank=2, keep_adapter=True)
    trained = ne.sft(model, PROBLEMS, out=tmp_path, steps=3, fit_problems=4, lora=lora)
    adapter, base = tmp_path / "sft-adapter", load(tmp_path / "sft-base")
    assert base_of(adapter) == tmp_path / "sft-base"
    assert base.lineage[-1].kind == "fitted"
    moved = (base.head_weight != tiny_model().head_weight).any(dim=1).nonzero().flatten()
    assert tuple(moved.tolist()) == new
    assert apart(load(adapter), trained.model) == apart(load(adapter), load(tmp_path / "sft")) == 0
