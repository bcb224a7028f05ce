"""Items of a collection: listed page by page, and numbers in their payloads.

Numbers that other systems would change are rejected, others are kept.
"""

import pytest

from tests.unit.serve.collections.conftest import Searching
from tests.unit.serve.collections.test_collection_routes import image_query, item


def listed(searching: Searching, revision: int, query: str = "") -> dict[str, object]:
    headers = {"x-min-collection-revision": str(revision)}
    response = searching.ask("GET", f"/things/items{query}", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["x-collection-revision"] == str(revision)
    page: dict[str, object] = response.json()
    return page


def test_pages_have_every_item_once_with_its_payload(searching: Searching) -> None:
    added = [item("image", n, payload={"n": n}) for n in range(7)]
    added += [item("text", n) for n in range(5)]
    revision = searching.add("things", added)
    found: list[dict[str, object]] = []
    offset: object = 0
    while offset is not None:
        page = listed(searching, revision, f"?limit=5&offset={offset}")
        assert (page["rows"], page["revision"], page["model"]) == (12, revision, "scenes@1")
        assert isinstance(page["data"], list)
        found += page["data"]
        offset = page["next_offset"]
    assert sorted(str(each["id"]) for each in found) == sorted(each["id"] for each in added)
    payloads = {each["id"]: each["payload"] for each in found}
    assert payloads["image-3"] == {"n": 3}
    assert payloads["text-3"] is None


def test_one_modality_is_listed_alone_and_removed_items_are_not(searching: Searching) -> None:
    searching.add("things", [item("image", n) for n in range(4)] + [item("text", 1)])
    removal = searching.ask("POST", "/things/items/delete", {"ids": ["image-1", "image-3"]})
    page = listed(searching, removal.json()["revision"], "?modality=image")
    assert isinstance(page["data"], list)
    assert sorted(each["id"] for each in page["data"]) == ["image-0", "image-2"]
    assert (page["rows"], page["next_offset"]) == (2, None)
    beyond = listed(searching, removal.json()["revision"], "?offset=100")
    assert (beyond["data"], beyond["next_offset"]) == ([], None)


def test_items_are_read_by_their_ids(searching: Searching) -> None:
    added = [item("image", n) for n in range(4)] + [
        item("text", 1),
        {**item("text", 2), "id": 'it\'s "it"'},
    ]
    revision = searching.add("things", added)
    page = listed(searching, revision, "?id=image-2&id=it's%20%22it%22&id=none&limit=2")
    assert isinstance(page["data"], list)
    assert {each["id"] for each in page["data"]} == {"image-2", 'it\'s "it"'}
    assert (page["rows"], page["next_offset"]) == (6, None)
    page = listed(searching, revision, "?id=image-2&id=text-1&modality=text")
    assert [each["id"] for each in page["data"]] == ["text-1"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "query",
    [
        "&".join(["id=x"] * 201),
        "limit=0",
        "limit=201",
        "limit=-1",
        "offset=x",
        "offset=1.0",
        "modality=smell",
    ],
)
def test_a_wrong_page_is_refused(shared_search: Searching, query: str) -> None:
    assert shared_search.ask("GET", f"/things/items?{query}").status_code == 400


def test_a_collection_that_does_not_exist_has_no_items(shared_search: Searching) -> None:
    assert shared_search.ask("GET", "/nothing/items").status_code == 404


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [1, 10**20], {"a": [{"b": 10**20}]}])
def test_integers_beyond_64_bits_are_refused_at_any_depth(
    shared_search: Searching, value: object
) -> None:
    response = shared_search.ask(
        *("POST", "/things/items", {"items": [item("image", 1, payload={"n": value})]})
    )
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "items"
    assert error["message"].startswith("items[0].payload cannot be stored: Integer exceeds 64-bit")
    assert "permitted are whole numbers of up to 64 bits" in error["message"]


def test_all_64_bit_integers_survive_a_round_trip(searching: Searching) -> None:
    payload = {"n": 2**64 - 1, "m": [-(2**63), {"k": 2**53 + 1}]}
    revision = searching.add("things", [item("image", 1, payload=payload)])
    searching.found("things", revision, query=image_query(1))
    response = searching.ask("POST", "/things/search", {"query": image_query(1)})
    assert response.json()["data"][0]["payload"] == payload
