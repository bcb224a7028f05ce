"""Requests that other sites make a browser send, and the headers that keep the page from them."""

from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.unit.service.auth.key_client import KeyClient
from tests.unit.service.page.browser import ORIGIN, Browser

NO_ORIGIN = {"Origin": None, "Sec-Fetch-Site": None}
FOREIGN: list[dict[str, str | None]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "https://evil.example"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": None},
    {"Origin": "http://localhost:81", "Sec-Fetch-Site": None},
    {"Origin": "null", "Sec-Fetch-Site": None},
    {"Origin": f"{ORIGIN}.evil.example", "Sec-Fetch-Site": None},
    dict(NO_ORIGIN),
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("auth", ["on", "off"])
def test_no_other_site_can_change_anything(
    tmp_path: Path, headers: dict[str, str | None], auth: str
) -> None:
    plane = ControlPlane(tmp_path, auth=auth)
    browser = Browser(plane)
    for path in ("/ui/logout", "/ui/login", "/ui/sessions/ses-0123456789ab/end"):
        answer = browser.post(path, headers=headers, data={"key": "x"})
        assert answer.status_code == 403, answer.text
    plane.close()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": None},
        {"Origin": None},
        {"Origin": "https://localhost", "Sec-Fetch-Site": None},
    ],
    ids=str,
)
def test_the_page_itself_can(
    operator: KeyClient, browser: Browser, headers: dict[str, str]
) -> None:
    browser.sign_in(operator.make_key()["key"])
    assert browser.post("/ui/logout", headers=headers).status_code == 303


def test_behind_a_proxy_the_configured_address_counts(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", page_url="https://cmcl.example.org/prefix/ui")
    browser = Browser(plane)
    cases = {"https://cmcl.example.org": 303, ORIGIN: 303, "https://example.org": 403}
    for origin, status in cases.items():
        assert browser.post("/ui/logout", headers={"Origin": origin}).status_code == status
    plane.close()


def test_a_link_from_elsewhere_is_opened_again_from_here(
    operator: KeyClient, browser: Browser
) -> None:
    """A browser does not send the cookie when it follows a link from another site."""
    browser.sign_in(operator.make_key()["key"])
    cookies, browser.cookies = browser.cookies, {}
    first = browser.get("/ui/sessions?x=%22%3E", headers={"Sec-Fetch-Site": "cross-site"})
    assert first.status_code == 200
    address = "/ui/sessions?x=%22%3E&again=1"
    assert 'content="0; url=../ui/sessions?x=%22%3E&amp;again=1"' in first.text.replace(
        "url=./", "url=../ui/"
    )
    browser.cookies = cookies
    assert browser.get(address).status_code == 200
    browser.cookies = {}
    # Without a session there is no redirect loop.
    again = browser.get(address, headers={"Sec-Fetch-Site": "cross-site"})
    assert browser.target(again) == "/ui/login?next=sessions%3Fx%3D%2522%253E"


ANSWERS = {
    "page": ("GET", "/ui/", 200),
    "fragment": ("GET", "/ui/?fragment=live_tiles", 200),
    "unknown fragment": ("GET", "/ui/?fragment=content", 422),
    "unknown page": ("GET", "/ui/nowhere", 404),
    "sessions": ("GET", "/ui/sessions", 200),
    "redirect": ("POST", "/ui/logout", 303),
    "wrong method": ("DELETE", "/ui/", 405),
    "no form": ("POST", "/ui/login", 415),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_response_has_the_headers(operator: KeyClient, browser: Browser, name: str) -> None:
    browser.sign_in(operator.make_key()["key"])
    method, path, status = ANSWERS[name]
    answer = browser.request(method, path)
    assert answer.status_code == status
    _check_headers(dict(answer.headers))
    assert answer.headers["cache-control"] == "no-store"


def test_responses_to_strangers_have_them_too(browser: Browser) -> None:
    for path, status in (("/ui/", 303), ("/ui/login", 200), ("/ui/stream", 303)):
        answer = browser.get(path)
        assert answer.status_code == status
        _check_headers(dict(answer.headers))


def _check_headers(headers: dict[str, str]) -> None:
    policy = dict(
        each.strip().partition(" ")[::2] for each in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"


def test_without_keys_there_is_no_sign_in_and_other_hosts_are_refused(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    browser = Browser(plane)
    assert browser.get("/ui/").status_code == 200
    assert browser.target(browser.get("/ui/login?next=sessions")) == "/ui/sessions"
    assert "Keys are off" in browser.get("/ui/sessions").text
    assert browser.get("/ui/", headers={"Host": "rebound.example"}).status_code == 403
    plane.close()


def test_the_page_can_be_turned_off(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, page="off")
    for path in ("/", "/ui", "/ui/", "/ui/login", "/ui/static/x/style.css"):
        assert Browser(plane).get(path).status_code == 404
    plane.close()


def test_the_root_leads_to_the_page_also_below_a_prefix(browser: Browser) -> None:
    for path in ("/", "/ui"):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["location"]) == (307, "ui/")
