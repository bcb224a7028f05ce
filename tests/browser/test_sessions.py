"""Signing in, what the session permits while pages are open, and requests that other sites make a browser send."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import chromium
from tests.browser.accessibility import violations
from tests.browser.conftest import OpenPage
from tests.browser.sample import BIRDS, SCENES, Names
from tests.browser.served_plane import EVERYTHING, ServedPlane

Sample = tuple[ServedPlane, Names]

expect.set_options(timeout=30_000)


def test_one_signs_in_with_the_keyboard_and_goes_where_one_wanted(
    sample: Sample, open_page: OpenPage
) -> None:
    plane, names = sample
    page, record = open_page(plane, signed_in=False)
    page.goto(f"/ui/jobs/{names.held}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    page.get_by_label("Key").focus()
    page.keyboard.type("cmcl_not-a-key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    assert violations(page) == []
    page.get_by_label("Key").focus()
    page.keyboard.type(plane.key)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/ui/jobs/{names.held}")
    expect(page.get_by_role("heading", level=1)).to_have_text("returns")
    record.forgive("401")


def test_signing_out_ends_the_session(sample: Sample, open_page: OpenPage) -> None:
    plane, _ = sample
    page, _ = open_page(plane, cookies=plane.sign_in(plane.create_key("ben", "read")))
    page.goto("/ui/models")
    page.locator("#menu > summary").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    page.goto("/ui/models")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_an_open_page_says_that_its_session_was_ended(
    own_sample: Sample, open_page: OpenPage
) -> None:
    plane, _ = own_sample
    key = plane.create_key("ben", "read")
    page, record = open_page(plane, cookies=plane.sign_in(key))
    page.goto(f"/ui/models/{SCENES.model}")
    name = page.locator("#menu > summary")
    expect(name).to_have_text("ben")
    [revoked] = [
        item["id"] for item in plane.client.get("/v1/keys").json()["items"] if item["name"] == "ben"
    ]
    assert plane.client.request("DELETE", f"/v1/keys/{revoked}").status_code == 204
    # An event makes the page request its live parts.
    plane.post_dataset("later", SCENES.model)
    expect(page.locator("#connection")).to_contain_text("signed out")
    record.forgive("401")


def test_an_open_page_says_that_its_model_was_deleted(
    own_sample: Sample, open_page: OpenPage
) -> None:
    plane, _ = own_sample
    page, record = open_page(plane)
    page.goto(f"/ui/models/{BIRDS.model}")
    expect(page.get_by_role("heading", level=1)).to_contain_text(BIRDS.model)
    assert plane.client.request("DELETE", f"/v1/models/{BIRDS.model}").status_code == 204
    expect(page.locator("#connection")).to_contain_text("deleted")
    record.forgive("404")


def test_the_choice_of_colours_stays(sample: Sample, open_page: OpenPage) -> None:
    plane, _ = sample
    page, _ = open_page(plane)
    for address in ("/ui/", "/ui/jobs"):
        page.goto(address)
        page.locator("#menu > summary").click()
        if address == "/ui/":
            page.get_by_label("Dark").check()
        expect(page.get_by_label("Dark")).to_be_checked()
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
        page.emulate_media(color_scheme="light")


@contextmanager
def foreign_page(target: str, fields: dict[str, str]) -> Iterator[int]:
    """A server whose only page posts a form to the target by itself."""
    inputs = "".join(
        f"<input name={name} value='{escape(value)}'>" for name, value in fields.items()
    )
    body = f"<form method=post action='{target}'>{inputs}</form><script>document.forms[0].submit()</script>"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# The first one is another site, so that a browser sends no cookie; the second one is another origin of the same site.
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_form_of_another_site_changes_nothing(
    own_sample: Sample, browser: Browser, host: str
) -> None:
    plane, _ = own_sample
    before = plane.model(SCENES.model)
    target = f"{plane.origin}/ui/models/{SCENES.model}/promote"
    fields = {"seen": str(before.live_generation), "version": "6", "reason": "from elsewhere"}
    with (
        foreign_page(target, fields) as port,
        chromium.open_page(browser, plane.origin, cookies=plane.cookies) as (page, record),
    ):
        page.goto(f"http://{host}:{port}/")
        page.wait_for_url(f"{plane.origin}/**")
        answers = [each for each in record.responses if each.request.method == "POST"]
        assert [each.status for each in answers] == [403]
    assert plane.model(SCENES.model) == before


def test_a_session_of_another_owner_sees_nothing(sample: Sample, open_page: OpenPage) -> None:
    plane, names = sample
    cookies = plane.sign_in(plane.create_key("eve", *EVERYTHING, owner="others"))
    page, record = open_page(plane, cookies=cookies)
    page.goto("/ui/")
    for name in (SCENES.model, BIRDS.model):
        expect(page.locator("main")).not_to_contain_text(name)
    for path in (f"models/{SCENES.model}", f"jobs/{names.running}", f"datasets/{names.dataset}"):
        response = page.goto(f"/ui/{path}")
        assert response is not None
        assert response.status == 404
    record.forgive("404")
