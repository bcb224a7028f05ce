"""An endpoint that fails or is not there, and what an owner must not see through it."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from cmcl.contract.access import SESSION_TYPE, SessionToken
from cmcl.contract.api.endpoint import CollectionList, ItemsResponse
from service.auth.key_snapshot import make_pair
from service.auth.sessions import SessionTokens
from service.core.principal import LOCAL
from service.core.setting_values import read_signing_key
from service.page.endpoint import Endpoint, EndpointProblem
from service.page.rendering import Visitor
from tests.fakes.control_plane import ControlPlane
from tests.fakes.endpoint import FakeEndpoint, error, found
from tests.fakes.responses import body
from tests.unit.service.auth.key_client import EVERY_SCOPE, KeyClient
from tests.unit.service.page.browser import Browser
from tests.unit.service.page.trying import URL, make_model, open_plane
from workers.serve.auth import read_public_keys, verified

PAIR = make_pair()


def fail_with(answer: object) -> Callable[[FakeEndpoint], None]:
    def prepare(fake: FakeEndpoint) -> None:
        for path in ("GET /v1/collections", "POST /v1/models/scenes/held-out/ds-1/search"):
            fake.answers[path] = answer  # type: ignore[assignment]

    return prepare


FAILURES: dict[str, tuple[Callable[[FakeEndpoint], None], str, str]] = {
    "down": (lambda fake: setattr(fake, "down", True), "does not answer", "CMCL_EMBEDDINGS_URL"),
    "keys": (
        fail_with(error(401, "the key is not valid")),
        "The key is not valid.",
        "CMCL_SNAPSHOT_SIGNING_KEY",
    ),
    "host": (fail_with(error(403, "the host is not permitted")), "not permitted", "allowed_hosts"),
    "busy": (fail_with(error(429, "too many")), "Too many.", "Try again"),
    "without usearch": (
        fail_with(error(501, "runs without collections")),
        "Runs without",
        "usearch",
    ),
    "an error without words": (fail_with(httpx.Response(500, text="<html>")), "answered 500", ""),
    "something else": (
        fail_with(httpx.Response(200, text="<html>")),
        "not understood",
        "same release",
    ),
    "another form": (fail_with({"data": 1}), "not understood", "same release"),
    "endless": (
        fail_with(lambda request: httpx.Response(200, content=b"x" * (5 << 20))),
        "larger than a page can show",
        "",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_is_wrong_with_the_endpoint_is_said(
    trier: Browser, endpoint: FakeEndpoint, name: str
) -> None:
    prepare, message, advice = FAILURES[name]
    prepare(endpoint)
    for path in ("/ui/try?modality=text&text=x&where=dataset:ds-1", "/ui/collections"):
        page = trier.get(path)
        assert page.status_code == 200
        assert message in page.text
        assert advice in page.text
        assert "embeddings.internal" not in page.text
        assert "Traceback" not in page.text


def test_an_endpoint_that_is_slow_is_not_waited_for(endpoint: FakeEndpoint) -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return httpx.Response(200)

    asked = Endpoint(URL, None, httpx.MockTransport(slow)).ask(
        Visitor(LOCAL), CollectionList, "/v1/collections", seconds=0.05
    )
    with pytest.raises(EndpointProblem, match=r"within 0.05 seconds"):
        asyncio.run(asked)


def test_without_an_address_the_page_says_what_to_set(plane: ControlPlane) -> None:
    person = Browser(plane)
    plane.run_to_end(plane.post_dataset())
    for path in ("/ui/try", "/ui/collections", "/ui/collections/x"):
        page = person.get(path)
        assert page.status_code == 200
        assert "Set CMCL_EMBEDDINGS_URL" in page.text


def test_without_a_live_version_the_page_says_what_to_do(plane: ControlPlane) -> None:
    page = Browser(plane).get("/ui/try").text
    assert "No model has a live version yet" in page


@pytest.fixture
def tenants(tmp_path: Path, endpoint: FakeEndpoint) -> Iterator[tuple[ControlPlane, KeyClient]]:
    plane = open_plane(tmp_path, endpoint, auth="on", admin_key="o" * 40)
    operator = KeyClient(plane, "o" * 40)
    for owner, model in (("ours", "scenes"), ("theirs", "their-model")):
        plane.client = operator.client_with_key(f"{owner}-maker", owner=owner)
        make_model(plane, model)
    yield plane, operator
    plane.close()


def sign_in(operator: KeyClient, owner: str, scopes: set[str]) -> Browser:
    browser = Browser(operator.plane)
    browser.sign_in(operator.make_key("ann", sorted(scopes), owner=owner)["key"])
    return browser


def test_a_session_without_embed_asks_nothing(
    tenants: tuple[ControlPlane, KeyClient], endpoint: FakeEndpoint
) -> None:
    person = sign_in(tenants[1], "ours", set(EVERY_SCOPE) - {"embed"})
    page = person.get("/ui/try?model=scenes&modality=text&text=x&where=dataset:ds-1")
    assert "does not have the scope embed" in page.text
    answer = person.post("/ui/try/file?model=scenes&modality=image", content=b"x")
    assert answer.status_code == 403
    assert endpoint.asked == []


def test_without_keys_at_the_endpoint_others_see_nothing_of_an_owner(
    tenants: tuple[ControlPlane, KeyClient], endpoint: FakeEndpoint
) -> None:
    """The endpoint itself would show everything to everyone."""
    endpoint.answers["POST /v1/collections/hidden-things/search"] = found(
        "their-model@1", "secret", revision=1
    )
    endpoint.answers["GET /v1/collections/hidden-things/items"] = body(ItemsResponse)
    person = sign_in(tenants[1], "ours", set(EVERY_SCOPE))
    assert "hidden-things" not in person.get("/ui/collections").text
    assert person.get("/ui/collections/hidden-things").status_code == 404
    search = "modality=text&text=x&where=collection:hidden-things"
    page = person.get(f"/ui/try?model=scenes&{search}")
    assert "secret" not in page.text
    assert "There is no collection" in page.text
    assert person.get("/ui/try?model=their-model").status_code == 404
    answer = person.post("/ui/try/file?model=their-model&modality=image", content=b"x")
    assert answer.status_code == 404
    assert not [each for each in endpoint.asked if each.method == "POST"]


def test_the_endpoint_is_told_the_owner_and_not_the_cookie(
    tenants: tuple[ControlPlane, KeyClient], endpoint: FakeEndpoint
) -> None:
    plane, operator = tenants
    tokens = SessionTokens(read_signing_key(PAIR.private), lambda: datetime.now(UTC))
    plane.app.state.endpoint = Endpoint(URL, tokens, endpoint.transport)
    for browser, owner in (
        (sign_in(operator, "ours", set(EVERY_SCOPE)), "ours"),
        (Browser(plane), None),
    ):
        if owner is None:
            browser.sign_in(operator.key or "")
        browser.get("/ui/collections")
        request = endpoint.asked[-1]
        scheme, _, text = request.headers["authorization"].partition(" ")
        assert scheme == "Bearer"
        token = verified(text.encode(), read_public_keys(PAIR.public), SessionToken, SESSION_TYPE)
        (cookie,) = browser.cookies.values()
        assert (token.owner, token.session) == (owner, cookie.partition(".")[0])
        assert cookie.partition(".")[2] not in str(request.headers)
        assert "cookie" not in request.headers
        assert "origin" not in request.headers


def test_a_redirect_of_the_endpoint_is_not_followed(trier: Browser, endpoint: FakeEndpoint) -> None:
    elsewhere = httpx.Response(307, headers={"Location": "http://169.254.169.254/"})
    endpoint.answers["GET /v1/collections"] = elsewhere
    assert "answered 307" in trier.get("/ui/collections").text
    assert {each.url.host for each in endpoint.asked} == {"embeddings.internal"}
