"""Signing in with an OpenID issuer that is real except for its pages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import ValidationError

from service.auth.oidc import SIGN_IN_SECONDS
from service.core.settings import Settings
from tests.fakes.control_plane import ControlPlane
from tests.fakes.issuer import AUDIENCE, FakeIssuer
from tests.unit.service.page.browser import Browser

SECRET = "the-secret-of-the-client"
ORIGIN = "https://cmcl.example.org"


@pytest.fixture(scope="module")
def issuer() -> Iterator[FakeIssuer]:
    with FakeIssuer() as issuer:
        issuer.secret = SECRET
        yield issuer


@pytest.fixture
def plane(tmp_path: Path, issuer: FakeIssuer) -> Iterator[ControlPlane]:
    """A control plane that browsers sign in to with the issuer."""
    plane = ControlPlane(tmp_path, **_settings(issuer))
    yield plane
    plane.close()


@pytest.fixture
def visitor(plane: ControlPlane) -> Browser:
    """A browser that is not signed in."""
    return Browser(plane, ORIGIN)


def _settings(issuer: FakeIssuer, **changes: object) -> dict[str, Any]:
    return {
        "auth": "on",
        "oidc_issuer": issuer.url,
        "oidc_audience": AUDIENCE,
        "oidc_client_id": "cmcl-page",
        "oidc_client_secret": SECRET,
        "page_url": f"{ORIGIN}/ui",
        **changes,
    }


def _begin(visitor: Browser, following: str = "") -> str:
    """The address of the issuer that a browser is sent to."""
    answer = visitor.get(
        f"/ui/oidc/start?next={following}", headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert answer.status_code == 303
    return str(answer.headers["location"])


def _come_back(visitor: Browser, address: str) -> httpx.Response:
    parts = urlsplit(address)
    assert f"{parts.scheme}://{parts.netloc}" == ORIGIN
    headers = {"Sec-Fetch-Site": "cross-site"}
    return visitor.get(f"{parts.path}?{parts.query}", headers=headers)


def test_a_person_signs_in_and_has_the_rights_of_the_token(
    issuer: FakeIssuer, visitor: Browser
) -> None:
    assert "Sign in with your organisation" in visitor.get("/ui/login").text
    answer = _come_back(visitor, issuer.authorize(_begin(visitor, "sessions")))
    assert answer.status_code == 200
    assert 'content="0; url=../login?signed-in=1&amp;next=sessions"' in answer.text
    assert set(visitor.cookies) == {"__Host-cmcl"}
    page = visitor.follow(visitor.get("/ui/login?signed-in=1&next=sessions"))
    assert page.status_code == 200
    assert "oidc:somebody" in page.text
    assert "<dd>read, write</dd>" in page.text
    assert "<dd><bdi>lab</bdi></dd>" in page.text


def test_the_request_to_the_issuer_is_bound_to_this_browser(
    issuer: FakeIssuer, visitor: Browser
) -> None:
    first, second = (parse_qs(urlsplit(_begin(visitor)).query) for _ in range(2))
    assert first["redirect_uri"] == [f"{ORIGIN}/ui/oidc/callback"]
    assert first["scope"][0].split()[0] == "openid"
    for name in ("state", "nonce", "code_challenge"):
        assert len(first[name][0]) >= 43
        assert first[name] != second[name]
    (cookie,) = visitor.get("/ui/oidc/start").headers.get_list("set-cookie")
    attributes = cookie.lower()
    assert cookie.startswith("__Host-cmcl-oidc=")
    for attribute in ("httponly", "secure", "samesite=lax", f"max-age={SIGN_IN_SECONDS}", "path=/"):
        assert attribute in attributes
    assert SECRET not in cookie


def test_an_answer_that_another_browser_asked_for_signs_nobody_in(
    issuer: FakeIssuer, plane: ControlPlane, visitor: Browser
) -> None:
    """Otherwise a foreign page could sign a person in as another user."""
    attacker = Browser(plane, ORIGIN)
    address = issuer.authorize(_begin(attacker))
    assert _come_back(visitor, address).status_code == 401
    _begin(visitor)
    assert _come_back(visitor, address).status_code == 401
    assert "__Host-cmcl" not in visitor.cookies


@pytest.mark.parametrize("change", ["", "x", "e30=.0", "e30=.é", "{}"])
def test_a_changed_cookie_is_refused(issuer: FakeIssuer, visitor: Browser, change: str) -> None:
    address = issuer.authorize(_begin(visitor))
    cookie = visitor.cookies["__Host-cmcl-oidc"]
    text, _, signature = cookie.partition(".")
    for changed in (change, f"{text[:-4]}AAA=.{signature}", f"{text}.{'0' * 64}", f"{text}."):
        visitor.cookies["__Host-cmcl-oidc"] = changed.encode("ascii", "replace").decode()
        assert _come_back(visitor, address).status_code == 401


def test_a_code_counts_once(issuer: FakeIssuer, visitor: Browser) -> None:
    address = issuer.authorize(_begin(visitor))
    cookies = dict(visitor.cookies)
    assert _come_back(visitor, address).status_code == 200
    visitor.cookies = cookies
    assert _come_back(visitor, address).status_code == 401


@pytest.mark.parametrize(
    ("token", "changes", "status"),
    [
        ("id_token", {"nonce": "another"}, 401),
        ("id_token", {"nonce": None}, 401),
        ("id_token", {"aud": "another-client"}, 401),
        ("id_token", {"exp": 1}, 401),
        ("access_token", {"aud": "another-service"}, 403),
        ("access_token", {"cmcl_owner": None}, 403),
        ("access_token", {"scope": "openid"}, 403),
    ],
    ids=str,
)
def test_tokens_that_are_not_for_us_sign_nobody_in(
    issuer: FakeIssuer,
    visitor: Browser,
    token: str,
    changes: dict[str, Any],
    status: int,
) -> None:
    begun = _begin(visitor)
    nonce = parse_qs(urlsplit(begun).query)["nonce"][0]
    is_id = token == "id_token"
    own: dict[str, Any] = {"aud": "cmcl-page", "nonce": nonce} if is_id else {}
    address = issuer.authorize(begun, **{token: issuer.token(**{**own, **changes})})
    assert _come_back(visitor, address).status_code == status
    assert "__Host-cmcl" not in visitor.cookies


def test_the_id_token_counts_where_the_access_token_is_opaque(
    tmp_path: Path, issuer: FakeIssuer
) -> None:
    plane = ControlPlane(tmp_path, **_settings(issuer, oidc_audience="cmcl-page"))
    visitor = Browser(plane, ORIGIN)
    begun = _begin(visitor)
    nonce = parse_qs(urlsplit(begun).query)["nonce"][0]
    token = issuer.token(aud="cmcl-page", nonce=nonce)
    address = issuer.authorize(begun, id_token=token, access_token="opaque")
    assert _come_back(visitor, address).status_code == 200
    assert visitor.get("/ui/").status_code == 200
    plane.close()


def test_a_public_client_proves_itself_by_the_verifier_alone(tmp_path: Path) -> None:
    with FakeIssuer() as public:
        key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
        settings = _settings(public, oidc_client_secret=None, encryption_key=key)
        plane = ControlPlane(tmp_path, **settings)
        visitor = Browser(plane, ORIGIN)
        assert _come_back(visitor, public.authorize(_begin(visitor))).status_code == 200
        plane.close()


def test_what_the_issuer_refuses_is_said(visitor: Browser) -> None:
    _begin(visitor)
    answer = visitor.get("/ui/oidc/callback?error=%3Cb%3Eaccess_denied&state=x")
    assert answer.status_code == 403
    assert "&lt;b&gt;access_denied" in answer.text


def test_an_issuer_that_does_not_respond_is_503(tmp_path: Path) -> None:
    with FakeIssuer() as gone:
        settings = _settings(gone)
    plane = ControlPlane(tmp_path, **settings)
    answer = Browser(plane, ORIGIN).get("/ui/oidc/start")
    assert answer.status_code == 503
    assert "or sign in with a key" in answer.text
    plane.close()


def test_without_a_client_there_is_no_such_sign_in(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on")
    browser = Browser(plane)
    assert "organisation" not in browser.get("/ui/login").text
    assert browser.get("/ui/oidc/start").status_code == 404
    plane.close()


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("oidc_issuer", "CMCL_OIDC_ISSUER"),
        ("page_url", "CMCL_PAGE_URL"),
        ("oidc_client_secret", "CMCL_OIDC_CLIENT_SECRET or CMCL_ENCRYPTION_KEY"),
    ],
)
def test_settings_that_lack_something_are_refused(
    issuer: FakeIssuer, missing: str, named: str
) -> None:
    values = {name: value for name, value in _settings(issuer).items() if name != missing}
    with pytest.raises(ValidationError, match=named):
        Settings.model_validate(values)
