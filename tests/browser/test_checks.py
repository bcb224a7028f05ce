"""The checks of this folder find what they look for: each planted defect is reported."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from playwright.sync_api import Browser

from tests.browser import chromium
from tests.browser.accessibility import keyboard_problems, overflowing, squeezed, violations
from tests.browser.conftest import OpenPage

_POLICY = "default-src 'none'; script-src 'self'; img-src *; require-trusted-types-for 'script'"


class _Planted(BaseHTTPRequestHandler):
    """Answers with the document of the path, under the policy of the product's pages."""

    documents: ClassVar = {
        "/inline": "<script>1</script>",
        "/sink": "<body><script src='sink.js'></script>",
        "/sink.js": "document.body.innerHTML = 'text'",
        "/elsewhere": "<img src='http://127.0.0.2:9/picture'>",
        "/missing": "<img src='/nothing'>",
    }

    def do_GET(self) -> None:
        found = self.documents.get(self.path)
        kind = "text/javascript" if self.path.endswith(".js") else "text/html"
        self.send_response(404 if found is None else 200)
        self.send_header("content-type", kind)
        self.send_header("content-security-policy", _POLICY)
        self.end_headers()
        self.wfile.write((found or "").encode())

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Planted)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/inline", "policy violation: script-src-elem inline"),
        ("/sink", "policy violation: require-trusted-types-for"),
        ("/elsewhere", "request to another origin: http://127.0.0.2:9/picture"),
        ("/missing", "404 of GET"),
    ],
)
def test_a_page_records_what_goes_wrong(
    browser: Browser, origin: str, path: str, problem: str
) -> None:
    with chromium.open_page(browser, origin) as (page, record):
        page.goto(path)
    assert [found for found in record.problems if problem in found] != [], record.problems


def test_text_without_contrast_is_a_violation(open_page: OpenPage) -> None:
    page, _ = open_page("null")
    page.set_content("<html lang=en><title>t</title><main><h1>h</h1><p style='color: #ccc'>pale")
    assert [found.partition(" ")[0] for found in violations(page)] == ["color-contrast"]


def test_a_wide_element_overflows(open_page: OpenPage) -> None:
    page, _ = open_page("null", width=320)
    page.set_content("<div style='overflow: auto'><p style='width: 900px'>wide</div>")
    assert overflowing(page) == []
    page.set_content("<p style='width: 900px'>wide")
    assert [found[:3] for found in overflowing(page)] == ["the", "<p "]


def test_a_column_without_room_is_found(open_page: OpenPage) -> None:
    page, _ = open_page("null", width=320)
    table = "<table style='table-layout: fixed; width: 100px'><tr><td>name<td style='width: {}'>x"
    page.set_content(table.format("50px"))
    assert squeezed(page) == []
    page.set_content(table.format("100px"))
    assert squeezed(page) == ["<td>name</td>"]


def test_what_the_keyboard_cannot_use_is_found(open_page: OpenPage) -> None:
    page, _ = open_page("null")
    page.set_content("<a href=#>good</a><button>good</button><input><summary>no details</summary>")
    assert keyboard_problems(page) == ["cannot be reached with Tab: <summary>no details</summary>"]
    page.set_content("<a href=# style='outline: none'>no mark</a><a href=# tabindex=-1>never</a>")
    first, second = keyboard_problems(page)
    assert first.startswith("does not show that it has the focus")
    assert second.startswith("cannot be reached with Tab")
