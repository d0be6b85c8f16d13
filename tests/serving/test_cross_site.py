"""A page of another site in a real browser: whatever it posts to the server is refused, and it reads nothing."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from needs_browser import browser, playwright
from serving_run import Served, served, small_model

from nanogpt_edit.serving.models import Shelf

FORM = """<!doctype html><title>elsewhere</title>
<form id="plain" method="post" enctype="text/plain" target="one" action="{there}/v1/completions">
<input name='{{"prompt": "a", "max_tokens": 2, "user": "' value='"}}'></form>
<form id="encoded" method="post" target="two" action="{there}/v1/completions"><input name="prompt" value="a"></form>
<iframe name="one"></iframe><iframe name="two"></iframe>"""
FETCH = """async there => {
  const body = '{"prompt": "a", "max_tokens": 2}';
  const told = reply => `${reply.type} ${reply.status}`;
  const tried = (path, options) => fetch(there + path, options).then(told, () => "no");
  return Promise.all([
    tried("/v1/completions", {method: "POST", body, mode: "no-cors"}),
    tried("/v1/completions", {method: "POST", body}),
    tried("/v1/completions", {method: "POST", body, headers: {"Content-Type": "application/json"}}),
    tried("/api/edits", {method: "DELETE"}),
    tried("/v1/models", {}),
    tried("/v1/models", {mode: "no-cors"}),
  ]);
}"""
COUNT = r'^nanogpt_edit_requests_total{path="(.*)",status="(.*)"} (.*)$'


class Silent(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def here() -> Iterator[Served]:
    shelf = Shelf()
    shelf.add("m", small_model())
    with served(shelf) as found:
        yield found


@pytest.fixture(scope="module")
def elsewhere(here: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of another site on this machine, which has a page about the server."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "index.html").write_text(FORM.format(there=there(here)), encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder)) as site:
        thread = Thread(target=site.serve_forever)
        thread.start()
        yield site.server_port
        site.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with browser() as opened:
        yield opened


def there(here: Served) -> str:
    return f"http://127.0.0.1:{here.port}"


def answers(here: Served) -> Counter[tuple[str, str]]:
    """(path, status) -> how many; "other" is the path of what no route has seen."""
    found = re.findall(COUNT, here.ask("GET", "/metrics")[2].decode(), re.MULTILINE)
    return Counter({(path, status): int(float(count)) for path, status, count in found if path != "/metrics"})


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])  # the same site with another port, and another site
def test_what_another_sites_page_posts_is_refused(
    here: Served, elsewhere: int, chromium: playwright.Browser, name: str
) -> None:
    page, before = chromium.new_page(), answers(here)
    page.goto(f"http://{name}:{elsewhere}/")
    for form in ("plain", "encoded"):
        page.evaluate(f"document.getElementById('{form}').submit()")
    assert page.evaluate(FETCH, there(here)) == ["no"] * 6  # no answer can be read
    until = time.monotonic() + 60
    while (now := answers(here) - before).total() < 2 + 6:
        assert time.monotonic() < until, now
        page.wait_for_timeout(20)
    assert now == {("other", "403"): 2 + 6}  # a request that has to be allowed first is not even made
    assert "nanogpt_edit_tokens_total 0.0" in here.ask("GET", "/metrics")[2].decode()
    page.close()


def test_another_sites_page_cannot_show_the_playground_inside_of_it(
    here: Served, elsewhere: int, chromium: playwright.Browser
) -> None:
    page = chromium.new_page()
    page.goto(f"http://127.0.0.1:{elsewhere}/")
    with pytest.raises(playwright.Error, match="ERR_BLOCKED_BY_RESPONSE"):
        page.frames[-1].goto(there(here))
    page.close()


def test_the_servers_own_page_may_ask(here: Served, chromium: playwright.Browser) -> None:
    """What is refused above is refused for where it comes from."""
    page = chromium.new_page()
    page.goto(there(here))
    assert page.evaluate(FETCH, "")[2] == "basic 200"
    page.close()
