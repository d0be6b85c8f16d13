"""C in one streamed pass equals C computed directly; it converges, says so, and is cached by content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain_editing
import pytest
import torch
from edit_world import covariance_blocks, random_model

from nanogpt_edit import cli
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import cache_folder
from nanogpt_edit.common.sizes import size_in_words
from nanogpt_edit.editing import covariance as covariance_module
from nanogpt_edit.editing import covariance_cache
from nanogpt_edit.editing.covariance import Covariance, collect, description, in_words
from nanogpt_edit.editing.covariance_cache import (
    cached_covariances,
    clear_covariances,
    covariances,
    load_covariance,
)
from nanogpt_edit.model.gpt import GPT


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(request.param)


def test_one_pass_equals_the_direct_computation(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covariance_module, "BATCH_TOKENS", 500)  # many small batches
    monkeypatch.setattr(covariance_module, "BAND", 50)  # several, the last one narrower
    blocks = covariance_blocks()[:40]
    found = collect(model, blocks, layers=[0, 2], max_tokens=10**9, tolerance=0.0)
    assert list(found) == [0, 2]
    for layer, covariance in found.items():
        assert covariance.tokens == blocks.numel()
        assert covariance.matrix.dtype == torch.float64
        np.testing.assert_allclose(
            covariance.matrix.numpy(), plain_editing.covariance(model, blocks, layer), rtol=1e-4, atol=1e-5
        )


def test_it_stops_when_converged_and_says_how_far(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covariance_module, "BATCH_TOKENS", 480)
    monkeypatch.setattr(covariance_module, "FIRST_CHECK_TOKENS", 480)
    blocks = covariance_blocks()
    loose = collect(model, blocks, layers=[0, 1], max_tokens=10**9, tolerance=0.5)
    assert loose[0].converged
    assert loose[0].tokens == loose[1].tokens == 960  # 480, then twice that: the first comparison
    strict = collect(model, blocks, layers=[0], max_tokens=2000, tolerance=1e-9)[0]
    assert not strict.converged
    assert 1900 < strict.tokens <= 2000
    assert 0 < strict.change < loose[0].change
    assert f"by {strict.change:.2%} and" in description([strict]) and "(not converged; " in description([strict])
    both = description([loose[0], replace(strict, layer=1)])
    assert both.startswith("covariance of layers 0 to 1: 960 tokens, over the last doubling C changed by at most ")
    assert both.endswith("(not converged: 1; give more text or raise covariance_tokens)")
    assert [in_words(each) for each in ([3], [0, 1, 2, 4], [1, 3, 4])] == ["3", "0 to 2, 4", "1, 3 to 4"]


def test_the_change_is_between_half_and_all_of_the_tokens(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covariance_module, "BATCH_TOKENS", 480)
    monkeypatch.setattr(covariance_module, "FIRST_CHECK_TOKENS", 480)
    monkeypatch.setattr(covariance_module, "BAND", 50)
    blocks = covariance_blocks()
    half = collect(model, blocks, layers=[1], max_tokens=480, tolerance=0.0)[1]
    whole = collect(model, blocks, layers=[1], max_tokens=960, tolerance=0.0)[1]
    # 480 and 960 tokens begin with the same blocks
    assert whole.change == pytest.approx(float((whole.matrix - half.matrix).norm() / whole.matrix.norm()), rel=1e-6)


def test_a_last_step_that_is_no_doubling_counts_as_one(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """‖C_n − C_m‖ shrinks with n − m: as it stands, a short last step would pass for convergence."""
    monkeypatch.setattr(covariance_module, "FIRST_CHECK_TOKENS", 480)
    monkeypatch.setattr(covariance_module, "BATCH_TOKENS", 96)
    blocks = covariance_blocks()
    kept = collect(model, blocks, layers=[1], max_tokens=480, tolerance=0.0)[1]
    for tokens in (576, 672, 864):
        found = collect(model, blocks, layers=[1], max_tokens=tokens, tolerance=0.0)[1]
        step = float((found.matrix - kept.matrix).norm() / found.matrix.norm())
        assert found.change == pytest.approx(step * (480 / (tokens - 480)) ** 0.5, rel=1e-5)


def test_the_solvers_change_is_that_of_the_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """To first order: for a small change of C it is the difference of two solutions."""
    monkeypatch.setattr(covariance_module, "BAND", 8)
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(4000, 20, generator=generator) @ torch.randn(20, 20, generator=generator)
    total = covariance_module._Sum(20)
    total.add(keys[:2000])
    total.keep()
    total.add(keys[2000:])
    total.check()
    now, before = (part.double().T @ part.double() / len(part) for part in (keys, keys[:2000]))
    probes = keys[:2000:62][:32].T.double()
    exact, old = torch.linalg.solve(now, probes), torch.linalg.solve(before, probes)
    expected = float(((exact - old).norm(dim=0) / exact.norm(dim=0)).mean())
    first_order = torch.linalg.solve(now, (now - before) @ exact)
    expected_first = float((first_order.norm(dim=0) / exact.norm(dim=0)).mean())
    found = total.result(0, tolerance=1.0)
    assert found.solve_change == pytest.approx(expected, rel=0.1)
    assert found.solve_change == pytest.approx(expected_first, rel=1e-3)
    assert torch.equal(found.matrix, found.matrix.T)
    torch.testing.assert_close(found.matrix, now, rtol=1e-5, atol=1e-5)


def test_the_cache_is_keyed_by_content(model: GPT, tmp_path: Path) -> None:
    blocks = covariance_blocks()[:20]

    def ask(**changes: object) -> None:
        settings = {"layers": [0, 1], "max_tokens": 10**6, "tolerance": 0.01, "cache_dir": tmp_path} | changes
        covariances(model, blocks, **settings)  # type: ignore[arg-type]

    first = covariances(model, blocks, layers=[0, 1], max_tokens=10**6, tolerance=0.01, cache_dir=tmp_path)
    assert len(cached_covariances(tmp_path)) == 2
    again = covariances(model, blocks, layers=[1], max_tokens=10**6, tolerance=0.01, cache_dir=tmp_path)
    assert len(cached_covariances(tmp_path)) == 2
    assert torch.equal(again[1].matrix, first[1].matrix)
    assert again[1].change == first[1].change
    ask(layers=[0, 2])
    assert len(cached_covariances(tmp_path)) == 3
    ask(max_tokens=500)
    assert len(cached_covariances(tmp_path)) == 5
    with torch.no_grad():
        model.embed.weight[0, 0] += 1.0
    ask()
    assert len(cached_covariances(tmp_path)) == 7
    assert clear_covariances(tmp_path) > 7 * 8 * model.config.mlp_size**2
    assert cached_covariances(tmp_path) == []


def test_a_cached_layer_is_not_computed_again(model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = covariance_blocks()[:20]
    covariances(model, blocks, layers=[0], max_tokens=10**6, tolerance=0.01, cache_dir=tmp_path)
    monkeypatch.setattr(covariance_cache, "collect", None)
    covariances(model, blocks, layers=[0], max_tokens=10**6, tolerance=0.01, cache_dir=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_cache_file_is_named_and_made_again(
    model: GPT, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks, settings = covariance_blocks()[:20], {"max_tokens": 10**6, "tolerance": 0.01, "cache_dir": tmp_path}
    first = covariances(model, blocks, layers=[0], **settings)  # type: ignore[arg-type]
    (cached,) = cached_covariances(tmp_path)
    contents = bytearray(cached.path.read_bytes())
    if damage == "cut":
        cached.path.write_bytes(contents[: cached.size_bytes // 2])
    else:
        contents[-3] ^= 4
        cached.path.write_bytes(contents)
    with pytest.raises(UserError, match=r": damaged.* The covariance is computed again"):
        load_covariance(cached.path)
    assert cached_covariances(tmp_path)[0].covariance is None
    again = covariances(model, blocks, layers=[0], **settings)  # type: ignore[arg-type]
    assert torch.equal(again[0].matrix, first[0].matrix)
    assert torch.equal(load_covariance(cached.path).matrix, first[0].matrix)


def test_the_verb_lists_what_is_kept_and_clears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOGPT_EDIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    covariances(
        random_model(), covariance_blocks()[:20], layers=[0, 1], max_tokens=10**6, tolerance=0.01, cache_dir=tmp_path
    )
    damaged = cached_covariances(tmp_path)[0].path
    damaged.write_bytes(damaged.read_bytes()[:-8])
    assert cli.main(["cache"]) == 0
    first, second, total = capsys.readouterr().out.splitlines()
    assert "damaged" in first
    assert "KiB  covariance of layer" in second
    assert total.startswith(f"{tmp_path}: 2 covariances, ")
    assert cli.main(["cache", "clear"]) == 0
    assert capsys.readouterr().out.endswith("freed.\n")
    assert cached_covariances(tmp_path) == []
    assert cli.main(["cache", "clar"]) == 2
    assert 'did you mean "clear"?' in capsys.readouterr().err


def place_a_file(path: Path) -> None:
    path.write_text("")


def place_nothing_below_a_file(path: Path) -> None:
    path.parent.write_text("")


@pytest.mark.parametrize("spoil", [place_a_file, place_nothing_below_a_file])
def test_a_cache_that_cannot_be_written_is_said_before_and_costs_nothing(
    spoil: Callable[[Path], None],
    model: GPT,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "a" / "cache" if spoil is place_nothing_below_a_file else tmp_path / "cache"
    spoil(place)
    said: list[str] = []
    monkeypatch.setattr(covariance_cache, "say", said.append)

    def computed(*arguments: Any, **named: Any) -> dict[int, Covariance]:
        said.append("now it is computed")
        return collect(*arguments, **named)

    monkeypatch.setattr(covariance_cache, "collect", computed)
    found = covariances(model, covariance_blocks()[:20], layers=[0], max_tokens=10**6, tolerance=0.01, cache_dir=place)
    assert set(found) == {0}
    assert said[0].startswith(str(place))
    assert "NANOGPT_EDIT_CACHE can name another" in said[0]
    assert said[1:] == ["now it is computed"]
    monkeypatch.setenv("NANOGPT_EDIT_CACHE", str(place))
    for verb in ("list", "clear"):
        assert cli.main(["cache", verb]) == 2
        assert f"{place}: no folder that can be read (not a directory); let NANOGPT" in capsys.readouterr().err


def test_a_disk_that_fills_costs_the_cache_and_not_the_covariance(
    model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(covariance_cache, "say", said.append)
    monkeypatch.setattr(covariance_cache, "save_covariance", full)
    found = covariances(
        model, covariance_blocks()[:20], layers=[0], max_tokens=10**6, tolerance=0.01, cache_dir=tmp_path
    )
    assert set(found) == {0}
    (sentence,) = said
    assert sentence.startswith(f"{tmp_path}: the covariances cannot be written there ([Errno 28] No space left")


def test_sizes_in_words() -> None:
    assert [size_in_words(n) for n in (0, 1023, 1536, 5 * 2**20)] == ["0 bytes", "1,023 bytes", "1.5 KiB", "5.0 MiB"]


def test_no_text_is_named(model: GPT) -> None:
    with pytest.raises(UserError, match="empty"):
        covariances(model, torch.zeros(0, 8, dtype=torch.int64), layers=[0], max_tokens=10, tolerance=0.1)
