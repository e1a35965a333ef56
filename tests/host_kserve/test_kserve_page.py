"""The page's files and headers, and who gets it at `/`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import octavo_kserve
from octavo_kserve.access import ApiKeys, KeyCheck
from octavo_kserve.page import create_page_router, prefers_html, read_assets

UI = Path(octavo_kserve.__file__).parent / "ui"
NAMES = sorted(path.name for path in UI.iterdir())
BROWSERS = [
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "application/json;q=0.5, TEXT/HTML",
]
OTHERS = ["*/*", "", "application/json", "application/json, text/plain, */*", "text/html;q=0", "text/html;q=x",
          "text/html;q=0.5, application/json", "text/*", "text/plain"]  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """The router behind the check of keys, before a route that answers probes: as the server has them."""
    app = FastAPI()
    app.include_router(create_page_router())
    app.add_api_route("/", lambda: {"status": "alive"})
    app.add_middleware(KeyCheck, keys=ApiKeys(["secret"]))
    with TestClient(app) as client:
        del client.headers["Accept"]
        yield client


@pytest.mark.parametrize("accept", BROWSERS)
def test_a_browser_gets_the_page_at_the_root(client: TestClient, accept: str) -> None:
    response = client.get("/", headers={"Accept": accept})
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Vary"] == "Accept"
    assert response.text == (UI / "index.html").read_text(encoding="utf-8") == client.get("/ui").text


@pytest.mark.parametrize("accept", OTHERS)
def test_probes_and_clients_get_json_at_the_root(client: TestClient, accept: str) -> None:
    assert client.get("/", headers={"Accept": accept} if accept else {}).json() == {"status": "alive"}


def test_html_must_be_named() -> None:
    assert [prefers_html(accept) for accept in BROWSERS] == [True] * len(BROWSERS)
    assert [prefers_html(accept) for accept in OTHERS] == [False] * len(OTHERS)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_comes_without_a_key_under_a_strict_policy(client: TestClient, name: str) -> None:
    response = client.get(f"/ui/{name}")
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert response.headers["Content-Type"].partition(";")[0] == kinds[name.rpartition(".")[2]]
    assert response.content == (UI / name).read_bytes()
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(part.strip().partition(" ")[::2] for part in response.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert set(policy.values()) == {"'none'", "'self'", "'script'"}


def test_a_file_that_has_not_changed_is_not_sent_again(client: TestClient) -> None:
    for path in ("/ui", *(f"/ui/{name}" for name in NAMES)):
        first = client.get(path)
        assert first.headers["Cache-Control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    assert len({asset.tag for asset in read_assets().values()}) == len(NAMES)


@pytest.mark.parametrize("path", ["/ui/nothing.js", "/ui/page.py", "/ui/..%2fpage.py", "/ui/%2e%2e"])
def test_nothing_else_is_there(client: TestClient, path: str) -> None:
    assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 404


def test_only_the_page_needs_no_key(client: TestClient) -> None:
    assert client.get("/ui/").url.path == "/ui"
    for path in ("/uix", "/ui/js/app.js", "/ui//app.js", "/x/ui"):
        assert client.get(path).status_code == 401


@pytest.mark.parametrize("name", NAMES)
def test_no_file_names_another_place_or_makes_markup_of_text(name: str) -> None:
    text = (UI / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(https?:|wss?:)?//[\w\[]|@import|url\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    assert not re.search(r"\son\w+=|\sstyle=|<script>|<style", text), "the policy forbids what is inline"


def test_every_file_that_is_named_exists_and_every_file_is_named() -> None:
    texts = [path.read_text(encoding="utf-8") for path in UI.iterdir()]
    named = {name for text in texts for name in re.findall(r'"(?:ui|\.)/([\w.]+)"', text)}
    assert named | {"index.html"} == set(NAMES) == set(read_assets())


def test_scripts_are_short() -> None:
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 200 for path in UI.glob("*.js"))


def luminance(color: str) -> float:
    """Of an sRGB colour, as WCAG 2.2 defines it."""
    shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_texts_can_be_read(theme: int) -> None:
    """Contrast of WCAG's level AA: 4.5 for texts, 3 for the edges of controls and the lines of charts."""
    style = (UI / "style.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colors = {name: luminance(pair[theme]) for name, *pair in pairs}

    def contrast(front: str, back: str) -> float:
        low, high = sorted((colors[front], colors[back]))
        return (high + 0.05) / (low + 0.05)

    for back in ("page", "surface", "sunk"):
        assert min(contrast(front, back) for front in ("ink", "quiet", "first")) >= 4.5, back
        assert contrast("control", back) >= 3 or back == "sunk", back
        assert contrast("second", back) >= 3
    assert contrast("on-first", "first") >= 4.5
    assert contrast("ink", "mine") >= 4.5
