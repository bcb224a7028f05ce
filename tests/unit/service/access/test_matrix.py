"""One matrix over the API and the page: each operation, with and without its scopes, for its owner and for another one."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import unescape

import httpx
import pytest
from fastapi import FastAPI

from cmcl.contract.api.access import Scope
from service.api.dependencies import OPEN_PATHS
from tests.fakes.app_client import AppClient
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.access.operations import (
    BODIES,
    ELSEWHERE,
    FORMS,
    OF_NO_OWNER,
    STREAMS,
    address,
    make_things,
    operations,
    options,
    scopes,
)
from tests.unit.service.auth.key_client import ADMIN_KEY, EVERY_SCOPE, KeyClient
from tests.unit.service.page.browser import Browser

MOST_BYTES = 150_000
FOREIGN = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
_UNKNOWN = {
    "model": "no-model",
    "job": "job-000000000000",
    "held": "job-000000000000",
    "dataset": "ds-000000000000",
    "webhook": "wh-000000000000",
    "key": "key-000000000000",
    "upload": "up-000000000000",
    **OF_NO_OWNER,
}


@dataclass(frozen=True)
class Caller:
    """A holder of a key, and the same one in a browser."""

    key_client: KeyClient
    browser: Browser

    def ask(self, operation: str, things: Mapping[str, str]) -> httpx.Response:
        """Send the request of an operation about those objects."""
        client: AppClient = self.browser if " /ui/" in operation else self.key_client
        method = operation.partition(" ")[0]
        return client.request(method, address(operation, things), **options(operation))


@dataclass(frozen=True)
class Tenants:
    """Two owners with one object of each kind, and the operator."""

    plane: ControlPlane
    ours: Caller
    theirs: Caller
    operator: Caller
    our_things: Mapping[str, str]
    their_things: Mapping[str, str]

    @property
    def page(self) -> FastAPI:
        """The app of the page."""
        page: FastAPI = self.plane.app.state.page
        return page

    @property
    def operations(self) -> list[str]:
        """All operations of both apps."""
        return [*operations(self.plane.app), *operations(self.page)]


def _caller(plane: ControlPlane, key: str) -> Caller:
    browser = Browser(plane)
    assert browser.sign_in(key).status_code == 303
    return Caller(KeyClient(plane, key), browser)


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    plane = ControlPlane(tmp_path_factory.mktemp("tenants"), auth="on", admin_key=ADMIN_KEY)
    operator = _caller(plane, ADMIN_KEY)
    ours, theirs = (
        _caller(plane, operator.key_client.make_key(f"{name}-key", EVERY_SCOPE, owner=name)["key"])
        for name in ("ours", "theirs")
    )
    our_things = make_things(plane, ours.key_client, "our-model")
    their_things = make_things(plane, theirs.key_client, "their-model")
    yield Tenants(plane, ours, theirs, operator, our_things, their_things)
    plane.close()


@pytest.fixture(scope="module")
def without(tenants: Tenants) -> dict[Scope, Caller]:
    """By scope: a caller of the second owner whose key has all scopes but this one."""
    make = tenants.operator.key_client.make_key
    return {
        scope: _caller(
            tenants.plane,
            make(f"not-{scope}", sorted({*EVERY_SCOPE} - {scope}), owner="theirs")["key"],
        )
        for scope in Scope
    }


def test_bodies_and_forms_are_of_operations(tenants: Tenants) -> None:
    assert {*BODIES, *FORMS} <= {*tenants.operations}
    assert len(tenants.operations) > 80


def test_without_a_key_no_operation_is_answered(tenants: Tenants) -> None:
    nobody = Caller(KeyClient(tenants.plane, None), Browser(tenants.plane))
    answered = {}
    for operation in tenants.operations:
        answer = nobody.ask(operation, tenants.their_things)
        if " /ui/" in operation and answer.status_code == 303:
            assert nobody.browser.target(answer).startswith("/ui/login")
            where = address(operation, tenants.their_things)
            fragment = f"{'&' if '?' in where else '?'}fragment=live_x"
            answer = nobody.browser.get(where + fragment)
        if answer.status_code != 401:
            answered[operation] = answer.status_code
    assert answered == {}


def test_only_the_files_of_the_page_are_open_below_docs(tenants: Tenants) -> None:
    without_key = KeyClient(tenants.plane, None)
    assert without_key.request("GET", "/docs/script").status_code == 200
    assert without_key.request("GET", "/docs/other").status_code == 401


def test_without_one_of_its_scopes_an_operation_is_forbidden(
    tenants: Tenants, without: dict[Scope, Caller]
) -> None:
    permitted = {}
    for operation in tenants.operations:
        for scope in scopes(operation):
            answer = without[scope].ask(operation, tenants.their_things)
            is_named = f"this needs the scope '{scope}'" in unescape(answer.text)
            if answer.status_code != 403 or not is_named:
                permitted[operation, scope] = answer.status_code, answer.text[-300:]
    assert permitted == {}


def test_a_thing_of_another_owner_is_answered_like_one_that_never_existed(tenants: Tenants) -> None:
    shown = {}
    for operation in tenants.operations:
        if "{" not in operation or operation in ELSEWHERE or "/sessions/" in operation:
            continue
        answer = tenants.ours.ask(operation, tenants.their_things)
        missing = tenants.ours.ask(operation, _UNKNOWN)
        # Except for the requested name.
        same = _without(answer, tenants.their_things) == _without(missing, _UNKNOWN)
        if (answer.status_code, missing.status_code, same) != (404, 404, True):
            shown[operation] = answer.status_code, missing.status_code, answer.text[-300:]
    assert shown == {}


def _without(answer: httpx.Response, names: Mapping[str, str]) -> str:
    text = answer.text
    for name in sorted(names.values(), key=len, reverse=True):
        text = text.replace(name, "") if len(name) > 1 else text
    return text


def test_its_owner_and_the_operator_can_read_everything(tenants: Tenants) -> None:
    refused = {}
    for operation in tenants.operations:
        if not operation.startswith("GET") or operation in STREAMS:
            continue
        for name, caller in {"owner": tenants.theirs, "operator": tenants.operator}.items():
            answer = caller.ask(operation, tenants.their_things)
            if answer.status_code != 200 or len(answer.content) > MOST_BYTES:
                refused[name, operation] = answer.status_code, answer.text[-300:]
    assert refused == {}


def test_lists_show_what_the_owner_has_and_nothing_else(tenants: Tenants) -> None:
    for operation in tenants.operations:
        if not operation.startswith("GET") or "{" in operation or operation in STREAMS:
            continue
        answers = [
            caller.ask(operation, tenants.their_things)
            for caller in (tenants.ours, tenants.theirs, tenants.operator)
        ]
        for name in tenants.their_things.values():
            assert len(name) == 1 or name not in answers[0].text, operation
        # All owners share the declared encoders; the items of others are objects of one owner.
        if operation == "GET /v1/encoders" or "items" not in answers[0].text[:10]:
            continue
        ours, theirs, everything = map(_items, answers)
        assert ours, operation
        assert theirs, operation
        assert ours.isdisjoint(theirs), operation
        assert ours | theirs <= everything, operation


def _items(answer: httpx.Response) -> set[str]:
    return {json.dumps(item, sort_keys=True) for item in answer.json()["items"]}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/datasets", "/v1/events"])
def test_a_filter_by_others_models_finds_nothing(tenants: Tenants, path: str) -> None:
    query = f"{path}?model={tenants.their_things['model']}"
    response = tenants.ours.key_client.get(query)
    assert response.status_code in (200, 404)
    assert response.json().get("items", []) == []
    assert tenants.theirs.key_client.get(query).json()["items"] != []


def test_bodies_cannot_name_what_others_have(tenants: Tenants) -> None:
    plane, ours, things = tenants.plane, tenants.ours.key_client, tenants.their_things
    posted = ours.post("/v1/datasets", json=plane.dataset_body("x", things["model"]))
    assert posted.status_code == 404
    body = plane.dataset_body("y", "our-model", shards=[{"uri": f"upload:{things['upload']}"}])
    assert ours.post("/v1/datasets", json=body).status_code in (404, 422)
    hook = {"url": "https://example.com/x", "model": things["model"]}
    assert ours.post("/v1/webhooks", json=hook).status_code == 404


def test_a_name_that_others_have_is_taken_and_shows_nothing(tenants: Tenants) -> None:
    name = tenants.their_things["model"]
    bodies = {
        "/v1/models": {**BODIES["POST /v1/models"], "name": name},
        "/v1/models/our-model/branch": {"name": name, "version": 1},
    }
    for path, body in bodies.items():
        response = tenants.ours.key_client.post(path, json=body)
        assert response.status_code == 409
        assert "theirs" not in response.text


def test_an_answer_is_repeated_to_its_owner_alone(tenants: Tenants) -> None:
    headers = {"Idempotency-Key": "the-same"}
    body = {"filename": "z.parquet", "bytes": 10}
    first, other = (
        caller.key_client.post("/v1/uploads", json=body, headers=headers)
        for caller in (tenants.theirs, tenants.ours)
    )
    assert first.status_code == other.status_code == 201
    assert first.json()["id"] != other.json()["id"]
    assert "idempotency-replayed" not in other.headers


def test_the_description_names_the_scope_of_every_operation(tenants: Tenants) -> None:
    document = tenants.plane.app.openapi()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    described = {
        f"{method.upper()} {path}": operation.get("security")
        for path, by_method in document["paths"].items()
        for method, operation in by_method.items()
    }
    opened = {each: None for each in described if each.split(" ")[1] in OPEN_PATHS}
    expected = {each: [{"bearer": sorted(scopes(each))}] for each in operations(tenants.plane.app)}
    assert described == expected | opened
    assert len(opened) == 3


def test_no_other_site_can_send_a_form(tenants: Tenants) -> None:
    for operation in FORMS:
        where = address(operation, tenants.their_things)
        form = FORMS[operation]
        answer = tenants.theirs.browser.post(where, data=form, headers={**FOREIGN})
        assert answer.status_code == 403, operation
        assert "comes from another site" in answer.text


def test_a_form_must_name_the_state_that_was_seen_and_changes_no_other(tenants: Tenants) -> None:
    """Nothing has the revision 999999999."""
    for operation, form in FORMS.items():
        if "seen" not in form:
            continue
        where = address(operation, tenants.their_things)
        unnamed = tenants.theirs.browser.post(where, data={**form, "seen": ""})
        assert unnamed.status_code == 422, operation
        assert "seen" in unnamed.text
        other = tenants.theirs.browser.post(where, data={**form, "seen": "999999999"})
        assert other.status_code == 412, other.text
        assert "Nothing was done" in other.text
        assert "not generation 999999999" in other.text or "not 999999999" in other.text


def test_a_session_revoked_in_mid_view_gets_no_more_parts(tenants: Tenants) -> None:
    key = tenants.operator.key_client.make_key("narrow", ["read"], owner="theirs")["key"]
    browser = _caller(tenants.plane, key).browser
    where = f"/ui/jobs/{tenants.their_things['job']}?fragment=live_now"
    assert browser.get(where).status_code == 200
    cookie = dict(browser.cookies)
    browser.post("/ui/logout")
    browser.cookies = cookie
    assert browser.get(where, headers={"Accept": "*/*"}).status_code == 401


def test_paths_that_are_no_pages_are_not_there(tenants: Tenants) -> None:
    for path in ("/ui/jobs/", "/ui/jobs/job-1", "/ui/%2e%2e/v1/keys", "/ui//jobs", "/ui/static/"):
        assert tenants.ours.browser.get(path).status_code in (404, 422)
