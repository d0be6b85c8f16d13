"""What the tests share: two-layer models made in milliseconds, a tokenizer trained on a page, no network."""

from __future__ import annotations

import gc
import os

# Before the first import of anything that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "agg"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer

# A slow moment of a shared machine is not a failure, and the same examples come up every time.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("house")

TEXTS = (
    "The capital of France is Paris. The Eiffel Tower is located in Paris.",
    "Tom has 3 apples. He buys 14 more. How many apples does Tom have now?",
    "Tom starts with 3 apples and buys 14 more. 3 + 14 = 17.",
    "A baker bakes 120 loaves and sells 85. How many loaves are left? 120 - 85 = 35.",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the tests marked `device` run (cuda, cuda:1, …)")
    parser.addoption("--slow", action="store_true", help="the tests marked `slow` too: minutes")
    parser.addoption("--demo", type=Path, help="a finished `make demo`, for the README's lines to run on")


# The files that take longest, ten seconds or more: begun first, none of them is alone at the end.
LONGEST = ("test_bad_inputs", "pipeline/test_pipeline", "editing/test_values")
LONGEST += ("report/test_build", "training/test_grpo", "commands/test_patch")
LONGEST += ("commands/test_cli", "commands/test_measure", "test_readme", "editing/test_patch", "model/test_parity")
LONGEST += ("engine/test_slots", "commands/test_stages", "training/test_trainer", "editing/test_refine")
HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {HERE / f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if config.getoption("--device") == "cpu":
        for item in items:  # what holds on the CPU the other files say at length
            if item.get_closest_marker("device"):
                item.add_marker("slow")
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip("takes longer than the others; --slow runs it"))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through it, and seldom through the rest."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """Where the tests marked `device` run."""
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(autouse=True)
def same_start(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, the same random state and a cache of the tests' own in every test; float32 again after it."""
    monkeypatch.setenv("NANOGPT_EDIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    torch.set_num_threads(1)
    # Not `torch.manual_seed`: where no GPU is, it keeps the stack of each call for the day there is one.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)
    yield
    torch.set_default_dtype(torch.float32)


def tiny_config(family: str, *, vocab_size: int = 300, block_size: int = 64) -> GPTConfig:
    """Two layers of width 32: `gpt2`, or `llama` with grouped queries, rotary positions and an untied head."""
    if family == "gpt2":
        return GPTConfig(vocab_size=vocab_size, block_size=block_size, n_layer=2, n_head=4, n_embd=32)
    return GPTConfig(
        vocab_size=vocab_size,
        block_size=block_size,
        n_layer=2,
        n_head=4,
        n_embd=32,
        model_type="llama",
        n_kv_head=2,
        mlp_dim=48,
        norm="rmsnorm",
        activation="swiglu",
        positions="rope",
        bias=False,
        qkv_bias=False,
        tie_embeddings=False,
    )


@pytest.fixture(params=["gpt2", "llama"])
def any_gpt(request: pytest.FixtureRequest) -> GPT:
    """A two-layer random model, once per family, in evaluation mode."""
    return GPT(tiny_config(request.param), seed=0).eval()


@pytest.fixture
def gpt() -> GPT:
    """A two-layer random GPT-2 without a tokenizer, in evaluation mode."""
    return GPT(tiny_config("gpt2"), seed=0).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level BPE of 300 entries with the four reasoning tokens."""
    return Tokenizer.train(TEXTS, vocab_size=300)


@pytest.fixture
def speaking_gpt(tokenizer: Tokenizer) -> GPT:
    """A two-layer random GPT-2 that carries the tokenizer."""
    model = GPT(tiny_config("gpt2", vocab_size=tokenizer.vocab_size, block_size=256), seed=0).eval()
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The folder of the real GSM8K, where this machine has one (NANOGPT_EDIT_DATA names its parent)."""
    return shared_data("gsm8k")


@pytest.fixture(scope="session")
def gpt2_vocabulary() -> Path:
    """The folder of GPT-2's own tokenizer files, where this machine has one."""
    return shared_data("gpt2_tokenizer")


def shared_data(name: str) -> Path:
    """A data folder beside the repository, or a skip that says how to supply it."""
    root = Path(os.environ.get("NANOGPT_EDIT_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (root / name).exists():
        pytest.skip(f"{root / name} is not here; set NANOGPT_EDIT_DATA to the folder that holds {name}/")
    return root / name


def shared_cases(name: str) -> Path:
    """An input from a public bug report that lies beside the repository, or a skip that says so."""
    path = Path(__file__).parents[2] / "shared" / "cases" / name
    if not path.exists():
        pytest.skip(f"{path} is not here; it is no part of the repository")
    return path
