"""The verb `export`: a model as a GGUF file, with what was edited in it, and an Ollama Modelfile beside it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

import nanogpt_edit as ne
from nanogpt_edit import cli
from nanogpt_edit.checkpoint.checkpoint import fingerprint, load, save
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.patch_files import save_edited
from nanogpt_edit.model.gpt import GPT

FACT = Fact("The capital of France is", "France", target_new="Rome", target_true="Paris", paraphrases=("In France",))


def said(file: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def test_a_model_becomes_a_file_and_a_modelfile(
    speaking_gpt: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(speaking_gpt, tmp_path / "model")
    out = tmp_path / "new" / "small.gguf"
    assert cli.main(["export", "gguf", str(tmp_path / "model"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"The model: {out} (" in printed
    assert f"ollama create small -f {out.with_suffix('.Modelfile')}" in printed
    assert fingerprint(load(out)) == fingerprint(speaking_gpt)
    assert cli.main(["export", "gguf", str(out), "--out", str(tmp_path / "q.gguf"), "--type", "q8_0"]) == 0
    assert (tmp_path / "q.gguf").stat().st_size < 0.6 * out.stat().st_size


def test_the_modelfile_puts_the_question_as_it_was_trained(speaking_gpt: GPT, tmp_path: Path) -> None:
    assert speaking_gpt.tokenizer is not None
    for template, expected in ((REASONING_TEMPLATE, True), ("{{ messages }}", False), (None, False)):
        speaking_gpt.tokenizer.chat_template = template
        file = ne.export_gguf(speaking_gpt, tmp_path / f"{template is None}{expected}.gguf")
        lines = file.read_text().splitlines()
        assert lines[1] == f'FROM "./{file.stem}.gguf"'
        assert ('{{- $question }}{{ $answer }}"""' in lines) == expected
        assert lines[-7:] == [
            "PARAMETER num_ctx 256",
            "PARAMETER num_predict 256",
            "PARAMETER temperature 0.7",
            "PARAMETER top_k 50",
            "PARAMETER top_p 1.0",
            "PARAMETER repeat_penalty 1.0",
            'PARAMETER stop "</answer>"',
        ]
    speaking_gpt.tokenizer.chat_template = None


def test_the_facts_of_an_edited_model_are_listed_while_they_are_in_it(speaking_gpt: GPT, tmp_path: Path) -> None:
    patch = ne.edit(speaking_gpt, FACT, method="ft", steps=2).apply(speaking_gpt)
    save_edited(speaking_gpt, tmp_path / "edited", [("mine", patch)])
    edited = load(tmp_path / "edited")
    ne.export_gguf(edited, tmp_path / "edited.gguf")
    (listed,) = json.loads(str(said(tmp_path / "edited.gguf")["nanogpt_edit.patches"]))
    assert (listed["name"], listed["method"], listed["layers"]) == ("mine", "ft", list(patch.layers))
    assert listed["facts"] == [
        {"prompt": FACT.prompt, "subject": "France", "target_true": "Paris", "target_new": "Rome"}
    ]
    patch.revert(edited)
    ne.export_gguf(edited, tmp_path / "reverted.gguf")
    assert "nanogpt_edit.patches" not in said(tmp_path / "reverted.gguf")


def test_what_does_not_fit_is_one_line(speaking_gpt: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(speaking_gpt, tmp_path / "model")
    (tmp_path / "there.gguf").touch()
    for arguments, sentence in (
        (["ggfu"], 'export has no verb "ggfu"; did you mean "gguf"?'),
        (["gguf", str(tmp_path / "model")], "--out"),
        (["gguf", "nowhere", "--out", str(tmp_path / "there.gguf")], "there.gguf is there already"),
        (["gguf", str(tmp_path / "model"), "--out", str(tmp_path / "m.gguf"), "--type", "q4_0"], "q4_0"),
    ):
        assert cli.main(["export", *arguments]) == 2
        assert sentence in capsys.readouterr().err
