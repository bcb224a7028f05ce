"""A JSON body is refused for its structure before it is parsed, and accepted at its limits."""

import json
import tracemalloc
from typing import Any

import pytest
from pydantic import BaseModel

from cmcl.contract.encoder import WIDEST_FEATURE
from workers.serve.api.held_out import HeldOutSearch
from workers.serve.api.migrate import MigrateRequest
from workers.serve.api.wire.collection_bodies import (
    CollectionRequest,
    ItemsRequest,
    RemovalRequest,
    SearchRequest,
    parse_items,
)
from workers.serve.api.wire.requests import (
    EmbeddingRequest,
    parse,
    read_plain,
    scan,
)
from workers.serve.collections.filters import MOST_CONDITIONS, MOST_VALUES, filter_sql
from workers.serve.errors import InvalidRequest

ROWS, PAYLOAD_BYTES = 4096, 4096
MODELS = (
    EmbeddingRequest,
    MigrateRequest,
    CollectionRequest,
    ItemsRequest,
    RemovalRequest,
    SearchRequest,
    HeldOutSearch,
)
LISTS: list[Any] = [[]] * 100_000
NUMBERS = [1] * 100_000
# No list in it is longer than a feature may be.
DEEP: list[Any] = [[[]] * WIDEST_FEATURE] * 5
ITEM = {"modality": "image"}


class Parsed(Exception):
    """The parser was called."""


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the parser fail the test."""

    def refuse(*_: object, **__: object) -> None:
        raise Parsed

    monkeypatch.setattr(BaseModel, "model_validate_json", refuse)


# Short bodies are parsed without a check.
LONG = b" " * 9000


def refusal(model: type[BaseModel], body: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as error:
        parse(model, json.dumps(body).encode(), ROWS, PAYLOAD_BYTES)
    return error.value


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize("values", [{"a": LISTS}, {"a": NUMBERS}, {"a": {"b": LISTS}}, DEEP])
@pytest.mark.parametrize("model", MODELS)
def test_no_field_hides_values_from_the_count(model: type[BaseModel], values: object) -> None:
    for field in model.model_fields:
        error = refusal(model, {field: values})
        assert field in str(error)
        assert "permitted are" in str(error)
        assert error.param == field
    error = refusal(model, {"x": values})
    assert str(error) == f'there is no field "x"; permitted are {", ".join(model.model_fields)}'
    assert error.param == "x"


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize(
    ("model", "field", "value", "message"),
    [
        (SearchRequest, "query", {"x": LISTS}, 'there is no field "query.x"; permitted are modality,'),
        (SearchRequest, "query", {"feature": LISTS}, "query has 100000 numbers; permitted are up to"),
        (SearchRequest, "query", {"numbers": NUMBERS}, "query has 100000 numbers; permitted are up to"),
        (HeldOutSearch, "query", {"feature": {"a": LISTS}}, "query.feature has 300007 bytes"),
        (SearchRequest, "query", {"text": NUMBERS}, "query.text has 200001 bytes; permitted are 4096"),
        (SearchRequest, "filter", {"and": LISTS}, "filter has 200001 values; permitted are up to 66048"),
        (ItemsRequest, "items", [{"payload": {"a": LISTS}}], "items[0].payload has 300007 bytes; perm"),
        (ItemsRequest, "items", [ITEM, {"payload": NUMBERS}], "items[1].payload has 200001 bytes"),
        (ItemsRequest, "items", [{"x": LISTS}], 'there is no field "items[0].x"; permitted are modality'),
        (ItemsRequest, "items", [{"feature": [[]] * 9000}] * 9, "items has 81009 lists and objects"),
        (EmbeddingRequest, "input", [{"feature": [[]] * 9000}] * 9, "input has 81009 lists and object"),
        (EmbeddingRequest, "input", [[[1]] * 9000] * 9, "input has 81009 lists and objects inside its"),
        (EmbeddingRequest, "input", [1, *DEEP], "input has 81926 lists and objects inside its entries"),
        (EmbeddingRequest, "input", [{f"x{n}": 1 for n in range(9000)}], "input[0] has 9000 fields; p"),
    ],
)  # fmt: skip
def test_what_is_too_large_is_named(
    model: type[BaseModel], field: str, value: object, message: str
) -> None:
    assert message in str(refusal(model, {field: value}))


@pytest.mark.usefixtures("unparsed")
def test_a_large_body_that_is_no_object_is_refused() -> None:
    assert "is not a JSON object" in str(refusal(EmbeddingRequest, LISTS))
    assert "is not JSON that is read" in str(refusal(EmbeddingRequest, [2**64, *LISTS]))


@pytest.mark.usefixtures("unparsed")
def test_a_field_that_an_item_has_twice_hides_no_lists() -> None:
    once, twice = '"payload": {}', f'"payload": {json.dumps(LISTS)}'
    for first, second in ((once, twice), (twice, once)):
        body = f'{{"items": [{{{first}, {second}}}]}}'.encode()
        with pytest.raises(InvalidRequest, match=r"items\[0\] has a field more than once"):
            parse(ItemsRequest, body, ROWS, PAYLOAD_BYTES)


def test_fields_without_end_become_no_objects() -> None:
    fields = {f"x{number}": 1 for number in range(50_000)}
    body = json.dumps({"model": "a", "input": [1], **fields}).encode()
    tracemalloc.start()
    try:
        assert read_plain(scan(body)) is None
        with pytest.raises(InvalidRequest, match="the body has 50002 fields; permitted are 64"):
            parse(EmbeddingRequest, body, ROWS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(body)


def test_payloads_at_their_limit_are_accepted() -> None:
    one = {**ITEM, "feature": [1.0], "payload": {"a": [[]] * 1363}}
    assert len(json.dumps(one["payload"], separators=(",", ":"))) == PAYLOAD_BYTES
    body = json.dumps({"items": [{**one, "id": "a"}]}).encode() + LONG
    assert parse_items(body, ROWS, PAYLOAD_BYTES)
    text = {"a": '[{"\\' * 500, "b": [["c"]] * 14}
    items = [{**one, "id": str(row), "payload": text} for row in range(ROWS)]
    assert parse_items(json.dumps({"items": items}).encode(), ROWS, PAYLOAD_BYTES)


def test_a_payload_is_measured_as_it_is_stored() -> None:
    """simdjson, which looks first, writes 1e23 with 21 characters."""
    one = {**ITEM, "feature": [1.0], "id": "a", "payload": {"a": [1e23] * 680}}
    assert len(json.dumps(one["payload"], separators=(",", ":"))) < PAYLOAD_BYTES
    assert parse_items(json.dumps({"items": [one]}).encode() + LONG, ROWS, PAYLOAD_BYTES)


def test_the_widest_features_are_accepted() -> None:
    rows = [[1.5] * WIDEST_FEATURE] * 2
    items = [{**ITEM, "feature": row} for row in rows]
    for given in (rows, rows[0], items, ["[{" * 100_000, '{"a": [[]]}' * 50_000]):
        body = json.dumps({"model": "a", "input": given}).encode()
        assert parse(EmbeddingRequest, body, ROWS)


def test_the_largest_filter_is_accepted() -> None:
    condition: dict[str, object] = {"field": "a", "in": ["[,{"] * MOST_VALUES}
    for _ in range(6):
        condition = {"and": [condition]}
    body = {"query": {**ITEM, "text": "a"}, "filter": {"or": [condition] * MOST_CONDITIONS}}
    search = parse(SearchRequest, json.dumps(body).encode(), ROWS)
    assert filter_sql(search.filter, ())
