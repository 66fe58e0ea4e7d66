"""The files of the dashboard: complete, of this server only, every control labelled, safe."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from server_harness import RunningServer

from kveik.server import dashboard
from kveik.server.routes import ROUTES

HTML = dashboard.content("dashboard.html")
CSS = dashboard.content("dashboard.css")
SCRIPTS = {name: dashboard.content(name) for name in dashboard.SCRIPTS}


class Page(HTMLParser):
    """Elements with their attributes and the text inside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[list[str]] = []
        self._open: list[int] = []
        self.feed(HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append([])
        if tag not in ("meta", "link", "input", "br"):
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for number in self._open:
            self.texts[number].append(data)


PAGE = Page()
IDS = [attributes["id"] for _, attributes in PAGE.elements if "id" in attributes]


def test_every_file_is_served_with_its_type_and_a_strict_policy(server: RunningServer) -> None:
    with server.http() as http:
        for path, (name, kind) in dashboard.FILES.items():
            response = http.get(path)
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(kind)
            assert response.text == dashboard.content(name)
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert "http" not in policy
            assert response.headers["x-content-type-options"] == "nosniff"
        assert http.get("/dashboard/").status_code == 404
        assert http.get("/dashboard/../page.html").status_code == 404


def test_nothing_comes_from_anywhere_else() -> None:
    for text in (HTML, CSS, *SCRIPTS.values()):
        addresses = set(re.findall(r"(?:https?:)?//[a-z][^\s\"'`)]*", text))
        assert not {one for one in addresses if one.startswith(("http", "//"))} - {
            "http://www.w3.org/2000/svg"
        }
        assert "@import" not in text


def test_markup_is_never_made_of_text() -> None:
    for name, text in SCRIPTS.items():
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, f"{name}: {word}"
        assert "new Function" not in text
        assert not re.search(r"setAttribute\(\s*[\"'](on|href|src|style)", text), name
    assert not re.search(r"\son[a-z]+\s*=", HTML)
    assert "<style" not in HTML
    assert " style=" not in HTML


def test_scripts_import_what_is_there_and_all_are_used() -> None:
    imported = {"main.js"}
    for name, text in SCRIPTS.items():
        for names, path in re.findall(r"import ([^;]+?) from \"\./([a-z]+\.js)\";", text):
            assert path in SCRIPTS, f"{name} imports {path}"
            imported.add(path)
            for one in re.findall(r"\w+", names) if names.startswith("{") else []:
                assert re.search(rf"export (async )?(function|class|const) {one}\b", SCRIPTS[path])
                assert len(re.findall(rf"\b{one}\b", text)) > 1, f"{name}: {one} is not used"
    assert imported == set(SCRIPTS)
    assert all(route.path in dashboard.FILES for route in ROUTES if not route.listed)


def test_ids_are_unique_and_every_one_that_is_looked_for_exists() -> None:
    assert len(IDS) == len(set(IDS))
    for name, text in SCRIPTS.items():
        for one in re.findall(r"\b(?:at|put)\(\"([a-z-]+)\"", text):
            assert one in IDS, f"{name}: {one}"


def test_every_control_has_a_name() -> None:
    labelled = {attributes.get("for") for tag, attributes in PAGE.elements if tag == "label"}
    for number, (tag, attributes) in enumerate(PAGE.elements):
        if tag == "button":
            assert attributes.get("type") in ("button", "submit")
            assert "".join(PAGE.texts[number]).strip() or attributes.get("aria-label")
        elif tag in ("input", "select"):
            wrapped = any(
                other == "label" and "Whose" in "".join(PAGE.texts[k])
                for k, (other, _) in enumerate(PAGE.elements)
            )
            assert attributes["id"] in labelled or (tag == "select" and wrapped)
        elif tag == "canvas":
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]
        elif tag == "section":
            assert attributes["aria-labelledby"] in IDS


@pytest.mark.parametrize("name", sorted(set(re.findall(r"var\(--([a-z-]+)\)", CSS))))
def test_every_colour_is_defined_for_both_lights(name: str) -> None:
    assert re.search(rf"--{name}: [^;]*light-dark\(", CSS)
