"""Signing out, whatever others do."""

from dataclasses import replace

from service.database.queries import sessions
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient
from tests.unit.service.page.browser import Browser


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
