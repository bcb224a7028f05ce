"""Every route of the app: the scope that it requires, and 404 for another owner's objects."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from cmcl.contract.job import submission_id
from service.api.dependencies import OPEN_PATHS
from service.core.principal import Scope
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.auth.key_client import ADMIN_KEY, EVERY_SCOPE, KeyClient
from tests.unit.service.auth.routes import ABOUT_ONE_THING, LISTS, READABLE, ROUTES

# Parts of paths that are the same for every owner.
_OF_NO_OWNER = {"version": "1", "number": "1", "modality": "x"}


@dataclass(frozen=True)
class Tenants:
    """Two owners with one object of each kind, and the names of the second owner's."""

    plane: ControlPlane
    ours: KeyClient
    theirs: KeyClient
    their_things: Mapping[str, str]
    our_things: Mapping[str, str]

    def ask(self, key_client: KeyClient, route: str, things: Mapping[str, str]) -> httpx.Response:
        """Send a request on that route about those objects."""
        method, path = route.split(" ")
        return key_client.request(method, path.format(**things), **ROUTES[route].options)


def make_things(plane: ControlPlane, key_client: KeyClient, model: str) -> dict[str, str]:
    """Create one object of each kind, by its name in paths."""
    plane.client = key_client
    plane.create_model(model)
    job = plane.post_dataset("closed", model)
    plane.launcher.logs[submission_id(job, 1)] = "trained\n"
    plane.run_to_end(job)
    plane.run_to_end(plane.post_dataset("another", model))
    posted = {
        "dataset": ("/v1/datasets", plane.dataset_body("open", model, sealed=False)),
        "upload": ("/v1/uploads", {"filename": f"{model}.parquet", "bytes": 10}),
        "webhook": ("/v1/webhooks", {"url": f"https://example.com/{model}"}),
        "key": ("/v1/keys", {"name": model, "scopes": ["read"]}),
    }
    things = {"model": model, "job": job, **_OF_NO_OWNER}
    for name, (path, body) in posted.items():
        answer = key_client.post(path, json=body)
        assert answer.status_code < 300, answer.text
        made = answer.json()
        things[name] = made["dataset"]["id"] if name == "dataset" else made["id"]
    return things


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    plane = ControlPlane(tmp_path_factory.mktemp("tenants"), auth="on", admin_key=ADMIN_KEY)
    operator = KeyClient(plane, ADMIN_KEY)
    ours, theirs = (
        operator.client_with_key(f"{name}-key", owner=name) for name in ("ours", "theirs")
    )
    our_things = make_things(plane, ours, "our-model")
    their_things = make_things(plane, theirs, "their-model")
    yield Tenants(plane, ours, theirs, their_things, our_things)
    plane.close()


@pytest.fixture(scope="module")
def narrow(tenants: Tenants) -> dict[Scope, KeyClient]:
    """By scope: a client whose key has all scopes but this one."""
    operator = KeyClient(tenants.plane, ADMIN_KEY)
    return {
        scope: operator.client_with_key(
            f"not-{scope}", sorted({*EVERY_SCOPE} - {scope}), owner="theirs"
        )
        for scope in Scope
    }


def test_the_table_has_every_route_of_the_app(tenants: Tenants) -> None:
    found = {
        f"{method} {context.path}"
        for context in iter_route_contexts(tenants.plane.app.routes)
        for method in context.methods or ()
        # The files of the page are open by their names, and no other under that path is.
        if context.path not in {*OPEN_PATHS, "/docs/{file}"}
    }
    assert found == set(ROUTES)


def test_only_the_files_of_the_page_are_open_below_docs(tenants: Tenants) -> None:
    without_key = KeyClient(tenants.plane, None)
    assert without_key.request("GET", "/docs/script").status_code == 200
    assert without_key.request("GET", "/docs/other").status_code == 401


@pytest.mark.parametrize("route", ROUTES)
def test_without_a_key_every_route_is_closed(tenants: Tenants, route: str) -> None:
    without_key = KeyClient(tenants.plane, None)
    assert tenants.ask(without_key, route, tenants.their_things).status_code == 401


@pytest.mark.parametrize("route", [route for route, wanted in ROUTES.items() if wanted.scope])
def test_a_key_without_the_scope_is_forbidden(
    tenants: Tenants, narrow: dict[Scope, KeyClient], route: str
) -> None:
    scope = ROUTES[route].scope
    assert scope is not None
    response = tenants.ask(narrow[scope], route, tenants.their_things)
    assert response.status_code == 403
    assert f"the scope '{scope}'" in response.json()["detail"]


@pytest.mark.parametrize("route", ABOUT_ONE_THING)
def test_a_thing_of_another_owner_is_not_there(tenants: Tenants, route: str) -> None:
    response = tenants.ask(tenants.ours, route, tenants.their_things)
    assert response.status_code == 404, response.text
    unknown = {
        name: "no-such-model" if name == "model" else f"{value[:-4]}0000"
        for name, value in tenants.their_things.items()
        if name not in _OF_NO_OWNER
    }
    missing = tenants.ask(tenants.ours, route, {**_OF_NO_OWNER, **unknown})
    # Except for the requested name, it is the response for an id that never existed.
    assert missing.status_code == 404
    assert _without_names(response, tenants.their_things) == _without_names(missing, unknown)


def _without_names(response: httpx.Response, things: Mapping[str, str]) -> str:
    text = response.text
    for name in sorted(things.values(), key=len, reverse=True):
        if len(name) > 1:
            text = text.replace(name, "")
    return text


@pytest.mark.parametrize("route", READABLE)
def test_its_owner_and_the_operator_find_it(tenants: Tenants, route: str) -> None:
    for key_client in (tenants.theirs, KeyClient(tenants.plane, ADMIN_KEY)):
        assert tenants.ask(key_client, route, tenants.their_things).status_code == 200


# All owners share the declared encoders, and quotas are numbers of the caller (test_budgets.py).
@pytest.mark.parametrize("route", sorted(set(LISTS) - {"GET /v1/encoders", "GET /v1/quotas"}))
def test_lists_show_what_the_owner_has_and_nothing_else(tenants: Tenants, route: str) -> None:
    ours = tenants.ask(tenants.ours, route, {})
    theirs = tenants.ask(tenants.theirs, route, {})
    everything = tenants.ask(KeyClient(tenants.plane, ADMIN_KEY), route, {})
    assert {ours.status_code, theirs.status_code, everything.status_code} == {200}
    assert _items(ours)
    assert _items(theirs)
    assert _items(ours).isdisjoint(_items(theirs))
    assert _items(ours) | _items(theirs) <= _items(everything)
    for name in ("model", "job", "dataset", "upload", "webhook", "key"):
        assert tenants.their_things[name] not in ours.text


def _items(response: httpx.Response) -> set[str]:
    return {json.dumps(item, sort_keys=True) for item in response.json()["items"]}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/datasets", "/v1/events"])
def test_a_filter_by_others_models_finds_nothing(tenants: Tenants, path: str) -> None:
    query = f"{path}?model={tenants.their_things['model']}"
    response = tenants.ours.get(query)
    assert response.status_code in (200, 404)
    assert response.json().get("items", []) == []
    assert tenants.theirs.get(query).json()["items"] != []


def test_bodies_cannot_name_what_others_have(tenants: Tenants) -> None:
    plane, ours, things = tenants.plane, tenants.ours, tenants.their_things
    posted = ours.post("/v1/datasets", json=plane.dataset_body("x", things["model"]))
    assert posted.status_code == 404
    body = plane.dataset_body("y", "our-model", shards=[{"uri": f"upload:{things['upload']}"}])
    assert ours.post("/v1/datasets", json=body).status_code in (404, 422)
    hook = {"url": "https://example.com/x", "model": things["model"]}
    assert ours.post("/v1/webhooks", json=hook).status_code == 404


def test_a_name_that_others_have_is_taken_and_shows_nothing(tenants: Tenants) -> None:
    body = {**ROUTES["POST /v1/models"].body, "name": tenants.their_things["model"]}
    for path in ("/v1/models", "/v1/models/our-model/branch"):
        named = body if path == "/v1/models" else {"name": body["name"], "version": 1}
        response = tenants.ours.post(path, json=named)
        assert response.status_code == 409
        assert "theirs" not in response.text


def test_an_answer_is_repeated_to_its_owner_alone(tenants: Tenants) -> None:
    headers = {"Idempotency-Key": "the-same"}
    body = {"filename": "z.parquet", "bytes": 10}
    first, other = (
        key_client.post("/v1/uploads", json=body, headers=headers)
        for key_client in (tenants.theirs, tenants.ours)
    )
    assert first.status_code == other.status_code == 201
    assert first.json()["id"] != other.json()["id"]
    assert "idempotency-replayed" not in other.headers


def test_the_description_names_the_scope_of_every_operation(tenants: Tenants) -> None:
    document = tenants.plane.app.openapi()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    described = {
        f"{method.upper()} {path}": operation.get("security")
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    expected = {
        route: [{"bearer": [wanted.scope] if wanted.scope else []}]
        for route, wanted in ROUTES.items()
    }
    opened = {route: None for route in described if route.split(" ")[1] in OPEN_PATHS}
    assert described == expected | opened
    assert len(opened) == 3
