"""JSON bodies: what they may hold at most, and features of any numbers."""

import json
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmcl.contract.encoder import WIDEST_FEATURE
from tests.fakes.letter_encoder import LetterEncoders
from tests.unit.serve.conftest import Replica
from workers.serve.api.app import create_api
from workers.serve.api.held_out import HeldOutSearch
from workers.serve.api.migrate import MigrateRequest
from workers.serve.api.vector_stores import VectorStoreSearch
from workers.serve.api.wire.collection_bodies import (
    CollectionRequest,
    ItemsRequest,
    RemovalRequest,
    SearchRequest,
    parse_items,
    payload_text,
)
from workers.serve.api.wire.requests import EmbeddingRequest, entries_of, parse, parse_object
from workers.serve.api.wire.vectors import from_lists
from workers.serve.collections.filters import MOST_CONDITIONS, MOST_VALUES, filter_sql
from workers.serve.errors import InvalidRequest, WrongRow

ROWS, PAYLOAD_BYTES = 4096, 4096
MODELS = (
    EmbeddingRequest,
    MigrateRequest,
    CollectionRequest,
    ItemsRequest,
    RemovalRequest,
    SearchRequest,
    HeldOutSearch,
    VectorStoreSearch,
)
ITEM = {"modality": "image", "feature": [1.0]}


def repeated(entry: str, count: int) -> str:
    return f"[{','.join([entry] * count)}]"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (repeated("[1]", 300_000), "lists and objects; permitted are 262144: send fewer rows"),
        (repeated('{"modality":"a"}', 300_000), "lists and objects; permitted are 262144"),
        (repeated("[[]]", 250_000), "lists and objects; permitted are 262144"),
        (repeated("1", 4_300_000), "the body has 4300000 values; permitted are 4194304"),
        (repeated('"ab"', 4_300_000), "the body has 4300000 values; permitted are 4194304"),
    ],
)
def test_a_body_that_makes_too_many_values_is_refused_before_it_makes_one(
    value: str, message: str
) -> None:
    body = f'{{"input":{value},"x":"[{{,"}}'.encode()
    for model in MODELS if len(body) < 1 << 22 else MODELS[:1]:
        tracemalloc.start()
        try:
            with pytest.raises(InvalidRequest) as error:
                parse(model, body)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert message in str(error.value)
        assert peak < 5 * len(body)


def test_fields_without_end_become_no_objects() -> None:
    fields = {f"x{number}": 1 for number in range(50_000)}
    body = json.dumps({"model": "a", "input": [1], **fields}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match='there is no field "x0"; permitted are model, '):
            parse(EmbeddingRequest, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(body)


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 200_000])
@pytest.mark.parametrize("field", ["filter", "query"])
def test_deep_nesting_is_an_error_of_the_client(field: str, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(SearchRequest, b'{"' + field.encode() + b'":' + body)


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        (ItemsRequest, {"items": [{**ITEM, "x": 1}]}, 'field "items[0].x"; permitted are modality, '),
        (SearchRequest, {"query": {"y": 1}}, 'field "query.y"; permitted are modality, '),
        (VectorStoreSearch, {"query": "a", "ranking_options": {"z": 1}}, 'field "ranking_options.z"; '),
        (SearchRequest, {"modalities": []}, "modalities is a list of 0; permitted is a list of"),
        (SearchRequest, {"include": ["a"]}, "include[0] is \"a\"; permitted is 'source' or 'thumb"),
        (ItemsRequest, {"items": [{**ITEM, "id": "\n"}]}, 'items[0].id is "\\n"; permitted is a string'),
        (ItemsRequest, {"items": [{**ITEM, "id": "a", "start": -1, "end": 2}]}, "items[0].start is -1; permitted"),
        (EmbeddingRequest, {"input": [[0.5] * (WIDEST_FEATURE + 1)]}, "input[0] is a list of 16385;"),
        (EmbeddingRequest, {"input": ["a" * 300_000], "model": 1}, "model is not permitted; permitted is"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_permitted(
    model: type[msgspec.Struct], body: object, message: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        parse(model, json.dumps(body).encode())
    assert message in str(error.value)
    assert (error.value.param or "") in message


def test_payloads_at_their_limit_are_accepted() -> None:
    lists: dict[str, Any] = {"a": [[]] * 1363}
    assert len(json.dumps(lists, separators=(",", ":"))) == PAYLOAD_BYTES
    text = {"a": '[{"\\' * 500, "b": [["c"]] * 14}
    for payload in (lists, text, {"a": [1e23] * 680}, None):
        items = [{**ITEM, "id": str(row), "payload": payload} for row in range(ROWS)]
        parsed = parse_items(
            json.dumps({"items": items[:1] if payload == lists else items}).encode(), ROWS
        )
        stored = payload_text(parsed.items[0], 0, PAYLOAD_BYTES)
        assert (stored and json.loads(stored)) == payload


def test_the_widest_features_are_accepted() -> None:
    rows = [[1.5] * WIDEST_FEATURE] * 2
    items = [{**ITEM, "feature": row} for row in rows]
    for value in (rows, rows[0], items, ["[{" * 100_000, '{"a": [[]]}' * 50_000]):
        body = json.dumps({"model": "a", "input": value}).encode()
        assert len(entries_of(parse(EmbeddingRequest, body).input)) == (
            1 if value is rows[0] else 2
        )


def test_the_largest_filter_is_accepted() -> None:
    condition: dict[str, object] = {"field": "a", "in": ["[,{"] * MOST_VALUES}
    for _ in range(6):
        condition = {"and": [condition]}
    body = {"query": ITEM, "filter": {"or": [condition] * MOST_CONDITIONS}}
    search = parse(SearchRequest, json.dumps(body).encode())
    assert filter_sql(parse_object(search.filter, "filter", 1 << 20), ())


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(-(2**63), 2**64 - 1)
)


@given(data=st.data(), width=st.integers(1, 4))
def test_features_become_the_numbers_that_were_sent(data: st.DataObject, width: int) -> None:
    rows: list[list[Any]] = data.draw(
        st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1)
    )
    body = json.dumps({"model": "a", "input": rows}).encode()
    entries = entries_of(parse(EmbeddingRequest, body).input)
    try:
        np.testing.assert_array_equal(from_lists(entries, "a", width), np.array(rows, np.float32))
    except WrongRow as error:
        assert not 1e-12 <= np.linalg.norm(rows[error.row]) <= 1e18  # noqa: PT017


TEXT = {"modality": "text", "text": "a"}


@pytest.fixture
def few(with_encoder: Replica) -> Replica:
    """A replica that accepts five rows."""
    with_encoder.app = with_encoder.app_of(with_encoder.args.model_copy(update={"max_rows": 5}))
    return with_encoder


def asked(replica: Replica) -> list[int]:
    assert isinstance(replica.encoders, LetterEncoders)
    return replica.encoders.asked


@pytest.mark.parametrize("count", [6, 500])
@pytest.mark.parametrize("entry", ["a", TEXT], ids=["texts", "items"])
def test_too_many_texts_never_reach_the_encoder(few: Replica, entry: object, count: int) -> None:
    response = few.embed(modality=None, input=[entry] * count)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message == f"input has {count} rows; permitted are 1 to 5"
    assert asked(few) == []
    assert few.embed(modality=None, input=[entry] * 5).status_code == 200
    assert asked(few) == [5]


def test_rows_are_held_while_they_are_encoded(with_encoder: Replica) -> None:
    parts = with_encoder.parts(with_encoder.args)
    with_encoder.app = create_api(parts)
    held: list[int] = []

    async def look() -> None:
        held.append(parts.admission.rows.total)

    assert isinstance(with_encoder.encoders, LetterEncoders)
    with_encoder.encoders.during = look
    assert with_encoder.embed(modality=None, input=["a"] * 7).status_code == 200
    assert held == [7]
    assert parts.admission.rows.total == 0
    with_encoder.encoders.is_down = True
    assert with_encoder.embed(modality=None, input=["a"] * 7).status_code == 503
    assert parts.admission.rows.total == 0
