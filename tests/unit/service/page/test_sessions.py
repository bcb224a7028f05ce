"""Sessions of the page: signing in with a key, what a session may do, its end; and tokens in place of one."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.auth.rate_limiter import FAILURES_PER_MINUTE
from service.auth.sessions import MOST_OF_HOLDER
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


@pytest.fixture(scope="module")
def issuer() -> Iterator[FakeIssuer]:
    with FakeIssuer() as issuer:
        yield issuer


@pytest.fixture
def plane(tmp_path: Path, issuer: FakeIssuer) -> Iterator[ControlPlane]:
    """A control plane behind a proxy that signs browsers in and adds their tokens to requests."""
    plane = ControlPlane(
        tmp_path,
        auth="on",
        admin_key=ADMIN_KEY,
        oidc_issuer=issuer.url,
        oidc_audience=AUDIENCE,
    )
    yield plane
    plane.close()


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_token_that_a_proxy_sends_has_the_rights_that_it_has_at_the_api(
    issuer: FakeIssuer, plane: ControlPlane
) -> None:
    for owner in ("lab", "elsewhere"):
        plane.client = KeyClient(plane, issuer.token(cmcl_owner=owner))
        plane.create_model(f"model-of-{owner}")
    browser, token = Browser(plane), _bearer(issuer.token())
    page = browser.get("/ui/", headers=token)
    assert page.status_code == 200
    for shown in ("oidc:somebody", "<dd>read, write</dd>", "<dd><bdi>lab</bdi></dd>"):
        assert shown in page.text
    assert "model-of-lab" in page.text
    assert "model-of-elsewhere" not in page.text
    assert "Sign out" not in page.text, "the proxy has the session"
    assert browser.cookies == {}
    back = "/ui/models/model-of-lab/rollback"
    assert browser.get(back, headers=token).status_code == 403, "the token lacks train"
    assert browser.get("/ui/").status_code == 303, "without the token"


def test_another_site_changes_nothing_with_a_token_that_a_proxy_adds(
    issuer: FakeIssuer, plane: ControlPlane
) -> None:
    """A proxy adds the token to every request that its cookie comes with, whatever page made the browser send it."""
    token = _bearer(issuer.token(scope="cmcl:read cmcl:write"))
    browser = Browser(plane)
    form = {"name": "stolen", "modality": ["a", "b"], "encoder": ["", ""], "width": ["4", "3"]}
    attacks: list[dict[str, str | None]] = [
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": None},
        {"Origin": "null", "Sec-Fetch-Site": None},
        {"Origin": None, "Sec-Fetch-Site": "same-site"},
        {"Origin": None, "Sec-Fetch-Site": None},
    ]
    for attack in attacks:
        answer = browser.post("/ui/new", data=form, headers={**token, **attack})
        assert answer.status_code == 403, attack
    assert "stolen" not in browser.get("/ui/models", headers=token).text
    assert browser.post("/ui/new", data=form, headers=token).status_code == 303
    assert "stolen" in browser.get("/ui/models", headers=token).text


@pytest.mark.parametrize(
    ("claims", "status"),
    [({"exp": 1}, 401), ({"aud": "another-service"}, 401), ({"cmcl_owner": None}, 403)],
)
def test_a_token_that_is_not_valid_is_said_and_not_answered_by_the_form_for_keys(
    issuer: FakeIssuer, plane: ControlPlane, claims: dict[str, Any], status: int
) -> None:
    browser, token = Browser(plane), _bearer(issuer.token(**claims))
    assert browser.get("/ui/", headers=token).status_code == status
    assert browser.get("/ui/login", headers=token).status_code == 200
    assert browser.sign_in(ADMIN_KEY).status_code == 303
    assert "all owners" in browser.get("/ui/", headers=token).text, (
        "a session counts before a token"
    )
