"""The quick parser of features says the same as the one that takes everything, or nothing at all."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.serve.api.wire.json_scan import read_plain, scan
from workers.serve.api.wire.requests import EmbeddingOptions, EmbeddingRequest, parse
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
    """Whether it was read at all."""
    plain = read_plain(scan(body), EmbeddingOptions)
    if plain is None:
        return False
    full = parse(EmbeddingRequest, body, 1 << 20)
    assert plain.options.model_dump() == full.model_dump(exclude={"input"})
    np.testing.assert_array_equal(plain.rows_BF, np.array(full.rows, np.float64))
    return True


@given(options=OPTIONS, value=st.one_of(ROWS, ANYTHING))
def test_both_parsers_agree_on_whatever_comes(options: dict[str, object], value: object) -> None:
    assert_same_or_nothing(json.dumps({**options, "input": value}).encode())


@given(rows=ROWS)
def test_features_are_read_by_the_quick_one(rows: list[list[float]]) -> None:
    body = {"model": "scenes", "modality": "image", "input": rows, "user": "somebody"}
    assert assert_same_or_nothing(json.dumps(body).encode())
    assert assert_same_or_nothing(json.dumps({**body, "input": rows[0]}).encode())


@pytest.mark.parametrize(
    "body",
    [
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
    assert read_plain(scan(body), EmbeddingOptions) is None


def test_a_mistake_is_worded_by_the_other() -> None:
    with pytest.raises(InvalidRequest, match=r"input\[1\] is true"):
        parse(EmbeddingRequest, b'{"model": "a", "input": [1, true]}', 20)
