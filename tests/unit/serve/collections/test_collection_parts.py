"""Items that are parts of a recording, a film or a document: results say which part, and name each parent once."""

import base64

import pytest

from tests.fakes.letter_encoder import LETTERS, LetterEncoders
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
        ({"end": None}, "has start 4.0 and end None; permitted are both"),
        ({"start": 9}, "has start 9.0 and end 8.0"),
        ({"parent": ""}, "parent"),
    ],
)
def test_a_place_that_cannot_be_is_an_error(
    shared_search: Searching, fields: dict[str, object], words: str
) -> None:
    answer = shared_search.ask("POST", "/things/items", {"items": [part("a", 1, **fields)]})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def listens(searching: Searching) -> Searching:
    """The encoder `letters` hears recordings: each byte is a second, and a window."""
    heard = LETTERS.model_copy(update={"takes": "audio", "window_seconds": 1.0})
    searching.encoders = LetterEncoders(heard)
    searching.app = searching.app_of(searching.args)
    return searching


@pytest.fixture
def listening(searching: Searching) -> Searching:
    return listens(searching)


@pytest.fixture
def shared_listening(shared_search: Searching) -> Searching:
    return listens(shared_search)


def recording(id_: str, seconds: bytes, **fields: object) -> dict[str, object]:
    data = base64.b64encode(seconds).decode()
    return {"id": id_, "modality": "text", "data": data, **fields}


def listed(searching: Searching, revision: int) -> list[str]:
    headers = {"x-min-collection-revision": str(revision)}
    answer = searching.ask("GET", "/things/items?limit=100", headers=headers)
    return sorted(each["id"] for each in answer.json()["data"])


def test_windows_of_a_recording_are_items_with_its_payload_and_their_seconds(
    listening: Searching,
) -> None:
    talk = recording("talk.wav", b"axz", parts=True, payload={"year": 2026})
    answer = listening.ask("POST", "/things/items", {"items": [talk, recording("whole", b"b")]})
    assert answer.json()["rows"] == 4
    names = ["talk.wav#t=0,1", "talk.wav#t=1,2", "talk.wav#t=2,3"]
    assert listed(listening, answer.json()["revision"]) == [*names, "whole"]
    query = {"modality": "text", "data": base64.b64encode(b"x").decode()}
    body = {"query": query, "by_parent": True}
    (first, second) = listening.ask("POST", "/things/search", body).json()["data"]
    assert (first["id"], first["parent"], first["payload"]) == (
        names[1],
        "talk.wav",
        {"year": 2026},
    )
    assert (first["at"], second["id"]) == ({"start": 1.0, "end": 2.0}, "whole")


def test_a_recording_that_is_added_again_or_removed_leaves_no_part(listening: Searching) -> None:
    other = recording("other", b"abc", parts=True)
    listening.add("things", [other, recording("talk", b"abcdef", parts=True)])
    revision = listening.add("things", [recording("talk", b"xy", parts=True)])
    others = [f"other#t={at},{at + 1}" for at in range(3)]
    assert listed(listening, revision) == [*others, "talk#t=0,1", "talk#t=1,2"]
    revision = listening.add("things", [recording("talk", b"x")])
    assert listed(listening, revision) == [*others, "talk"]
    revision = listening.add("things", [recording("talk", b"xy", parts=True)])
    answer = listening.ask("POST", "/things/items/delete", {"ids": ["talk"]})
    # The mean of before is not a part, and goes as well.
    assert listed(listening, answer.json()["revision"]) == others


def test_a_long_recording_is_sent_in_pieces_and_a_piece_replaces_what_came_from_its_start_on(
    listening: Searching,
) -> None:
    first, second = (recording("talk", b"abc", parts=True, start=at) for at in (0, 3))
    names = [f"talk#t={at},{at + 1}" for at in range(6)]
    assert listed(listening, listening.add("things", [first, second])) == names
    listening.add("things", [recording("talk", b"wx", parts=True)])
    revision = listening.add("things", [recording("talk", b"yz", parts=True, start=2)])
    assert listed(listening, revision) == names[:4]
    assert listed(listening, listening.add("things", [second])) == [*names[:3], *names[3:6]]
    answer = listening.ask("POST", "/things/items", {"items": [second, second]})
    assert '"talk#t=3" again' in answer.json()["error"]["message"]


def test_a_recording_without_a_usable_window_is_an_error_and_one_window_of_silence_none(
    listening: Searching,
) -> None:
    revision = listening.add("things", [recording("talk", b"a\0b", parts=True)])
    assert listed(listening, revision) == ["talk#t=0,1", "talk#t=2,3"]
    silence = recording("silence", b"\0\0", parts=True)
    answer = listening.ask("POST", "/things/items", {"items": [silence]})
    assert answer.status_code == 400
    assert "item 'silence' is all zeros" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"parent": "a"}, "has parts, for which it needs data, no parent"),
        ({"start": 1, "end": 2}, "has parts, for which it needs data, no parent, no end"),
        ({"data": None, "text": "a"}, "has parts, for which it needs data"),
        ({"id": "x" * 225}, "id of up to 224"),
        ({"data": ""}, "it is empty"),
    ],
)
def test_parts_of_what_has_none_are_an_error(
    shared_listening: Searching, fields: dict[str, object], words: str
) -> None:
    body = {"items": [recording("talk", b"abc", parts=True) | fields]}
    answer = shared_listening.ask("POST", "/things/items", body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_an_encoder_without_windows_gives_no_parts(listening: Searching) -> None:
    whole = LETTERS.model_copy(update={"takes": "audio"})
    listening.encoders = LetterEncoders(whole)
    listening.app = listening.app_of(listening.args)
    body = {"items": [recording("talk", b"abc", parts=True)]}
    answer = listening.ask("POST", "/things/items", body)
    assert answer.status_code == 400
    assert "has no windows" in answer.json()["error"]["message"]


def included(
    searching: Searching, name: str, revision: int, include: str | None
) -> list[dict[str, object]]:
    """All items by their ids, as the list and a search return them alike."""
    headers = {"x-min-collection-revision": str(revision)}
    address = f"/{name}/items?limit=100" + (f"&include={include}" if include else "")
    listed = searching.ask("GET", address, headers=headers)
    body = {
        "query": {"modality": "text", "data": base64.b64encode(b"x").decode()},
        "top_k": 50,
        "include": include.split(",") if include else [],
    }
    found = searching.ask("POST", f"/{name}/search", body, headers).json()["data"]
    for hit in found:
        del hit["score"]
    everything: list[dict[str, object]] = sorted(
        listed.json()["data"], key=lambda each: str(each["id"])
    )
    assert sorted(found, key=lambda each: str(each["id"])) == everything
    return everything


@pytest.mark.parametrize("vector_type", ["float32", "bit"])
def test_source_and_thumbnail_are_returned_where_they_are_asked_for(
    listening: Searching, vector_type: str
) -> None:
    listening.ask("PUT", "/pictures", {"model": "scenes", "vector_type": vector_type})
    made, sent = (base64.b64encode(b"\xff\xd8\xff" + end).decode() for end in (b"a", b"sent"))
    items = [
        recording("a", b"abc", thumbnail=True, source="https://example.org/a.wav"),
        recording("b", b"abc", thumbnail=sent),
        recording("c", b"ab", thumbnail=True, parts=True, source="file:c.wav"),
        recording("d", b"abc"),
    ]
    revision = listening.add("pictures", items)
    assert not included(listening, "pictures", revision, None)[0].keys() & {"source", "thumbnail"}
    one, two, three, four, five = included(listening, "pictures", revision, "source,thumbnail")
    assert (one["source"], one["thumbnail"]) == ("https://example.org/a.wav", made)
    assert (two["source"], two["thumbnail"]) == (None, sent)
    assert (three["source"], three["thumbnail"]) == ("file:c.wav", made)
    assert four["thumbnail"] == base64.b64encode(b"\xff\xd8\xffb").decode()
    assert (five["source"], five["thumbnail"]) == (None, None)
    assert "thumbnail" not in included(listening, "pictures", revision, "source")[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"thumbnail": "AAAA"}, "permitted is base64 of a JPEG"),
        ({"thumbnail": "/9j/?"}, "permitted is base64 of a JPEG"),
        ({"thumbnail": "/9j/" + "A" * 24_000}, "up to 16384 bytes"),
        (
            {"thumbnail": True, "data": None, "text": "a"},
            "has a thumbnail that is made of data, and no data",
        ),
        ({"source": "x" * 2049}, "source"),
    ],
)
def test_a_thumbnail_that_is_no_small_picture_is_an_error(
    shared_listening: Searching, fields: dict[str, object], words: str
) -> None:
    answer = shared_listening.ask(
        "POST", "/things/items", {"items": [recording("a", b"a") | fields]}
    )
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_only_what_can_be_included_is(shared_listening: Searching) -> None:
    answer = shared_listening.ask("GET", "/things/items?include=feature")
    assert answer.status_code == 400
    assert "permitted are source, thumbnail" in answer.json()["error"]["message"]
