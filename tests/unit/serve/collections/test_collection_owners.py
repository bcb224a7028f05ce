"""Owners of collections: others get 404; collections without an owner belong to the operator."""

from tests.unit.serve.collections.conftest import NamedCallers, Searching
from tests.unit.serve.collections.test_collection_routes import image_query, item


def test_what_others_own_does_not_exist(searching: Searching) -> None:
    searching.access = NamedCallers()
    searching.app = searching.app_of(searching.args)
    alice, bob = {"authorization": "alice"}, {"authorization": "bob"}
    assert searching.ask("PUT", "/hers", {"model": "scenes"}, alice).status_code == 200
    assert searching.ask("GET", "/hers", None, alice).status_code == 200
    assert searching.ask("GET", "/hers").status_code == 200
    assert searching.ask("GET", "", None, bob).json()["data"] == []
    for method, path, body in (
        ("GET", "/hers", None),
        ("DELETE", "/hers", None),
        ("POST", "/hers/items", {"items": [item("image", 1)]}),
        ("POST", "/hers/search", {"query": image_query(1)}),
    ):
        assert searching.ask(method, path, body, bob).status_code == 404
    taken = searching.ask("PUT", "/hers", {"model": "scenes"}, bob)
    assert taken.status_code == 409
    assert "scenes" not in taken.text


def test_what_has_no_owner_is_the_operators_alone(searching: Searching) -> None:
    """It was created before keys were required; otherwise every key could read and delete it."""
    revision = searching.add("things", [item("image", 1)])
    searching.access = NamedCallers()
    searching.app = searching.app_of(searching.args)
    bob = {"authorization": "bob"}
    for method, path, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/items", {"items": [item("image", 1)]}),
        ("POST", "/items/delete", {"ids": ["image-1"]}),
        ("POST", "/search", {"query": image_query(1)}),
        ("GET", "/export?format=parquet", None),
    ):
        refused = searching.ask(method, f"/things{path}", body, bob)
        assert refused.status_code == 403, path
        error = refused.json()["error"]
        assert error["code"] == "collection_without_owner"
        assert "only the operator's key may use it" in error["message"]
    assert searching.found("things", revision, query=image_query(1)) == ["image-1"]
