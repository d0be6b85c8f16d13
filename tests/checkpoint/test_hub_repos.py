"""Models to the hub and back, against a stand-in for it on this machine; what goes wrong is a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_stand_in import TOKEN, Hub, stand_in
from huggingface_hub import constants
from serving_run import small_model

from nanogpt_edit import cli
from nanogpt_edit.checkpoint.checkpoint import fingerprint, load, save
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch_files import save_edited

# huggingface_hub hands its HTTP library large files in a way that this calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=.* to upload raw bytes:DeprecationWarning")

FACT = Fact("The capital of France is", "France", target_new="Rome", target_true="Paris")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with stand_in() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            constants, "HF_HUB_DISABLE_XET", True
        )  # a protocol of its own, for which there is no stand-in
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edited model's directory, with what a run may have left beside."""
    directory, model = tmp_path_factory.mktemp("models") / "edited", small_model()
    patch = edit_model(model, [FACT], EditConfig(method="ft", steps=1)).apply(model)
    save_edited(model, directory, [("mine", patch)])
    (directory / "notes.txt").write_text("mine alone", encoding="utf-8")
    (directory / ".env").write_text("SECRET=1", encoding="utf-8")
    (directory / "state").mkdir()
    (directory / "state" / "step_1.safetensors").touch()
    return directory


@pytest.fixture
def model(edited: Path, tmp_path: Path) -> Path:
    return shutil.copytree(edited, tmp_path / "edited")


def run(*arguments: object) -> int:
    return cli.main([str(each) for each in arguments])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return "".join(capsys.readouterr())


def test_a_model_goes_there_and_comes_back_the_same(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("push", model, "me/small", "--dry-run") == 0
    dry = said(capsys)
    assert "patches/001-mine.safetensors" in dry and dry.rstrip().endswith("Nothing was sent.")
    assert "left out: .env, notes.txt, state/step_1.safetensors." in dry
    assert not hub.asked

    assert run("push", model, "me/small") == 0
    printed = said(capsys)
    assert printed.startswith(dry.partition("\n")[0]) and f"{hub.address}/me/small" in printed
    there = hub.repositories["me/small"]
    assert there.private and there.commits == ["edited, by nanogpt_edit"]
    assert "notes.txt" not in there.files and ".env" not in there.files
    assert there.files["README.md"] == (model / "README.md").read_bytes()

    assert run("pull", "me/small", "--out", tmp_path / "back") == 0
    back = {
        path.relative_to(tmp_path / "back").as_posix(): path.read_bytes() for path in (tmp_path / "back").rglob("*.*")
    }
    assert back == {name: data for name, data in there.files.items() if name != ".gitattributes"}
    assert run("patch", "revert", tmp_path / "back", "--out", tmp_path / "original") == 0
    assert fingerprint(load("me/small")) == fingerprint(load(model)), "and by its name"
    assert load("me/small").lineage[-1].hub == "me/small"


def test_what_is_there_is_replaced_only_when_asked(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("push", model, "me/small", "--public") == 0
    assert not hub.repositories["me/small"].private
    hub.repositories["me/small"].files["picture.png"] = b"somebody's"
    save(small_model(), tmp_path / "plain")
    assert run("push", tmp_path / "plain", "me/small") == 2
    assert "me/small is on the hub already, with" in said(capsys)
    assert "patches/001-mine.safetensors" in hub.repositories["me/small"].files
    assert run("push", tmp_path / "plain", "me/small", "--update") == 0
    files = hub.repositories["me/small"].files
    assert "patches/001-mine.safetensors" not in files, "it is in these weights no more"
    assert files["model.safetensors"] == (tmp_path / "plain" / "model.safetensors").read_bytes()
    assert files["picture.png"] == b"somebody's"


@pytest.mark.parametrize(
    ("failure", "status", "sentence"),
    [
        ("POST /api/repos/create", 401, "the repository was not made (401: the hub does not know the token"),
        ("POST /api/repos/create", 403, "the repository was not made (403: the token may not do this"),
        ("GET /api/models", 404, "(404: the hub has none of this name"),
        (
            "POST .*/commit/",
            500,
            "nothing of the model is to be seen there; the same command tries again (the hub answered 500",
        ),
        ("POST .*/lfs/", 413, "tries again (413: a file is too large for the hub)"),
    ],
)
def test_a_push_that_is_refused_says_why_and_can_be_done_again(
    failure: str, status: int, sentence: str, hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.failures = {failure: status}
    assert run("push", model, "me/small") == 2
    assert sentence in said(capsys)
    assert "me/small" not in hub.repositories or set(hub.repositories["me/small"].files) == {".gitattributes"}
    hub.failures = {}
    assert run("push", model, "me/small") == 0


def test_without_a_token_or_a_network_nothing_is_begun(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in ((), ("--dry-run",)):
        assert run("push", model, "not a name", *flags) == 2
        assert '"not a name" is no name of a repository' in said(capsys)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert run("push", tmp_path / "adapter", "me/small") == 2
    assert "an adapter, which only makes a model with its base; push the model" in said(capsys)
    assert run("push", model / "config.json", "me/small") == 2
    assert "only a model directory can be pushed" in said(capsys)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert run("push", model, "me/small") == 2
    assert "log in with `hf auth login`" in said(capsys)
    monkeypatch.undo()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run("push", model, "me/small") == 2  # the suite's own HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE is set; unset it" in said(capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert run("pull", "me/small", "--out", tmp_path / "back") == 2
    assert "the hub cannot be reached" in said(capsys)
    assert not (tmp_path / "back").exists()


def test_a_pull_that_breaks_leaves_nothing_and_goes_on(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pull", "me/small", "--out", tmp_path / "back") == 2
    assert "me/small: not fetched (401: the hub does not know the token, or gives this only to others" in said(capsys)
    assert run("push", model, "me/small") == 0
    hub.failures = {"GET .*/model.safetensors": 403}
    assert run("pull", "me/small", "--out", tmp_path / "back") == 2
    assert "model.safetensors was not fetched; the same command goes on with what is missing (403" in said(capsys)
    assert not (tmp_path / "back").exists()
    hub.failures, hub.asked = {}, []
    assert run("pull", "me/small", "--out", tmp_path / "back") == 0
    assert not any(asked == "GET /me/small/resolve/main/config.json" for asked in hub.asked)
    assert run("pull", "me/small", "--out", tmp_path / "back") == 2
    assert "is there already; choose another folder" in said(capsys)
    hub.repositories["me/small"].files = {"pytorch_model.bin": b"a pickle"}
    assert run("pull", "me/small", "--out", tmp_path / "other") == 2
    assert "no model that can be read, it has no config.json" in said(capsys)
