"""The dashboard in a real browser: every control is clicked, and reached by the keyboard.

Skipped where there is no Playwright (`pip install 'kveik[browser]'`) or no Chromium; KVEIK_CHROMIUM
names one that is not on the path.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_server import CacheServer, cache_server, fresh, user
from server_harness import until

from kveik.config import ServerConfig
from kveik.server import watch_stream

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs Playwright: pip install 'kveik[browser]'"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("KVEIK_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium, or KVEIK_CHROMIUM that names one", allow_module_level=True)

ADMIN, ANNA = "admin-key", "anna-key"
HOSTILE = (
    "</ol><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for what is told every few seconds."""
    for name in ("NOW", "LISTS", "HISTORY"):
        monkeypatch.setattr(watch_stream, name, 0.2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        one = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def plain(tiny_folder: Callable[..., Path]) -> Iterator[CacheServer]:
    with cache_server(tiny_folder(), pin_share=0.5) as one:
        yield one


@pytest.fixture(scope="module")
def shared(tiny_folder: Callable[..., Path], tmp_path_factory: Any) -> Iterator[CacheServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [
        {"name": "operator", "key": ADMIN, "admin": True},
        {"name": "anna", "key": ANNA},
    ]
    path.write_text(json.dumps({"keys": entries}))
    with cache_server(tiny_folder(), ServerConfig(port=0, keys_file=str(path)), ANNA) as one:
        yield one


class Dashboard:
    """An open page. Whatever it logs or throws fails the test."""

    def __init__(self, browser: Any, server: CacheServer, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda one: self.faults.append(one.text))
        self.page.on("pageerror", lambda one: self.faults.append(str(one)))
        self.page.on("request", lambda one: self.asked.append(one.url))
        self.url = server.server.url
        self.page.goto(f"{self.url}/dashboard?rate=20")

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, kind: object, *unused: object) -> None:
        faults, asked = self.faults, self.asked
        self.context.close()
        if kind is None:
            expected = [one for one in faults if "401" in one or "404" in one or "403" in one]
            assert [one for one in faults if one not in expected] == []
            assert all(one.startswith((self.url, "data:")) for one in asked)

    def live(self) -> Dashboard:
        self.wait("#live[data-state=live]")
        return self

    def wait(self, selector: str, **options: Any) -> Any:
        return self.page.wait_for_selector(selector, **options)

    def until(self, expression: str) -> None:
        """The page's policy lets nobody wait for an expression inside of it."""
        until(lambda: self.page.wait_for_timeout(15) or self.page.evaluate(expression))

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    def click(self, selector: str) -> None:
        self.page.locator(selector).first.click()


def test_the_first_screen_says_what_was_saved(browser: Any, plain: CacheServer) -> None:
    text = fresh(40)
    plain.usage(text)
    plain.usage(text)
    with Dashboard(browser, plain).live() as board:
        board.until("document.getElementById('saved-share').textContent.endsWith('%')")
        assert int(board.text("#saved-tokens").replace(",", "")) > 0
        assert "prompt tokens" in board.text("#today-aside")
        board.wait("#hits-chart svg path.hit", state="attached")
        board.wait("#memory-chart svg path.kept")
        board.wait("#curve-chart svg circle.this")
        assert board.text("#size-this").endswith("%")
        board.click("#span-six")
        board.wait("#span-six[aria-pressed=true]")
        board.wait("#hits-chart svg path.hit", state="attached")
        board.click("#span-hour")
        board.wait("#span-hour[aria-pressed=true]")


def test_the_theme_goes_round_and_is_remembered(browser: Any, plain: CacheServer) -> None:
    with Dashboard(browser, plain, color_scheme="light").live() as board:
        ground = "getComputedStyle(document.body).backgroundColor"
        light = board.page.evaluate(ground)
        board.click("#theme")
        assert board.text("#theme") == "Theme: light"
        board.click("#theme")
        assert board.text("#theme") == "Theme: dark"
        dark = board.page.evaluate(ground)
        assert dark != light
        board.page.reload()
        board.live()
        assert board.page.evaluate(ground) == dark
        board.click("#theme")
        assert board.page.evaluate(ground) == light
    with Dashboard(browser, plain, color_scheme="dark").live() as board:
        assert board.page.evaluate(ground) == dark


def test_the_map_can_be_coloured_and_walked(browser: Any, plain: CacheServer) -> None:
    plain.usage(user(fresh(20)), kveik={"session": "painted"})
    with Dashboard(browser, plain).live() as board:
        board.until("document.getElementById('map-legend').textContent.includes('painted')")
        pixels = "document.getElementById('map').toDataURL()"
        seen = set()
        for mode in ("tier", "age", "heat", "owner"):
            board.click(f"#colours [data-mode={mode}]")
            board.wait(f"#colours [data-mode={mode}][aria-pressed=true]")
            board.page.wait_for_timeout(100)
            seen.add(board.page.evaluate(pixels))
        assert len(seen) == 4
        board.page.locator("#map").hover(position={"x": 5, "y": 5})
        board.until("document.getElementById('map-block').textContent.startsWith('block 1 of')")
        board.page.locator("#map").focus()
        for key, start in (("ArrowRight", "block 2 "), ("ArrowLeft", "block 1 ")):
            board.page.keyboard.press(key)
            assert board.text("#map-block").startswith(start)
        for key in ("ArrowDown", "ArrowUp", "Home"):
            board.page.keyboard.press(key)
        assert board.text("#map-block").startswith("block 1 ")
        board.page.keyboard.press("End")
        blocks = plain.server.engine.info.pool_blocks[0]
        assert board.text("#map-block").startswith(f"block {blocks:,} of {blocks:,}")
        board.page.keyboard.press("Escape")
        assert board.text("#map-block").startswith("Point at")


def node(text: str) -> str:
    return f"#tree li:has(> .node:has-text('{text}'))"


def test_the_tree_opens_folds_and_takes_deeds(browser: Any, plain: CacheServer) -> None:
    trunk = fresh(30)
    first = trunk.split()[0]
    for end in (" left", " right"):
        plain.usage(trunk + end * 20)
    with Dashboard(browser, plain).live() as board:
        board.click("#tree-again")
        row = node(first)
        board.wait(row)
        board.click(f"{row} > .node .twist")
        board.wait(f"{row} > ol > li >> nth=1")
        board.click(f"{row} > ol > li >> nth=0 >> .said")
        board.wait(f"{row} .said[aria-expanded=true]")
        board.click(f"{row} .said[aria-expanded=true]")
        board.click(f"{row} > .node .said")
        assert trunk[:60] in board.text(f"{row} > .node .said")
        board.click("#tree-fold")
        board.wait(f"{row} > ol", state="detached")
        board.click(f"{row} > .node [data-deed=pin]")
        board.wait(f"{row} > .node [data-deed=unpin]")
        assert "pin: " in board.text("#notice")
        board.click(f"{row} > .node [data-deed=unpin]")
        board.wait(f"{row} > .node [data-deed=pin]")
        for deed in ("evict", "expire"):
            board.click(f"{row} > .node [data-deed={deed}]")
            assert "Really" in board.text(f"{row} > .node [data-deed={deed}]")
            assert plain.peek(trunk) > 16
            board.click(f"{row} > .node [data-deed={deed}]")
            board.wait(row, state="detached")
            assert plain.peek(trunk) < 16
            if deed == "evict":
                plain.usage(trunk)
                board.click("#tree-again")
                board.wait(row)


def test_many_rows_are_shown_when_asked_for(browser: Any, tiny_folder: Callable[..., Path]) -> None:
    with cache_server(tiny_folder()) as server:
        for _ in range(20):
            server.usage(fresh(6))
        with Dashboard(browser, server).live() as board:
            board.until("document.querySelectorAll('#tree > li .node').length === 15")
            board.click("#tree .more button")
            board.until("document.querySelectorAll('#tree > li .node').length === 20")


def test_named_caches_count_down_and_end(browser: Any, plain: CacheServer) -> None:
    plain.post("/v1/caches", {"name": "counted", "prompt": fresh(20), "ttl": "1h"})
    plain.usage(user(fresh(20)), kveik={"session": "listed"})
    with Dashboard(browser, plain).live() as board:
        row = "#names .row:has-text('counted')"
        board.wait(row)
        assert board.text(f"{row} .when").endswith("left")
        before = board.text(f"{row} .when")
        board.until(f"document.querySelector('#names .when').textContent !== {json.dumps(before)}")
        board.click(f"{row} button:has-text('Pin')")
        until(lambda: bool(plain.send("GET", "/v1/caches/counted").json()["pinned"]))
        board.page.locator("#tree-again").focus()
        board.wait(f"{row} button:has-text('Unpin')")
        board.click(f"{row} button:has-text('End')")
        until(lambda: plain.send("GET", "/v1/caches/counted").status_code == 404)
        board.click("#sessions .row:has-text('listed') button")
        until(lambda: "listed" not in plain.send("GET", "/v1/sessions").text)
        board.page.locator("#tree-again").focus()
        board.until("!document.getElementById('sessions').textContent.includes('listed')")


def test_a_request_is_a_bar_that_explains_itself(browser: Any, plain: CacheServer) -> None:
    text = fresh(40)
    with Dashboard(browser, plain).live() as board:
        plain.usage(text + " The bridge is closed.")
        plain.clock.advance(1.0)
        plain.usage(text + " The castle burns.")
        board.until("document.querySelectorAll('#requests .bar').length > 1")
        bar = "#requests .request >> nth=0"
        board.wait(f"{bar} >> .bar .cached")
        board.wait(f"{bar} >> .bar .computed")
        board.wait(f"{bar} >> .bar .generated")
        board.click(f"{bar} >> button")
        board.wait(f"{bar} >> .why .advice")
        assert "castle" in board.text(f"{bar} >> .why .words")
        board.click(f"{bar} >> button")
        board.wait("#requests .why", state="detached")


def test_a_hostile_prompt_stays_text(browser: Any, plain: CacheServer) -> None:
    with Dashboard(browser, plain).live() as board:
        for end in ("one", "two"):
            plain.usage(HOSTILE + end)
        plain.post("/v1/caches", {"name": "h", "prompt": HOSTILE * 2, "tags": ["img"], "ttl": "1h"})
        board.click("#tree-again")
        board.wait("#tree .said:has-text('onerror')")
        board.click("#tree .said:has-text('onerror')")
        board.click("#requests button")
        board.wait("#requests .why p")
        board.page.wait_for_timeout(300)
        assert board.page.title() == "kveik cache"
        assert board.page.locator("#board img, #board script").count() == 0
    plain.send("DELETE", "/v1/caches/h")


def test_pause_and_resume(browser: Any, plain: CacheServer) -> None:
    with Dashboard(browser, plain).live() as board:
        board.click("#pause")
        assert (board.text("#live"), board.text("#pause")) == ("paused", "Resume")
        until(lambda: plain.server.service.watchers == 0)
        board.click("#pause")
        board.live()
        assert board.text("#pause") == "Pause"


def test_every_control_is_reached_by_the_keyboard(browser: Any, plain: CacheServer) -> None:
    plain.usage(fresh(20))
    with Dashboard(browser, plain).live() as board:
        board.wait("#tree .node")
        board.wait("#requests button")
        board.page.locator(".skip").focus()
        reached = set()
        name = """() => { const e = document.activeElement;
            return e.id || e.dataset.mode || e.dataset.deed || e.className; }"""
        for _ in range(400):
            board.page.keyboard.press("Tab")
            reached.add(board.page.evaluate(name))
            if board.page.evaluate("document.activeElement === document.body"):
                break
        wanted = {"pause", "theme", "span-hour", "span-six", "map", "tree-fold", "tree-again"}
        wanted |= {"owner", "tier", "age", "heat", "said", "pin", "evict", "expire"}
        assert wanted <= reached
        nameless = """() => [...document.querySelectorAll('button, input, select, canvas')]
            .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim()
                || (e.labels && e.labels.length))).length"""
        assert board.page.evaluate(nameless) == 0


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Any, shared: CacheServer) -> None:
    shared.usage(fresh(20), ANNA)
    with Dashboard(browser, shared) as board:
        board.wait("#key-form:not([hidden])")
        assert board.page.locator("#board").is_hidden()
        board.page.keyboard.type("wrong")
        board.page.keyboard.press("Enter")
        board.until("document.getElementById('key-wrong').textContent !== ''")
        board.page.locator("#key").fill(ANNA)
        board.click("#key-open")
        board.live()
        board.wait("#tree .node")
        assert board.page.locator("#curve-card").is_hidden()
        assert board.page.locator("#whose-row").is_hidden()
        board.wait("#memory-chart svg")
        board.page.reload()
        board.live()
        assert board.page.evaluate("Object.keys(localStorage)") == []


def test_an_operator_looks_at_everybody_and_at_one(browser: Any, shared: CacheServer) -> None:
    secret = fresh(20)
    shared.usage(user(secret), ANNA, kveik={"session": "talk"})
    with Dashboard(browser, shared) as board:
        board.page.locator("#key").fill(ADMIN)
        board.click("#key-open")
        board.live()
        board.page.locator("#whose").select_option("*")
        board.until("document.getElementById('map-legend').textContent.includes('anna')")
        board.wait("#tree .empty")
        board.click("#requests button")
        board.wait("#requests .why")
        assert "talk" not in board.text("#board")
        board.page.locator("#whose").select_option("anna")
        board.wait(f"#tree .said:has-text('{secret.split()[0]}')")
        board.until("document.getElementById('sessions').textContent.includes('talk')")
        board.page.locator("#whose").select_option("")
        board.until("!document.getElementById('sessions').textContent.includes('talk')")
