"""What came with a model is there again when it is saved: template, pad token, dtype, settings, licence, model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, shared_cases, tiny_config
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common.card import MADE, read_card
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import write_json
from nanogpt_edit.engine.generate import generate
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.model.tokenizer import Tokenizer

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]\r\n{{ m['content'] }}{% endfor %}"
CARD = "---\nlicense: apache-2.0\n---\n# Someone's model\n\nIt was trained on a page.\n"


def entries(directory: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / name).read_text())
    return loaded


def change(directory: Path, name: str, **changes: object) -> None:
    write_json(directory / name, entries(directory, name) | changes)


@pytest.fixture
def theirs(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A bfloat16 model directory as somebody else might have made it, with a pad token that ends nothing."""
    model = GPT(tiny_config("llama", vocab_size=tokenizer.vocab_size), seed=0).to(torch.bfloat16)
    checkpoint.save(model, tmp_path / "theirs", tokenizer=tokenizer)
    directory = tmp_path / "theirs"
    (directory / "lineage.json").unlink()
    (directory / "README.md").write_text(CARD)
    (directory / "LICENSE.txt").write_text("Do what you like.")
    (directory / "chat_template.jinja").write_bytes(TEMPLATE.encode())
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    change(directory, "tokenizer_config.json", pad_token="!", padding_side="left", model_max_length=64)
    change(directory, "config.json", initializer_range=0.01, bos_token_id=3, use_cache=True)
    change(directory, "generation_config.json", temperature=0.3, eos_token_id=[tokenizer.eos_id, 40])
    return directory


@pytest.fixture
def again(theirs: Path, tmp_path: Path) -> Path:
    """The same, loaded and saved."""
    checkpoint.save(checkpoint.load(theirs), tmp_path / "again")
    return tmp_path / "again"


def test_the_chat_template_and_other_texts_are_kept_to_the_byte(theirs: Path, again: Path) -> None:
    for name in ("chat_template.jinja", "LICENSE.txt", "additional_chat_templates/tools.jinja"):
        assert (again / name).read_bytes() == (theirs / name).read_bytes(), name
    turns = [{"role": "user", "content": "Hello?"}]
    templated = [AutoTokenizer.from_pretrained(d).apply_chat_template(turns, tokenize=False) for d in (theirs, again)]
    assert templated[0] == templated[1]


def test_the_pad_token_is_kept_and_used(again: Path, tokenizer: Tokenizer) -> None:
    pad_id = tokenizer.encode("!")[0]
    loaded = checkpoint.load(again)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.pad_id == pad_id != loaded.tokenizer.eos_id
    assert entries(again, "config.json")["pad_token_id"] == entries(again, "generation_config.json")["pad_token_id"]
    assert AutoTokenizer.from_pretrained(again).pad_token_id == entries(again, "config.json")["pad_token_id"] == pad_id


def test_the_dtype_is_kept(theirs: Path, again: Path) -> None:
    assert entries(again, "config.json")["torch_dtype"] == "bfloat16"
    first, second = checkpoint.load(theirs), checkpoint.load(again)
    assert second.dtype == torch.bfloat16
    assert checkpoint.fingerprint(first) == checkpoint.fingerprint(second)


def test_settings_that_are_not_ours_are_kept(again: Path, tokenizer: Tokenizer) -> None:
    config, generation = entries(again, "config.json"), entries(again, "generation_config.json")
    assert (config["initializer_range"], config["bos_token_id"], config["use_cache"]) == (0.01, 3, True)
    assert generation["temperature"] == 0.3
    assert generation["eos_token_id"] == [tokenizer.answer_end, 40, tokenizer.eos_id]
    settings = entries(again, "tokenizer_config.json")
    assert (settings["padding_side"], settings["model_max_length"]) == ("left", 64)


def test_what_ends_a_text_elsewhere_ends_it_here(again: Path, tokenizer: Tokenizer) -> None:
    model = checkpoint.load(again)
    assert model.tokenizer is not None
    assert model.tokenizer.stop_ids == {40, tokenizer.eos_id, tokenizer.answer_end}
    with torch.no_grad():
        assert model.head is not None
        model.head.weight.zero_()
        model.head.weight[40] = model.norm(model.embed.weight[tokenizer.encode("?")[0]])  # so "?" is likely to end it
    (found,) = generate(model, "What?", temperature=0, max_new_tokens=3)
    assert (found.finish_reason, found.token_ids, found.text) == ("stop", (40,), "")


def test_nothing_grows_from_save_to_save(again: Path, tmp_path: Path) -> None:
    checkpoint.save(checkpoint.load(again), tmp_path / "third")
    for file in again.rglob("*.*"):
        assert (tmp_path / "third" / file.relative_to(again)).read_bytes() == file.read_bytes(), file.name


def test_the_model_card_says_at_its_end_what_was_done(theirs: Path, again: Path) -> None:
    card = (again / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n# nanogpt_edit: ")
    assert f"---\n\n# Someone's model\n\nIt was trained on a page.\n\n{MADE}\n## What it is" in card
    assert "1. loaded from theirs" in card
    assert "By the chat template that came with the model" in card
    assert "Its licence, as it came with it: apache-2.0. The licence's text: LICENSE.txt." in card
    checkpoint.save(checkpoint.load(again), again, lineage_note="trained on <think>")
    card = (again / "README.md").read_text()
    assert read_card(card).theirs == read_card(CARD).theirs
    assert card.count(MADE) == 1
    assert "2. trained on \\<think>" in card  # Markdown would take it for HTML and show nothing


def test_the_metadata_are_valid_and_results_of_other_weights_are_left_out(theirs: Path, tmp_path: Path) -> None:
    index = "model-index:\n- name: x\n  results: []\n"
    (theirs / "README.md").write_text(CARD.replace("license", f"{index}tags: [mine]\nlicense"))
    copied, trained = tmp_path / "copied", tmp_path / "trained"
    checkpoint.save(checkpoint.load(theirs), copied)
    checkpoint.save(checkpoint.load(copied), trained, lineage_note=LineageEntry("sft", "SFT for 3 steps"))
    assert index in (copied / "README.md").read_text(), "the weights are still theirs"
    assert "model-index" not in (trained / "README.md").read_text()
    found = ModelCard.load(trained / "README.md").data
    assert (found.license, found.tags, found.library_name) == ("apache-2.0", ["mine"], "transformers")


def test_a_card_that_somebody_wrote_in_the_place_stays(speaking_gpt: GPT, tmp_path: Path) -> None:
    checkpoint.save(speaking_gpt, tmp_path / "m")
    assert "# " + f"{tmp_path.name}/m" in (tmp_path / "m" / "README.md").read_text()
    (tmp_path / "m" / "README.md").write_text("# My model\n\nMine alone.\n")
    checkpoint.save(speaking_gpt, tmp_path / "m")
    card = (tmp_path / "m" / "README.md").read_text()
    assert "---\n\n# My model\n\nMine alone.\n\n" in card
    assert ModelCard.load(tmp_path / "m" / "README.md").data.tags == ["nanogpt_edit", "gpt2"]


def test_a_readme_of_something_else_is_not_replaced(speaking_gpt: GPT, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("My project.")
    with pytest.raises(UserError, match=r'it holds "README.md", which no model directory has'):
        checkpoint.save(speaking_gpt, tmp_path)
    assert (tmp_path / "README.md").read_text() == "My project."


def test_older_places_of_a_template_are_read(theirs: Path, tmp_path: Path) -> None:
    (theirs / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "{{ messages }}"}]
    change(theirs, "tokenizer_config.json", chat_template=named)
    checkpoint.save(checkpoint.load(theirs), tmp_path / "m")
    assert entries(tmp_path / "m", "tokenizer_config.json")["chat_template"] == named
    change(theirs, "tokenizer_config.json", chat_template=TEMPLATE)
    checkpoint.save(checkpoint.load(theirs), tmp_path / "m")
    assert (tmp_path / "m" / "chat_template.jinja").read_bytes().decode() == TEMPLATE


@pytest.mark.parametrize("name", ["llama2sp", "llama_tied_other_head", "qwen3"])
def test_models_of_transformers_keep_their_settings(name: str, tmp_path: Path) -> None:
    theirs = shared_cases(f"models/{name}")
    checkpoint.save(checkpoint.load(theirs), tmp_path / "m")
    before, after = (AutoTokenizer.from_pretrained(directory) for directory in (theirs, tmp_path / "m"))
    assert after.chat_template == before.chat_template
    assert after.pad_token == (before.pad_token or before.eos_token)
    assert (after.bos_token, after.eos_token, after.unk_token) == (before.bos_token, before.eos_token, before.unk_token)
    for key in ("bos_token_id", "eos_token_id", "initializer_range", "use_cache"):
        assert entries(tmp_path / "m", "config.json")[key] == entries(theirs, "config.json")[key]
    text = f"{TEXTS[0]} 12345"
    assert after(text, add_special_tokens=False)["input_ids"] == before(text, add_special_tokens=False)["input_ids"]
