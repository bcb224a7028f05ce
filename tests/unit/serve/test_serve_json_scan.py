"""The fast parser of features agrees with the general one, or declines."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.letter_encoder import LetterEncoders
from tests.unit.serve.conftest import Replica
from workers.serve.api.app import create_api
from workers.serve.api.migrate import MigrateRequest
from workers.serve.api.wire.collection_bodies import (
    ItemsRequest,
    RemovalRequest,
    SearchRequest,
)
from workers.serve.api.wire.requests import (
    EmbeddingRequest,
    parse,
    read_plain,
    scan,
)
from workers.serve.errors import InvalidRequest

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**64 - 1)
)
ODD = st.one_of(st.none(), st.booleans(), st.text(max_size=3), NUMBERS)
ROWS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1)
)
ANYTHING = st.recursive(ODD, lambda inner: st.lists(inner, max_size=3), max_leaves=12)
OPTIONS = st.fixed_dictionaries(
    {"model": ODD},
    optional={
        "modality": ODD,
        "encoding_format": st.sampled_from(["float", "base64", "hex"]),
        "normalize": ODD,
        "dimensions": ODD,
        "user": ODD,
        "other": ODD,
    },
)


def assert_same_or_nothing(body: bytes) -> bool:
    """Check that both agree; return whether the fast one read it."""
    plain = read_plain(scan(body))
    if plain is None:
        return False
    full = parse(EmbeddingRequest, body, 1 << 20)
    assert plain.options.model_dump() == full.model_dump(exclude={"input"})
    if isinstance(plain.features, np.ndarray):
        np.testing.assert_array_equal(plain.features, np.array(full.rows, np.float64))
        return True
    items = dict(enumerate(full.items or []))
    for part in plain.features:
        for index, row_F in zip(part.positions_B, part.rows_BF, strict=True):
            item = items.pop(index)
            assert item.modality == part.modality
            assert base64.b64decode(str(item.feature)) == row_F.tobytes()
    assert not items
    return True


FEATURE = st.one_of(
    st.binary(max_size=9).map(lambda data: base64.b64encode(data).decode()), ODD, st.text()
)
ITEM = st.fixed_dictionaries(
    {"modality": st.sampled_from(["image", "text", 7]), "feature": FEATURE},
    optional={"text": ODD, "other": ODD},
)


@given(
    options=OPTIONS,
    value=st.one_of(ROWS, ANYTHING, st.lists(ITEM), st.lists(st.one_of(ITEM, ANYTHING))),
)
def test_both_parsers_agree_on_any_input(options: dict[str, object], value: object) -> None:
    assert_same_or_nothing(json.dumps({**options, "input": value}).encode())


@given(rows=ROWS)
def test_features_are_read_by_the_quick_one(rows: list[list[float]]) -> None:
    body = {"model": "scenes", "modality": "image", "input": rows, "user": "somebody"}
    assert assert_same_or_nothing(json.dumps(body).encode())
    assert assert_same_or_nothing(json.dumps({**body, "input": rows[0]}).encode())


@given(modalities=st.lists(st.sampled_from(["image", "text"]), min_size=1), data=st.data())
def test_items_with_base64_are_read_by_the_quick_one(
    modalities: list[str], data: st.DataObject
) -> None:
    widths = {"image": 3, "text": 2}
    items = [
        {
            "modality": modality,
            "feature": base64.b64encode(
                data.draw(st.binary(min_size=4 * widths[modality], max_size=4 * widths[modality]))
            ).decode(),
        }
        for modality in modalities
    ]
    assert assert_same_or_nothing(json.dumps({"model": "scenes", "input": items}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "a", "modality": "image", "input": [{"modality": "image", "feature": "AACAPw=="}]}',
        b'{"model": "a", "input": [{"modality": "image", "modality": "image"}]}',
        b'{"model": "a", "input": [{"modality": "image", "feature": "AACAPw==", "text": null}]}',
        b'{"model": "a", "input": [{"modality": "image", "feature": "AACAPw="}]}',
        b'{"model": "a", "input": [{"modality": "image", "feature": "AACA\\nPw=="}]}',
        b'{"model": "a", "input": [{"modality": "image", "feature": "AAA="}]}',
        b'{"model": "a", "input": [{"modality": "image", "feature": [1]}]}',
        b'{"model": "a", "input": [{"modality": "image", "feature": "AACAPw=="}, [1]]}',
        b'{"model": "a", "input": [[1, 2], [3]]}',
        b'{"model": "a", "input": [[1, 2], [3], [4, 5, 6]]}',
        b'{"model": "a", "input": [[[1]], [[2]]]}',
        b'{"model": "a", "input": [[[1], 2]]}',
        b'{"model": "a", "input": [1, [2]]}',
        b'{"model": "a", "input": [[1], 2]}',
        b'{"model": "a", "input": [[]]}',
        b'{"model": "a", "input": []}',
        b'{"model": "a", "input": [true]}',
        b'{"model": "a", "input": [NaN]}',
        b'{"model": "a", "input": [1e400]}',
        b'{"model": "a", "input": [1], "input": [2]}',
        b'{"model": "a", "model": "b", "input": [1]}',
        b'{"model": "[", "input": [1]}',
        b'{"model": "a", "extra": 1, "input": [1]}',
        b'{"model": 7, "input": [1]}',
        b'{"input": [1]}',
        b'{"model": "a", "input": [1]} x',
        b'{"model": "\xff", "input": [1]}',
        b"[1]",
        b"",
    ],
)
def test_what_is_not_plain_is_left_to_the_other(body: bytes) -> None:
    assert read_plain(scan(body)) is None


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


@pytest.mark.parametrize(
    ("model", "field", "rest", "entry"),
    [
        (EmbeddingRequest, "input", {"model": "a"}, [1.0, 2.0]),
        (MigrateRequest, "input", {"model": "a", "from_version": 1, "modality": "b"}, "AAAA"),
        (ItemsRequest, "items", {}, {**TEXT, "id": "a"}),
        (RemovalRequest, "ids", {}, "a"),
        (SearchRequest, "modalities", {"query": TEXT}, "image"),
    ],
)
def test_every_list_is_counted(
    model: type[EmbeddingRequest], field: str, rest: dict[str, object], entry: object
) -> None:
    def body(count: int) -> bytes:
        return json.dumps({**rest, field: [entry] * count}).encode()

    parse(model, body(20), 20)
    with pytest.raises(InvalidRequest) as error:
        parse(model, body(21), 20)
    assert str(error.value) == f"{field} has 21 rows; permitted are 1 to 20"
    assert error.value.param == field


@pytest.mark.parametrize("number", ["100000000000000000000", "-9999999999999999999", "9" * 64])
def test_an_integer_beyond_64_bits_is_a_number_like_others_in_a_small_body(number: str) -> None:
    item = f'{{"id": "a", "modality": "image", "feature": [1, {number}]}}'
    body = f'{{"items": [{item}]{" " * 99}}}'
    assert parse(ItemsRequest, body.encode(), 20).items[0].feature == [1.0, float(number)]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ('"input": []', "the body has a field more than once"),
        ('"user": nil', "the body is not JSON that is read here"),
        ('"user": [1.0, NaN]', "or it has NaN, Infinity or an integer"),
        ('"user": -Infinity', "or it has NaN, Infinity or an integer"),
        (f'"user": {10**20}', "an integer of more than 64 bits; of a body of up to 262144 bytes"),
    ],
)
def test_a_large_body_that_cannot_be_counted_is_refused(field: str, message: str) -> None:
    body = f'{{"model": "a", {field}, "input": {json.dumps(["text"] * 50_000)}}}'
    with pytest.raises(InvalidRequest, match=message) as error:
        parse(EmbeddingRequest, body.encode(), 100_000)
    assert error.value.code == "invalid_json"
