"""Items that are parts of a recording, a film or a document: results say which part, and name each parent once."""

import pytest

from tests.unit.serve.collections.conftest import Searching
from tests.unit.serve.collections.scene import feature


def part(parent: str | None, number: int, /, **fields: object) -> dict[str, object]:
    """A part of four seconds, whose feature follows from its number."""
    item = {"modality": "image", "feature": feature("image", number).tolist()}
    if parent is None:
        return {"id": f"whole-{number}", **item, **fields}
    place = {"parent": parent, "start": 4.0 * number, "end": 4.0 * number + 4}
    return {"id": f"{parent}-{number}", **item, **place, **fields}


@pytest.fixture
def parts(searching: Searching) -> Searching:
    """Two talks of 20 parts each, and one item that is no part."""
    for parent, first in (("a", 0), ("b", 20)):
        searching.add("things", [part(parent, number) for number in range(first, first + 20)])
    searching.add("things", [part(None, 40)])
    return searching


def search(searching: Searching, number: int, **body: object) -> list[dict[str, object]]:
    query = {"modality": "image", "feature": feature("image", number).tolist()}
    headers = {"x-min-collection-revision": "4"}
    answer = searching.ask("POST", "/things/search", {"query": query, **body}, headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, object]] = answer.json()["data"]
    return found


def test_a_part_is_found_with_its_parent_and_its_place(parts: Searching) -> None:
    best = search(parts, 23, top_k=1)[0]
    assert (best["id"], best["parent"]) == ("b-23", "b")
    assert best["at"] == {"start": 92.0, "end": 96.0}
    assert search(parts, 40, top_k=1)[0]["at"] is None


@pytest.mark.parametrize("number", [3, 23, 40])
def test_each_parent_is_found_once_by_its_best_part(parts: Searching, number: int) -> None:
    every = search(parts, number, top_k=50)
    grouped = search(parts, number, top_k=3, by_parent=True)
    best: dict[object, object] = {}
    for hit in every:
        best.setdefault(hit["parent"] or hit["id"], hit["id"])
    assert [hit["id"] for hit in grouped] == [*best.values()]
    assert {hit["parent"] for hit in grouped} == {"a", "b", None}


def test_items_are_listed_with_their_places(parts: Searching) -> None:
    listed = parts.ask("GET", "/things/items?limit=2").json()["data"]
    assert [each["at"] for each in listed] == [
        {"start": 0.0, "end": 4.0},
        {"start": 4.0, "end": 8.0},
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"start": -1}, "start"),
        ({"end": None}, "start and end are 4.0 and None"),
        ({"start": 9}, "start and end are 9.0 and 8.0"),
        ({"parent": ""}, "parent"),
    ],
)
def test_a_place_that_cannot_be_is_an_error(
    searching: Searching, fields: dict[str, object], words: str
) -> None:
    answer = searching.ask("POST", "/things/items", {"items": [part("a", 1, **fields)]})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
