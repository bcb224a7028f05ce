"""Every page: who may open it, and text from outside that is shown as text."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, select, update

from cmcl.storage import layout
from service.core.principal import Scope
from service.core.states import JobState
from service.database.tables import (
    api_keys,
    datasets,
    deliveries,
    events,
    jobs,
    promotions,
    sessions,
    versions,
    webhooks,
)
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train
from tests.unit.service.auth.key_client import ADMIN_KEY, EVERY_SCOPE, KeyClient
from tests.unit.service.page.browser import Browser
from tests.unit.service.page.routes import ABOUT_ONE_THING, DOCUMENTS, PAGES, READABLE, address

MOST_BYTES = 150_000


@dataclass(frozen=True)
class Tenants:
    """Two owners with their things, by name in paths, and a browser of each."""

    plane: ControlPlane
    operator: KeyClient
    ours: Browser
    theirs: Browser
    their_things: Mapping[str, str]

    def browser(self, scopes: set[str]) -> Browser:
        """A browser of the second owner with a key of these scopes."""
        browser = Browser(self.plane)
        key = self.operator.make_key("narrow", sorted(scopes), owner="theirs")
        browser.sign_in(key["key"])
        return browser


def make_things(plane: ControlPlane, client: KeyClient, model: str) -> dict[str, str]:
    """A model with two versions, a failed job, and one whose candidate is held; a key and a webhook."""
    plane.client = client
    plane.create_model(model)
    for name in ("one", "two"):
        plane.run_to_end(plane.post_dataset(name, model))
    job = plane.post_dataset("broken", model, shards=[{"uri": plane.shard("x")["uri"] + "x"}])
    plane.tick(3)
    held = hold_candidate(plane, model)
    dataset = plane.job(job).dataset
    webhook = client.post("/v1/webhooks", json={"url": f"https://example.com/{model}"}).json()["id"]
    client.post(f"/v1/webhooks/{webhook}/test")
    key = client.make_key(f"key-of-{model}", ["read"])["id"]
    upload = client.post("/v1/uploads", json={"filename": model, "bytes": 10}).json()["id"]
    named = {"model": model, "job": job, "held": held, "dataset": dataset, "version": "2"}
    return {**named, "webhook": webhook, "key": key, "upload": upload, "collection": "x"}


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    plane = ControlPlane(tmp_path_factory.mktemp("tenants"), auth="on", admin_key=ADMIN_KEY)
    operator = KeyClient(plane, ADMIN_KEY)
    browsers, things = {}, {}
    for name in ("ours", "theirs"):
        key = operator.make_key(f"{name}-key", EVERY_SCOPE, owner=name)["key"]
        things[name] = make_things(plane, KeyClient(plane, key), f"{name}-model")
        browsers[name] = Browser(plane)
        browsers[name].sign_in(key)
    yield Tenants(plane, operator, browsers["ours"], browsers["theirs"], things["theirs"])
    plane.close()


def hold_candidate(plane: ControlPlane, model: str) -> str:
    """A job whose candidate waits for approval."""
    gate = {"manual_approval": True}
    assert plane.client.put(f"/v1/models/{model}/gate", json=gate).status_code == 200
    job = plane.post_dataset("held", model)
    train(plane.store, job, plane.tick_to(job, JobState.RUNNING).attempt)
    plane.store.put(layout.run_log(job, 1), b"rank 0: 40 updates\n")
    plane.tick_to(job, JobState.HELD)
    return job


def test_the_table_has_every_page(tenants: Tenants) -> None:
    found = {
        context.path
        for context in iter_route_contexts(tenants.plane.app.state.page.routes)
        if "GET" in (context.methods or ())
    }
    assert found == set(PAGES)


@pytest.mark.parametrize("path", READABLE)
def test_its_owner_and_the_operator_can_open_it(tenants: Tenants, path: str) -> None:
    operators = Browser(tenants.plane)
    operators.sign_in(ADMIN_KEY)
    for browser in (tenants.theirs, operators):
        answer = browser.get(address(path, tenants.their_things))
        assert answer.status_code == 200, answer.text
        assert len(answer.content) < MOST_BYTES


@pytest.mark.parametrize("path", ABOUT_ONE_THING)
def test_what_another_owner_has_is_not_there(tenants: Tenants, path: str) -> None:
    answer = tenants.ours.get(address(path, tenants.their_things))
    assert answer.status_code == 404
    job = "job-000000000000"
    unknown = {"model": "no-model", "job": job, "held": job, "dataset": "ds-000000000000"}
    unknown |= {"webhook": "wh-000000000000", "key": "key-000000000000"}
    unknown["upload"] = "up-000000000000"
    missing = tenants.ours.get(address(path, {**unknown, "version": "2"}))
    assert missing.status_code == 404
    assert _without(answer.text, tenants.their_things) == _without(missing.text, unknown)


def _without(text: str, names: Mapping[str, str]) -> str:
    for name in sorted(names.values(), key=len, reverse=True):
        text = text.replace(name, "") if len(name) > 1 else text
    return text


@pytest.mark.parametrize("path", [path for path in READABLE if "{" not in path])
def test_lists_show_what_the_owner_has_and_nothing_else(tenants: Tenants, path: str) -> None:
    page = tenants.ours.get(path).text
    for name in tenants.their_things.values():
        assert len(name) == 1 or name not in page


@pytest.mark.parametrize("path", [path for path, page in PAGES.items() if page.scope])
def test_without_the_scope_it_is_forbidden_and_says_what_is_missing(
    tenants: Tenants, path: str
) -> None:
    scope = PAGES[path].scope
    assert scope is not None
    browser = tenants.browser(set(EVERY_SCOPE) - {scope})
    answer = browser.get(address(path, tenants.their_things))
    assert answer.status_code == 403
    assert f"this needs the scope &#39;{scope}&#39;" in answer.text


@pytest.mark.parametrize("path", [path for path, page in PAGES.items() if not page.is_open])
def test_signed_out_it_leads_to_the_sign_in_page(tenants: Tenants, path: str) -> None:
    stranger = Browser(tenants.plane)
    where = address(path, tenants.their_things)
    assert stranger.target(stranger.get(where)).startswith("/ui/login")
    fragment = f"{'&' if '?' in where else '?'}fragment=live_x"
    assert stranger.get(where + fragment).status_code == 401


class _Skeleton(HTMLParser):
    """The elements of a document, with the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [
            value or "" for name, value in attrs if name in ("href", "src", "action")
        ]


def skeleton(text: str) -> _Skeleton:
    found = _Skeleton()
    found.feed(text)
    return found


@dataclass(frozen=True)
class Hostile:
    """A control plane in which texts from outside can be replaced, and its pages with a harmless one."""

    plane: ControlPlane
    browser: Browser
    things: Mapping[str, str]
    harmless: Mapping[str, list[tuple[str, tuple[str, ...]]]]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    plane = ControlPlane(tmp_path_factory.mktemp("hostile"), auth="on", admin_key=ADMIN_KEY)
    things = make_things(plane, KeyClient(plane, ADMIN_KEY), "scenes")
    browser = Browser(plane)
    browser.sign_in(ADMIN_KEY)
    poison(plane, "harmless")
    harmless = {
        path: skeleton(browser.get(address(path, things)).text).elements for path in DOCUMENTS
    }
    yield Hostile(plane, browser, things, harmless)
    plane.close()


def poison(plane: ControlPlane, text: str) -> None:
    """Put a text everywhere where one from outside is stored."""
    row = {"id": text, "file": text[:1024], "row": 3, "reason": text, "place": text}
    prepared = {"rejected_rows": 30, "rejected": [row], "encoders": {}}
    approval = {"decision": "rejected", "actor": text, "reason": text, "at": "2026-11-24T12:00:00Z"}
    said = {"message": text, "reason": text, "actor": text, "attempt": 1}
    values: dict[Table, dict[str, Any]] = {
        jobs: {"message": text, "prepared": prepared, "approval": approval},
        datasets: {"quarantine_reason": text},
        events: {"data": said},
        promotions: {"reason": text, "actor": text[:128]},
        sessions: {"agent": text},
        api_keys: {"created_by": text[:128]},
        webhooks: {"disabled_reason": text},
        deliveries: {"error": text},
    }
    with plane.context.database.write() as connection:
        for table, changes in values.items():
            connection.execute(update(table).values(**changes))
        stored = connection.execute(select(versions.c.number, versions.c.manifest)).all()
        for number, manifest in stored:
            of_version = update(versions).where(versions.c.number == number)
            connection.execute(of_version.values(manifest=poisoned(manifest, text)))


def poisoned(manifest: dict[str, Any], text: str) -> dict[str, Any]:
    """A manifest with the text where a worker writes one."""
    unread = {line["dataset"]: text for line in manifest["learned"]}
    report = {**manifest["report"], "not_evaluated": unread}
    return {**manifest, "code_version": text, "report": report}


PAYLOADS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><a href=javascript:alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "</td></tr></table><base href=//evil.example>",
    "--><!--<textarea>",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe\N{POP DIRECTIONAL FORMATTING}",
    "\N{PILE OF POO}" * 40,
    "x" * 10_000,
    "<" * 10_000,
    "&lt;b&gt;&amp;amp;",
    "\x01\x1f\x7f\u2028\ufeff",
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(min_size=1, max_size=300).map(lambda text: f"x{text}"))
def test_text_from_outside_is_shown_as_text(hostile: Hostile, text: str) -> None:
    check_shown_as_text(hostile, text)


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_payloads_are_shown_as_text(hostile: Hostile, payload: str) -> None:
    check_shown_as_text(hostile, payload)


def check_shown_as_text(hostile: Hostile, text: str) -> None:
    poison(hostile.plane, text.encode("utf-8", "replace").decode())
    for path in DOCUMENTS:
        answer = hostile.browser.get(address(path, hostile.things))
        assert answer.status_code == 200
        assert len(answer.content) < MOST_BYTES
        found = skeleton(answer.text)
        assert "javascript:" not in " ".join(found.addresses)
        assert found.elements == hostile.harmless[path], path


@pytest.mark.parametrize("path", DOCUMENTS)
def test_every_link_and_form_is_relative(hostile: Hostile, path: str) -> None:
    addresses = skeleton(hostile.browser.get(address(path, hostile.things)).text).addresses
    assert addresses
    assert [each for each in addresses if not re.match(r"\.\.?/|#", each)] == []


@given(st.text(max_size=60))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@example('"><script>alert(1)</script>')
def test_filters_refuse_what_is_no_name(hostile: Hostile, text: str) -> None:
    for path in ("jobs", "datasets", "events"):
        for name in ("model", "state", "kind", "cursor", "fragment", "done"):
            answer = hostile.browser.request("GET", f"/ui/{path}", params={name: text})
            assert answer.status_code in (200, 422)
            assert not any(
                "script" in tag
                for tag, names in skeleton(answer.text).elements
                if "src" not in names
            )


def test_a_session_revoked_in_mid_view_gets_no_more_parts(tenants: Tenants) -> None:
    browser = tenants.browser({Scope.READ})
    address = f"/ui/jobs/{tenants.their_things['job']}?fragment=live_now"
    assert browser.get(address).status_code == 200
    cookie = dict(browser.cookies)
    browser.post("/ui/logout")
    browser.cookies = cookie
    assert browser.get(address, headers={"Accept": "*/*"}).status_code == 401


def test_a_cookie_of_another_tenant_shows_that_tenants_things(tenants: Tenants) -> None:
    thief = Browser(tenants.plane)
    thief.cookies = dict(tenants.ours.cookies)
    path = f"/ui/jobs/{tenants.their_things['job']}"
    assert thief.get(path).status_code == 404


def test_paths_that_are_no_pages_are_not_there(tenants: Tenants) -> None:
    for path in ("/ui/jobs/", "/ui/jobs/job-1", "/ui/%2e%2e/v1/keys", "/ui//jobs", "/ui/static/"):
        assert tenants.ours.get(path).status_code in (404, 422)
