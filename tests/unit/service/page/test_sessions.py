"""Sessions of the page: signing in with a key or an issuer, what a session may do, and its end."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.auth.oidc import SIGN_IN_SECONDS
from service.auth.rate_limiter import FAILURES_PER_MINUTE
from service.auth.sessions import MOST_OF_HOLDER
from service.core.settings import Settings
from service.database.queries import keys, sessions
from service.maintenance.gc import sweep_sessions
from service.page.login import safe_address
from tests.fakes.control_plane import ControlPlane
from tests.fakes.issuer import AUDIENCE, FakeIssuer
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient
from tests.unit.service.page.browser import Browser

HOURS = 3600


def test_a_key_signs_in_and_the_page_is_that_of_its_owner(
    guarded: ControlPlane, operator: KeyClient, browser: Browser
) -> None:
    ours, theirs = (operator.client_with_key(name, owner=name) for name in ("ours", "theirs"))
    for client, model in ((ours, "our-model"), (theirs, "their-model")):
        guarded.client = client
        guarded.create_model(model)
    answer = browser.sign_in(ours.key or "")
    page = browser.follow(browser.follow(answer))
    assert page.status_code == 200
    assert "our-model" in page.text
    assert "their-model" not in page.text
    assert "ours" in page.text
    assert "live_quotas" not in page.text, "less than half of each quota is used"


def test_the_cookie_cannot_be_read_by_scripts_nor_sent_by_other_sites(
    operator: KeyClient, guarded: ControlPlane
) -> None:
    key = operator.make_key()["key"]
    for origin, name, secure in (
        ("http://127.0.0.1:8000", "cmcl", False),
        ("http://localhost:8000", "cmcl", False),
        ("https://cmcl.example.org", "__Host-cmcl", True),
        # Without TLS a browser drops it, and the page says so.
        ("http://cmcl.example.org", "__Host-cmcl", True),
    ):
        answer = Browser(guarded, origin).sign_in(key)
        (cookie,) = answer.headers.get_list("set-cookie")
        attributes = {each.strip().lower() for each in cookie.split(";")[1:]}
        assert cookie.startswith(f"{name}=ses-")
        assert {"httponly", "samesite=strict", "path=/"} <= attributes
        assert ("secure" in attributes) is secure
        assert f"max-age={12 * HOURS}" in attributes
        assert key not in cookie


def test_a_browser_that_keeps_no_cookie_is_told(operator: KeyClient, guarded: ControlPlane) -> None:
    browser = Browser(guarded, "http://cmcl.example.org")
    answer = browser.sign_in(operator.make_key()["key"])
    browser.cookies.clear()
    page = browser.follow(answer)
    assert page.status_code == 401
    assert "did not keep the cookie" in page.text


def test_a_wrong_key_gets_the_form_again_and_no_session(browser: Browser) -> None:
    for key in ("", "x", "cmcl_0123456789ab_" + "x" * 43, "a.b.c", "k" * 9000):
        answer = browser.sign_in(key)
        assert answer.status_code in (401, 422), key
        assert "set-cookie" not in answer.headers
        assert browser.get("/ui/").status_code == 303


def test_guessing_keys_is_limited(browser: Browser) -> None:
    statuses = [
        browser.sign_in(f"cmcl_{number:012x}_" + "x" * 43).status_code
        for number in range(FAILURES_PER_MINUTE + 1)
    ]
    assert statuses == [401] * FAILURES_PER_MINUTE + [429]


def test_a_script_gets_401_and_not_the_sign_in_page(browser: Browser) -> None:
    for path in ("/ui/?fragment=live_tiles", "/ui/stream", "/ui/jobs"):
        headers = {"Accept": "text/event-stream" if "stream" in path else "*/*"}
        assert browser.get(path, headers=headers).status_code == 401, path


@given(st.text(max_size=80) | st.from_regex(r"[/\\a-z.:@?%#]{1,20}", fullmatch=True))
@example("//evil.example")
@example("/\\evil.example")
@example("https://evil.example")
@example("javascript:alert(1)")
@example("x/../../../v1/keys")
@example("x\r\nSet-Cookie: a=b")
def test_the_address_after_signing_in_is_one_of_the_page(text: str) -> None:
    address = urlsplit(urljoin("http://host/prefix/ui/login", f"./{safe_address(text)}"))
    assert (address.scheme, address.netloc) == ("http", "host")
    assert address.path.startswith("/prefix/ui/")


def test_a_session_that_only_looks_can_only_read(operator: KeyClient, browser: Browser) -> None:
    browser.sign_in(operator.make_key()["key"], read_only="1")
    assert "<dd>read</dd>" in browser.get("/ui/").text
    assert "admin" not in browser.get("/ui/sessions").text


def test_signing_out_ends_the_session(operator: KeyClient, browser: Browser) -> None:
    browser.sign_in(operator.make_key()["key"])
    kept = dict(browser.cookies)
    assert browser.get("/ui/").status_code == 200
    assert browser.target(browser.post("/ui/logout")) == "/ui/login"
    assert browser.cookies == {}
    browser.cookies = kept
    assert browser.get("/ui/").status_code == 303


def test_revoking_the_key_ends_its_sessions_at_once_and_no_other(
    guarded: ControlPlane, operator: KeyClient
) -> None:
    first, second = (operator.make_key(name) for name in ("first", "second"))
    browsers = []
    for key in (first, first, second):
        browsers.append(Browser(guarded))
        browsers[-1].sign_in(key["key"])
    assert operator.request("DELETE", f"/v1/keys/{first['id']}").status_code == 204
    assert [browser.get("/ui/").status_code for browser in browsers] == [303, 303, 200]


def test_a_key_that_another_replica_revoked_ends_its_sessions_within_seconds(
    guarded: ControlPlane, operator: KeyClient, browser: Browser
) -> None:
    key = operator.make_key()
    browser.sign_in(key["key"])
    with guarded.context.database.write() as connection:
        keys.set_revoked(connection, key["id"], guarded.clock())
    guarded.clock.advance(6)
    assert browser.get("/ui/").status_code == 303


def test_a_session_ends_after_its_hours_and_not_later_than_its_key(
    guarded: ControlPlane, operator: KeyClient
) -> None:
    short, long = (
        operator.make_key(name, expires_in_days=days) for name, days in (("a", 1), ("b", 30))
    )
    late, early = Browser(guarded), Browser(guarded)
    early.sign_in(long["key"])
    guarded.clock.advance(12 * HOURS - 1)
    assert early.get("/ui/").status_code == 200
    late.sign_in(short["key"])
    guarded.clock.advance(1)
    assert early.get("/ui/").status_code == 303
    guarded.clock.advance(12 * HOURS - 2)
    assert late.get("/ui/").status_code == 200
    guarded.clock.advance(2)
    assert late.get("/ui/").status_code == 303, "the key lasts a day"


def test_replacing_the_operators_key_ends_the_operators_sessions(
    guarded: ControlPlane, tmp_path: Path
) -> None:
    browser = Browser(guarded)
    browser.sign_in(ADMIN_KEY)
    assert "all owners" in browser.get("/ui/").text
    for key, status in ((ADMIN_KEY, 200), (f"another-{ADMIN_KEY}", 303), (None, 303)):
        after = ControlPlane(tmp_path, clock=guarded.clock, auth="on", admin_key=key)
        again = Browser(after)
        again.cookies = browser.cookies
        assert again.get("/ui/").status_code == status
        after.close()


def test_the_oldest_session_of_a_key_makes_room(guarded: ControlPlane, operator: KeyClient) -> None:
    key = operator.make_key()["key"]
    browsers = [Browser(guarded) for _ in range(MOST_OF_HOLDER + 1)]
    for browser in browsers:
        browser.sign_in(key)
        guarded.clock.advance(1)
    statuses = [browser.get("/ui/").status_code for browser in browsers]
    assert statuses == [303] + [200] * MOST_OF_HOLDER


def test_sessions_are_listed_to_those_who_may_end_them(
    guarded: ControlPlane, operator: KeyClient
) -> None:
    scopes = ("read", "write")
    made = {
        "plain": operator.make_key("plain", scopes, owner="lab"),
        "other": operator.make_key("other", scopes, owner="lab"),
        "admin": operator.make_key("chief", owner="lab"),
        "foreign": operator.make_key("foreign", owner="elsewhere"),
    }
    browsers = {name: Browser(guarded) for name in made}
    ids = {}
    for name, browser in browsers.items():
        browser.sign_in(made[name]["key"])
        ids[name] = next(iter(browser.cookies.values())).partition(".")[0]
    shown = {
        name: {other for other, each in ids.items() if each in browser.get("/ui/sessions").text}
        for name, browser in browsers.items()
    }
    assert shown == {
        "plain": {"plain"},
        "other": {"other"},
        "admin": {"plain", "other", "admin"},
        "foreign": {"foreign"},
    }
    assert browsers["foreign"].post(f"/ui/sessions/{ids['plain']}/end").status_code == 404
    assert browsers["other"].post(f"/ui/sessions/{ids['plain']}/end").status_code == 404
    assert browsers["plain"].get("/ui/").status_code == 200
    answer = browsers["admin"].post(f"/ui/sessions/{ids['plain']}/end")
    assert "The session was ended." in browsers["admin"].follow(answer).text
    assert browsers["plain"].get("/ui/").status_code == 303


def test_the_cookie_is_no_key(operator: KeyClient, browser: Browser, guarded: ControlPlane) -> None:
    browser.sign_in(operator.make_key()["key"])
    assert browser.get("/v1/whoami").status_code == 401
    assert browser.post("/v1/models", json={}).status_code == 401
    (cookie,) = browser.cookies.values()
    for shown in (cookie, cookie.partition(".")[2], f"cmcl_{cookie[4:16]}_{cookie[17:]}"):
        assert KeyClient(guarded, shown).get("/v1/whoami").status_code == 401


def test_a_changed_cookie_is_none(operator: KeyClient, browser: Browser) -> None:
    browser.sign_in(operator.make_key()["key"])
    ((name, cookie),) = browser.cookies.items()
    session, _, secret = cookie.partition(".")
    for changed in (
        f"{session}.{'A' * 43}",
        f"ses-0123456789ab.{secret}",
        f"ops-{session[4:]}.{secret}",
        session,
        f"{cookie}x",
        "",
        "%00",
    ):
        browser.cookies = {name: changed}
        assert browser.get("/ui/").status_code == 303


def test_guessing_sessions_is_limited_and_ends_no_other(
    operator: KeyClient, browser: Browser, guarded: ControlPlane
) -> None:
    browser.sign_in(operator.make_key()["key"])
    assert browser.get("/ui/").status_code == 200
    before = _reads(guarded)
    guesser = Browser(guarded)
    for number in range(FAILURES_PER_MINUTE + 20):
        guesser.cookies = {"cmcl": f"ses-{number:012x}.{'x' * 43}"}
        assert guesser.get("/ui/").status_code == 303
    assert _reads(guarded) - before == FAILURES_PER_MINUTE
    guarded.clock.advance(6)
    assert browser.get("/ui/").status_code == 200


def _reads(plane: ControlPlane) -> float:
    """Number of read transactions so far."""
    labels = {"kind": "read", "outcome": "ok"}
    name = "cmcl_service_database_seconds_count"
    return plane.context.metrics.registry.get_sample_value(name, labels) or 0.0


def test_secrets_are_stored_as_digests_and_expired_sessions_are_removed(
    guarded: ControlPlane, operator: KeyClient, browser: Browser
) -> None:
    browser.sign_in(operator.make_key()["key"])
    (cookie,) = browser.cookies.values()
    name, _, secret = cookie.partition(".")
    database = guarded.context.database
    with database.read() as connection:
        record = sessions.find(connection, name)
    assert record is not None
    assert secret not in repr(vars(record))
    guarded.clock.advance(timedelta(days=8).total_seconds())
    sweep_sessions(guarded.context)
    with database.read() as connection:
        assert sessions.find(connection, name) is None


def test_the_last_use_is_written_once_a_minute(
    guarded: ControlPlane, operator: KeyClient, browser: Browser
) -> None:
    browser.sign_in(operator.make_key()["key"])
    (cookie,) = browser.cookies.values()
    used = []
    for _ in range(3):
        browser.get("/ui/")
        with guarded.context.database.read() as connection:
            found = sessions.find(connection, cookie.partition(".")[0])
        assert found is not None
        used.append(found.last_used_at)
        guarded.clock.advance(40)
    assert used[0] == used[1]
    assert used[1] != used[2]


def test_sessions_of_owners_neither_hide_nor_keep_those_of_the_operator(
    guarded: ControlPlane, operator: KeyClient, browser: Browser
) -> None:
    browser.sign_in(ADMIN_KEY)
    (cookie,) = browser.cookies.values()
    own = cookie.partition(".")[0]
    theirs = Browser(guarded)
    theirs.sign_in(operator.make_key(owner="lab")["key"])
    (other,) = theirs.cookies.values()
    with guarded.context.database.write() as connection:
        record = sessions.find(connection, other.partition(".")[0])
        assert record is not None
        for number in range(300):
            sessions.create(connection, replace(record, id=f"ses-{number:012x}"))
    assert own in browser.get("/ui/sessions").text
    assert browser.target(browser.post("/ui/logout")) == "/ui/login"
    assert browser.get("/ui/").status_code == 303


def test_signing_out_of_a_session_that_was_ended_elsewhere_removes_the_cookie(
    guarded: ControlPlane, operator: KeyClient, browser: Browser
) -> None:
    browser.sign_in(operator.make_key()["key"])
    (cookie,) = browser.cookies.values()
    with guarded.context.database.write() as connection:
        sessions.set_revoked(connection, cookie.partition(".")[0], guarded.clock())
    assert browser.target(browser.post("/ui/logout")) == "/ui/login"
    assert not any(browser.cookies.values())


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


def test_a_changed_cookie_is_refused(issuer: FakeIssuer, visitor: Browser) -> None:
    address = issuer.authorize(_begin(visitor))
    cookie = visitor.cookies["__Host-cmcl-oidc"]
    text, _, _ = cookie.rpartition(".")
    content = jwt.decode(cookie, options={"verify_signature": False})
    unsigned, foreign = jwt.encode(content, "", "none"), jwt.encode(content, "k" * 32, "HS256")
    others = ("", "x", "e30=.0", "e30=.é", "{}")
    for changed in (*others, f"{text}.{'0' * 43}", f"{text}.", unsigned, foreign):
        visitor.cookies["__Host-cmcl-oidc"] = changed.encode("ascii", "replace").decode()
        assert _come_back(visitor, address).status_code == 401


def test_a_code_counts_once(issuer: FakeIssuer, visitor: Browser) -> None:
    address = issuer.authorize(_begin(visitor))
    cookies = dict(visitor.cookies)
    assert _come_back(visitor, address).status_code == 200
    visitor.cookies = cookies
    assert _come_back(visitor, address).status_code == 401


NOT_FOR_US: list[tuple[str, dict[str, Any], int]] = [
    ("id_token", {"nonce": "another"}, 401),
    ("id_token", {"nonce": None}, 401),
    ("id_token", {"aud": "another-client"}, 401),
    ("id_token", {"exp": 1}, 401),
    ("access_token", {"aud": "another-service"}, 403),
    ("access_token", {"cmcl_owner": None}, 403),
    ("access_token", {"scope": "openid"}, 403),
]


def test_tokens_that_are_not_for_us_sign_nobody_in(issuer: FakeIssuer, visitor: Browser) -> None:
    for token, changes, status in NOT_FOR_US:
        begun = _begin(visitor)
        nonce = parse_qs(urlsplit(begun).query)["nonce"][0]
        own = {"aud": "cmcl-page", "nonce": nonce} if token == "id_token" else {}
        address = issuer.authorize(begun, **{token: issuer.token(**{**own, **changes})})
        assert _come_back(visitor, address).status_code == status, (token, changes)
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
