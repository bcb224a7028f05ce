"""Try it: what is asked of the endpoint, what is shown of its answers, and what is said where it fails."""

import asyncio
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from cmcl.contract.api.access import SESSION_TYPE, SNAPSHOT_TYPE, KeySnapshot, SessionToken
from cmcl.contract.api.endpoint import (
    CollectionList,
    ItemsResponse,
    SearchResults,
    SearchStatus,
)
from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.modality import ModalityPair
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from service.auth.sessions import SessionTokens
from service.auth.signing import make_pair, sign
from service.core.principal import LOCAL
from service.core.setting_values import read_signing_key
from service.page.endpoint import Endpoint, EndpointProblem
from service.page.rendering import Visitor
from service.page.try_it import MOST_FILE_BYTES
from tests.fakes.control_plane import ControlPlane
from tests.fakes.endpoint import FakeEndpoint, collection, error, found
from tests.fakes.feature_shards import feature_table, write_shard
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.responses import body
from tests.fakes.responses import body as new_body
from tests.unit.serve.collections.conftest import NamedCallers, Searching
from tests.unit.serve.collections.conftest import opened as opened_replica
from tests.unit.serve.conftest import MODEL
from tests.unit.service.auth.key_client import ADMIN_KEY, EVERY_SCOPE, KeyClient
from tests.unit.service.page.browser import Browser
from tests.unit.service.page.test_documents import skeleton
from tests.unit.service.page.trying import ROWS, URL, make_model, open_plane
from workers.files.shards import describe_shard
from workers.serve.auth import SignedKeys, read_public_keys, verified

PICTURE = "data:image/png;base64,iVBORw0KGgo="


def test_a_text_is_searched_for_in_a_collection(trier: Browser, endpoint: FakeEndpoint) -> None:
    endpoint.answers["POST /v1/collections/pictures/search"] = found(
        "scenes@2", "img-1", revision=7, exact=True
    )
    page = trier.get(
        "/ui/try?modality=text&text=a+red+%3Cchair%3E&where=collection:pictures&among=image"
    )
    assert page.status_code == 200
    assert "img-1" in page.text
    assert "scenes@2" in page.text
    assert "revision 7" in page.text
    assert "0.900" in page.text
    term = re.search(r'popovertarget="(x-\w+)">Score<', page.text)
    assert term is not None
    explanation = page.text.partition(f'id="{term[1]}"')[2].partition("</div>")[0]
    assert "Cosine of the two vectors" in explanation
    assert "a red &lt;chair&gt;" in page.text
    (body,) = endpoint.bodies("/v1/collections/pictures/search")
    assert body["query"] == {"modality": "text", "text": "a red <chair>"}
    assert body["modalities"] == ["image"]


def test_two_versions_are_shown_side_by_side(trier: Browser, endpoint: FakeEndpoint) -> None:
    for version, ids in ((1, ("a", "b", "c")), (2, ("b", "c", "d"))):
        path = f"/v1/models/scenes@{version}/held-out/ds-1"
        endpoint.answers[f"GET {path}"] = ROWS
        more = {"rows": 9, "partner": {"rank": version, "score": 0.5}}
        endpoint.answers[f"POST {path}/search"] = found(f"scenes@{version}", *ids, **more)
    page = trier.get("/ui/try?where=dataset:ds-1&row=1&modality=text&version=1&other=2").text
    assert "scenes@1" in page
    assert "scenes@2" in page
    assert "its partner is first" in page
    assert "its partner is number 2" in page
    assert "<strong>2 of the 3 best</strong> are the same in both versions" in page
    for version in (1, 2):
        (body,) = endpoint.bodies(f"/v1/models/scenes@{version}/held-out/ds-1/search")
        assert body == {"row": 1, "modality": "text", "top_k": 10}


@pytest.mark.parametrize(
    ("numbers", "sent"), [("1, 2.5 -3e2", [1.0, 2.5, -300.0]), ("[1,2]", [1.0, 2.0])]
)
def test_numbers_are_a_feature(
    trier: Browser, endpoint: FakeEndpoint, numbers: str, sent: list[float]
) -> None:
    endpoint.answers["POST /v1/models/scenes/held-out/ds-1/search"] = found("scenes@2", rows=2)
    query = {"modality": "image", "numbers": numbers, "where": "dataset:ds-1"}
    page = trier.request("GET", "/ui/try", params=query)
    assert "There is nothing to find here" in page.text
    (body,) = endpoint.bodies("/v1/models/scenes/held-out/ds-1/search")
    assert body["query"] == {"modality": "image", "feature": sent}


def test_what_no_version_has_learned_is_named_and_not_offered(trier: Browser) -> None:
    page = trier.get("/ui/try?model=scenes")
    assert "Not learned by v2: place" in page.text
    assert '<option value="place"' not in page.text
    refused = trier.get("/ui/try?model=scenes&modality=place&numbers=1+2&where=dataset:ds-1")
    assert refused.status_code == 422


@pytest.mark.parametrize(
    ("address", "content", "query"),
    [
        ("try/file?modality=text&media=image", b"\x89PNG", "image"),
        ("try/file?modality=text", b"\x89PNG", "image"),
        ("try?modality=image&text=a+tram", None, "text"),
    ],
)
def test_a_file_and_a_text_decide_their_modality(
    trier: Browser, endpoint: FakeEndpoint, address: str, content: bytes | None, query: str
) -> None:
    endpoint.answers["POST /v1/collections/pictures/search"] = found("scenes@2", "x", revision=1)
    path = f"/ui/{address}&model=scenes&where=collection:pictures"
    headers = {"Content-Type": "application/octet-stream"}
    answer = (
        trier.get(path) if content is None else trier.post(path, content=content, headers=headers)
    )
    assert answer.status_code == 200, answer.text
    (body,) = endpoint.bodies("/v1/collections/pictures/search")
    assert body["query"]["modality"] == query


REFUSED: list[tuple[dict[str, str], str]] = [
    ({"text": "x" * 10_000}, "at most 2000"),
    ({"text": "x", "modality": "smell"}, "permitted: image, text"),
    ({"text": "x", "numbers": "1", "modality": "text"}, "give one of"),
    *(
        ({"numbers": numbers, "modality": "text"}, "give finite numbers")
        for numbers in ("one", "nan 1", "1 -inf", "1e999")
    ),
    ({"numbers": "1 " * 20_000, "modality": "text"}, "at most 30000"),
    ({"row": "1", "modality": "text", "where": "collection:pictures"}, "choose the dataset"),
    ({"row": "-1", "modality": "text"}, "row"),
    ({"text": "x", "modality": "text"}, "choose where to search"),
    ({"where": "collection:../../etc"}, "where"),
    ({"version": "0"}, "version"),
    ({"model": "<script>"}, "model"),
]


def test_a_query_that_cannot_be_asked_is_refused(trier: Browser, endpoint: FakeEndpoint) -> None:
    for query, message in REFUSED:
        answer = trier.request("GET", "/ui/try", params={"model": "scenes", **query})
        assert (answer.status_code, message in answer.text) == (422, True), query
    assert not [each for each in endpoint.asked if each.method == "POST"]


def test_a_picture_is_sent_as_it_is(trier: Browser, endpoint: FakeEndpoint) -> None:
    endpoint.answers["POST /v1/collections/pictures/search"] = found("scenes@2", "x", revision=1)
    address = (
        "/ui/try/file?model=scenes&modality=image&where=collection:pictures&fragment=live_results"
    )
    headers = {"Content-Type": "application/octet-stream"}
    answer = trier.post(address, content=b"\x89PNG...", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.text.strip().startswith('<div id="live_results"')
    (body,) = endpoint.bodies("/v1/collections/pictures/search")
    assert body["query"] == {"modality": "image", "data": b64encode(b"\x89PNG...").decode()}
    empty = trier.post(address, content=b"", headers={**headers, "Content-Length": "0"})
    assert empty.status_code == 422
    for size in (MOST_FILE_BYTES + 1, MOST_FILE_BYTES):
        large = trier.post(address, content=b"x" * size, headers=headers)
        assert (large.status_code == 413) is (size > MOST_FILE_BYTES)


HOSTILE = {
    "text": "<img src=x onerror=alert(1)>",
    "picture": PICTURE,
    "svg": "data:image/svg+xml;base64,PHN2Zz4=",
    "far": "https://evil.example/x.png",
    "code": "javascript:alert(1)",
    "\N{RIGHT-TO-LEFT OVERRIDE}key": "\N{PILE OF POO}" * 50,
    "deep": {"a": ["</td>", 1]},
}


def test_what_items_say_is_shown_as_text_and_only_their_own_pictures(
    trier: Browser, endpoint: FakeEndpoint
) -> None:
    name = "</table><script>alert(1)</script>"
    hit = {"id": name, "modality": "image", "score": 1.0, "payload": HOSTILE}
    # What is no picture is not shown as one.
    thumbnail = '/9j/"><script>alert(1)</script>'
    hit["thumbnail"] = thumbnail
    answer = new_body(SearchResults, data=[hit], model="scenes@2")
    endpoint.answers["POST /v1/collections/pictures/search"] = answer
    items = new_body(ItemsResponse, data=[hit], model="scenes@2")
    endpoint.answers["GET /v1/collections/pictures/items"] = items
    for path in (
        "/ui/try?modality=text&text=x&where=collection:pictures",
        "/ui/collections/pictures",
    ):
        page = trier.get(path)
        assert page.status_code == 200
        parsed = skeleton(page.text)
        pictures = [address for address in parsed.addresses if address.startswith("data:")]
        assert pictures == [PICTURE]
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text
        assert not [each for each in parsed.addresses if "evil" in each or "javascript" in each]
        assert "&lt;img src=x onerror=alert(1)&gt;" in page.text


def test_items_are_tiles_with_their_thumbnails_or_their_words(
    trier: Browser, endpoint: FakeEndpoint
) -> None:
    small = b64encode(b"\xff\xd8\xff\xe0 a JPEG").decode()
    heard = b64encode(b"\xff\xf3\x88\xc4 an MP3").decode()
    hits = [
        {"id": "apple", "modality": "image", "score": 0.9, "payload": None, "thumbnail": small},
        {"id": "t-1", "modality": "text", "score": 0.8, "payload": {"caption": "a red fruit"}},
        {"id": "bell", "modality": "audio", "score": 0.7, "payload": None, "thumbnail": heard},
        {"id": "odd", "modality": "audio", "score": 0.6, "payload": None, "thumbnail": '//OI">'},
    ]
    endpoint.answers["POST /v1/collections/pictures/search"] = new_body(
        SearchResults, data=hits, model="scenes@2"
    )
    page = trier.get("/ui/try?text=x&where=collection:pictures").text
    assert endpoint.bodies("/v1/collections/pictures/search")[0]["include"] == ["thumbnail"]
    assert f'src="data:image/jpeg;base64,{small}" alt="Picture of apple"' in page
    assert page.count("data-like") == 1, "a picture alone is searched for again"
    sounds = re.findall(r'<audio controls preload="none" src="(.+?)" aria-label="(.+?)"', page)
    assert sounds == [(f"data:audio/mpeg;base64,{heard}", "Play bell")]
    quoted = page.partition("<blockquote")[2].partition("</blockquote>")[0]
    assert "a red fruit" in quoted


def test_collections_are_listed_and_browsed(trier: Browser, endpoint: FakeEndpoint) -> None:
    page = trier.get("/ui/collections").text
    assert "pictures" in page
    assert "42" in page, "items of both modalities"
    assert "computed" not in page, "no other version is being made"
    items = [{"id": f"item-{n}", "modality": "image", "payload": {"n": n}} for n in range(50)]
    answer = new_body(ItemsResponse, data=items, model="scenes@2", rows=120, next_offset=50)
    endpoint.answers["GET /v1/collections/pictures/items"] = answer
    page = trier.get("/ui/collections/pictures?modality=image&offset=0").text
    assert "item-49" in page
    assert "120 items" in page
    assert "offset=50" in page
    assert endpoint.asked[-1].url.params["modality"] == "image"
    searched = {"version": 2, "revision": 7, "rows": {"image": 120}, "progress": 0.4}
    searched |= {"seconds_left": 41.6}
    endpoint.answers["GET /v1/collections/pictures"] = collection(
        "pictures", searched=new_body(SearchStatus, **searched), text_fields=["title", "caption"]
    )
    page = trier.get("/ui/collections/pictures").text
    assert 'value="0.4000"' in page, "progress of the vectors of version 3"
    assert "42 s left" in page
    assert "title, caption" in page
    assert trier.get("/ui/collections/nothing").status_code == 404
    assert trier.get("/ui/collections/%3Cb%3E").status_code == 422


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


DATASET = f"{MODEL}-data-1"
# As the replica's.
MODALITIES = {"image": 5, "text": {"encoder": "letters"}}
LETTERS = {"name": "letters", "kind": "synthetic", "takes": "text", "width": 4}


@dataclass(frozen=True)
class Stack:
    """A control plane and a replica, with keys."""

    plane: ControlPlane
    replica: Searching
    operator: KeyClient

    def person(self, owner: str) -> Browser:
        """A browser with all scopes of that owner."""
        browser = Browser(self.plane)
        browser.sign_in(self.operator.make_key("ann", EVERY_SCOPE, owner=owner)["key"])
        return browser


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    store = FlakyStore(LocalStore(folder / "endpoint"))
    plane = ControlPlane(
        folder / "service", auth="on", admin_key=ADMIN_KEY, encoders=[LETTERS], lease_seconds=1
    )
    operator = KeyClient(plane, ADMIN_KEY)
    plane.client = operator.client_with_key("maker", owner="lab")
    plane.create_model(MODEL, width=6, modalities=MODALITIES)
    shard = plane.shard("pairs", feature_table(16, widths=(5, 4)))
    plane.run_to_end(plane.post_dataset("one", MODEL, shards=[shard]))
    with opened_replica(store) as replica:
        prepare(replica, folder)
        signing_key = read_signing_key(PAIR.private)
        snapshot = KeySnapshot(serial=1, issued_at=datetime.now(UTC), keys=())
        store.put(layout.key_snapshot(), sign(snapshot, SNAPSHOT_TYPE, signing_key).encode())
        access = SignedKeys(read_public_keys(PAIR.public), clock=lambda: plane.clock().timestamp())
        access.refresh(store)
        replica.access = access
        app = replica.app_of(replica.args)
        plane.app.state.endpoint = Endpoint(
            "http://127.0.0.1", SessionTokens(signing_key, plane.clock), httpx.ASGITransport(app)
        )
        yield Stack(plane, replica, operator)
    plane.close()


def prepare(replica: Searching, folder: Path) -> None:
    """Held-out rows, and items of the owner `lab`."""
    path = folder / "evaluation.parquet"
    shard = describe_shard(path, write_shard(path, feature_table(9, widths=(5, 4))).uri)
    manifest = DatasetManifest(
        dataset=DATASET,
        model=MODEL,
        name="one",
        pair=ModalityPair(first="image", second="text"),
        shards=(shard,),
        evaluation_shards=(shard,),
    )
    replica.store.put(layout.dataset_manifest(DATASET), manifest.model_dump_json().encode())
    replica.point(generation=2, version=1, owner="lab")
    replica.poll()
    items = [
        {"id": word, "modality": "text", "text": word, "payload": {"word": word}}
        for word in ("aaa", "eee", "iii")
    ]
    replica.access = NamedCallers()
    replica.app = replica.app_of(replica.args)
    headers = {"authorization": "lab"}
    created = replica.ask("PUT", "/words", {"model": MODEL}, headers)
    assert created.status_code == 200, created.text
    added = replica.ask("POST", "/words/items", {"items": items}, headers)
    assert added.status_code == 200, added.text
    waits = {**headers, "x-min-collection-revision": str(added.json()["revision"])}
    query = {"query": {"modality": "text", "text": "aaa"}}
    assert replica.ask("POST", "/words/search", query, waits).status_code == 200


def test_held_out_rows_are_picked_and_found(stack: Stack) -> None:
    person = stack.person("lab")
    page = person.get(f"/ui/try?model={MODEL}&where=dataset:{DATASET}")
    assert "row-8" in page.text
    address = f"/ui/try?model={MODEL}&where=dataset:{DATASET}&row=3&modality=image"
    page = person.get(f"{address}&version=1&other=1")
    assert "its partner" in page.text
    assert "<strong>9 of the 9 best</strong>" in page.text
    assert "of 9 rows" in page.text


def test_another_owner_finds_nothing_of_it(stack: Stack) -> None:
    stranger = stack.person("elsewhere")
    assert "words" not in stranger.get("/ui/collections").text
    assert stranger.get("/ui/collections/words").status_code == 404
    assert stranger.get(f"/ui/try?model={MODEL}").status_code == 404


def test_a_mistake_is_explained_by_the_endpoint(stack: Stack) -> None:
    person = stack.person("lab")
    search = f"model={MODEL}&where=dataset:{DATASET}"
    page = person.get(f"/ui/try?{search}&modality=image&numbers=1,2")
    assert page.status_code == 200
    results = page.text.partition('id="live_results"')[2].partition("</section>")[0]
    assert "5" in results
    assert "query[0]" not in results.lower(), "no field of the API"
    page = person.get(f"/ui/try?{search}&modality=image&row=100")
    assert "permitted are 0 to 8" in page.text.lower()
