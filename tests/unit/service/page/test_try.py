"""Trying a model, and browsing collections: what is asked of the endpoint, and how its answers are shown."""

import re
from base64 import b64encode

import pytest

from cmcl.contract.api.endpoint import ItemsResponse, SearchResults
from service.page.try_it import MOST_FILE_BYTES
from tests.fakes.endpoint import FakeEndpoint, found
from tests.fakes.responses import body as new_body
from tests.unit.service.page.browser import Browser
from tests.unit.service.page.test_text_from_outside import skeleton
from tests.unit.service.page.trying import ROWS

PICTURE = "data:image/png;base64,iVBORw0KGgo="


def test_the_form_offers_collections_of_the_model_and_versions(trier: Browser) -> None:
    page = trier.get("/ui/try")
    assert page.status_code == 200
    assert 'value="collection:pictures"' in page.text
    assert "collection:others" not in page.text
    assert '<option value="1">v1</option>' in page.text
    assert 'name="text"' in page.text
    assert "data-drop" in page.text
    assert "Nothing was searched for yet" in page.text


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
    assert "<strong>2 of the ten best</strong> are the same in both versions" in page
    for version in (1, 2):
        (body,) = endpoint.bodies(f"/v1/models/scenes@{version}/held-out/ds-1/search")
        assert body == {"row": 1, "modality": "text", "top_k": 10}


def test_rows_of_a_dataset_can_be_picked(trier: Browser) -> None:
    page = trier.get("/ui/try?where=dataset:ds-1").text
    assert "&amp;modality=image&amp;row=1&amp;" in page or "&modality=image&row=1&" in page
    assert "cat" in page


@pytest.mark.parametrize(
    ("numbers", "sent"),
    [("1, 2.5 -3e2", [1.0, 2.5, -300.0]), ("[1,2]", [1.0, 2.0])],
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


def test_a_file_that_no_modality_takes_is_refused_with_what_they_take(trier: Browser) -> None:
    path = "/ui/try/file?model=scenes&modality=image&media=audio&where=collection:pictures"
    answer = trier.post(path, content=b"RIFF", headers={"Content-Type": "application/octet-stream"})
    assert answer.status_code == 422
    assert (
        "no modality of this model takes audio: image takes image, text takes text" in answer.text
    )


@pytest.mark.parametrize(
    ("query", "message"),
    [
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
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_query_that_cannot_be_asked_is_refused(
    trier: Browser, endpoint: FakeEndpoint, query: dict[str, str], message: str
) -> None:
    answer = trier.request("GET", "/ui/try", params={"model": "scenes", **query})
    assert answer.status_code == 422
    assert message in answer.text
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


def test_collections_are_listed_and_browsed(trier: Browser, endpoint: FakeEndpoint) -> None:
    page = trier.get("/ui/collections").text
    assert "pictures" in page
    assert "42" in page, "items of both modalities"
    items = [{"id": f"item-{n}", "modality": "image", "payload": {"n": n}} for n in range(50)]
    answer = new_body(ItemsResponse, data=items, model="scenes@2", rows=120, next_offset=50)
    endpoint.answers["GET /v1/collections/pictures/items"] = answer
    page = trier.get("/ui/collections/pictures?modality=image&offset=0").text
    assert "item-49" in page
    assert "120 items" in page
    assert "offset=50" in page
    assert endpoint.asked[-1].url.params["modality"] == "image"
    assert trier.get("/ui/collections/nothing").status_code == 404
    assert trier.get("/ui/collections/%3Cb%3E").status_code == 422
