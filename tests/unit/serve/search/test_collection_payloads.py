"""Numbers in payloads: what would be another number elsewhere is refused, all others are kept."""

import re

import pytest

from tests.unit.serve.search.conftest import Searching
from tests.unit.serve.search.test_collection_routes import image_query, item


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [1, 10**20], {"a": [{"b": 10**20}]}])
def test_integers_beyond_64_bits_are_refused_at_any_depth(
    searching: Searching, value: object
) -> None:
    response = searching.ask(
        *("POST", "/things/items", {"items": [item("image", 1, payload={"n": value})]})
    )
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "items"
    assert re.fullmatch(
        r'items\[0\].payload has -?[0-9]+ in "n"; permitted are integers from '
        r"-9223372036854775808 to 18446744073709551615",
        error["message"],
    )


def test_all_integers_of_64_bits_come_back_as_they_were(searching: Searching) -> None:
    payload = {"n": 2**64 - 1, "m": [-(2**63), {"k": 2**53 + 1}]}
    revision = searching.add("things", [item("image", 1, payload=payload)])
    searching.found("things", revision, query=image_query(1))
    response = searching.ask("POST", "/things/search", {"query": image_query(1)})
    assert response.json()["data"][0]["payload"] == payload
