"""The text that an edit spares is made before anybody asks for an edit, and whoever comes early waits for it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanogpt_edit.common.files import CACHE_VARIABLE
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing import covariance_cache
from nanogpt_edit.editing.covariance_cache import cached_covariances
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline import spared
from nanogpt_edit.pipeline.own_text import kept_texts
from nanogpt_edit.pipeline.spared import spared_text
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.playground import ordinary
from nanogpt_edit.serving.playground.before import Before
from nanogpt_edit.serving.playground.desk import Desk, unrelated
from nanogpt_edit.serving.playground.ordinary import AUTO

FACT = Fact("The capital of France", "France", target_new="Tom", target_true="Paris")


@pytest.fixture
def desk(speaking_gpt: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(spared, "OWN_TOKENS", 512)
    shelf = Shelf()
    shelf.add("m", speaking_gpt)
    return Desk(shelf)


def test_an_edit_finds_all_that_was_made_for_it(
    desk: Desk, speaking_gpt: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, waited, go_on = list[str](), list[str](), threading.Event()

    def gathered(*given: object) -> None:
        begun.append("covariances")
        go_on.wait(20)
        ordinary_gather(*given)

    ordinary_gather = ordinary.gather_ahead
    monkeypatch.setattr(ordinary, "gather_ahead", gathered)
    for _ in range(2):
        desk.ordinary.begin("m", speaking_gpt)

    def hear(phase: str, done: int, of: int | None) -> None:
        waited.append(phase)
        go_on.set()

    blocks = desk.ordinary.blocks("m", speaking_gpt, [FACT], AUTO, hear)
    assert begun == ["covariances"] and waited  # it was waited for, and done once
    assert torch.equal(blocks, spared_text(speaking_gpt, (), AUTO))
    assert len(kept_texts(tmp_path)) == 1 and len(cached_covariances(tmp_path)) == 1

    monkeypatch.setattr(covariance_cache, "collect", None)
    quick = replace(AUTO.edit, steps=1, n_prefixes=1)
    patch = edit_model(speaking_gpt, [FACT], quick, covariance_blocks=blocks, cache_dir=tmp_path)
    edited = desk._place("m", speaking_gpt, patch, {}, Before(speaking_gpt, [FACT], unrelated))
    assert desk._blocks(edited.name, edited.model, [FACT], AUTO, hear) is blocks  # an edit of an edit spares the same


def test_what_nobody_will_use_is_given_up(desk: Desk, speaking_gpt: GPT, tmp_path: Path) -> None:
    desk.ordinary.end()
    desk.ordinary.begin("m", speaking_gpt)
    desk.ordinary._making["m"].join(20)
    assert not desk.ordinary._making["m"].is_alive() and not kept_texts(tmp_path)
