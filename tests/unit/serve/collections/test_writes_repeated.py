"""A repeated write, by a proxy or by its client, is executed once."""

import threading

import pytest

from tests.unit.serve.collections.conftest import NamedCallers, Searching
from tests.unit.serve.collections.scene import EVERYONE, Scene, entries
from workers.serve.collections.columns import ColumnBuilder

BY_CLIENT = {"idempotency-key": "one"}
BY_PROXY = {"x-unique-id": "4d1c"}


def thing(payload: int) -> dict[str, object]:
    feature = [1.0, 2, 3, 4, 5]
    item = {"id": "x", "modality": "image", "feature": feature, "payload": {"n": payload}}
    return {"items": [item]}


def post(searching: Searching, body: object, headers: dict[str, str]) -> int:
    answer = searching.ask("POST", "/things/items", body, headers)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["revision"])


def payload(searching: Searching, revision: int) -> object:
    query = {"modality": "image", "feature": [1.0, 2, 3, 4, 5]}
    headers = {"x-min-collection-revision": str(revision)}
    found = searching.ask("POST", "/things/search", {"query": query}, headers).json()["data"]
    (hit,) = found
    return hit["payload"]["n"]


@pytest.mark.parametrize("headers", [BY_CLIENT, BY_PROXY], ids=["by its client", "by the proxy"])
def test_a_write_sent_again_undoes_nothing_that_came_after_it(
    searching: Searching, headers: dict[str, str]
) -> None:
    first = post(searching, thing(1), headers)
    later = post(searching, thing(2), {})
    again = post(searching, thing(1), headers)
    assert first < later
    assert again >= first
    assert payload(searching, max(again, later)) == 2
    assert searching.collections.registry.existing("things", EVERYONE).head.revision == later


def test_an_unknown_request_is_never_taken_for_another(searching: Searching) -> None:
    searching.access = NamedCallers()
    searching.app = searching.app_of(searching.args)
    first = post(searching, thing(1), BY_CLIENT)
    others = [
        post(searching, thing(2), BY_CLIENT),
        post(searching, thing(1), {"idempotency-key": "two"}),
        post(searching, thing(1), {"x-unique-id": "one"}),
        post(searching, thing(1), {}),
        post(searching, thing(1), {}),
    ]
    assert others == list(range(first + 1, first + 6))


def test_the_id_that_counts_is_the_one_the_proxy_added_last(searching: Searching) -> None:
    def sent(own: str) -> int:
        body = b'{"ids": ["x"]}'
        path = "/v1/collections/things/items/delete"
        headers = [("x-unique-id", "forged"), ("x-unique-id", own)]
        answer = searching.run(lambda client: client.post(path, content=body, headers=headers))
        return int(answer.json()["revision"])

    first = sent("a")
    assert sent("a") == first
    assert sent("b") == first + 1


def test_a_write_that_filled_the_collection_is_answered_again(searching: Searching) -> None:
    items = [{"id": f"i{n}", "modality": "image", "feature": [1.0, 2, 3, 4, n]} for n in range(60)]
    for start in (0, 20):
        searching.add("things", items[start : start + 20])
    last = {"items": items[40:]}
    assert post(searching, last, BY_CLIENT) == post(searching, last, BY_CLIENT)


def test_a_recreated_collection_is_counted_after_a_late_deletion(searching: Searching) -> None:
    created: list[int] = []
    for _ in range(2):
        assert searching.ask("DELETE", "/things", headers=BY_PROXY).status_code == 200
        created.append(searching.ask("PUT", "/things", {"model": "scenes"}).json()["revision"])
    made, again = created
    assert made == again
    query = {"modality": "image", "feature": [1.0, 2, 3, 4, 5]}
    assert searching.found("things", made, query=query) == []
    statuses = [searching.ask("PUT", f"/c{n}", {"model": "scenes"}).status_code for n in range(3)]
    assert statuses == [200, 200, 507]


def test_a_write_is_repeated_in_a_recreated_collection(searching: Searching) -> None:
    post(searching, thing(1), BY_CLIENT)
    assert searching.ask("DELETE", "/things").status_code == 200
    assert searching.ask("PUT", "/things", {"model": "scenes"}).status_code == 200
    assert payload(searching, post(searching, thing(1), BY_CLIENT)) == 1


def test_a_write_is_known_after_the_table_was_compacted_and_beside_its_other_attempt(
    scene: Scene,
) -> None:
    scene.add(entries(0, 3), mark="one")
    for number in range(12):
        scene.add(entries(10 + number, 1), mark=str(number))
    done = scene.settle().revision
    for _ in ColumnBuilder(scene.table, "one").tidy():
        pass
    threads = [threading.Thread(target=scene.add, args=(entries(0, 3), "one")) for _ in range(2)]
    threads += [threading.Thread(target=scene.add, args=(entries(50, 3), "new")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scene.table.read().head.revision == done + 1
