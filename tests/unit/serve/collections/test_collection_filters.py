"""Filters: the same answer as a plain evaluation in Python, for any payloads and filters hold."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workers.serve.collections.payloads import Payloads

from workers.serve.background import run_to_end
from workers.serve.collections.filters import (
    DEEPEST,
    MOST_CONDITIONS,
    InvalidFilter,
    mask,
    parse_filter,
)

FIELDS = ("a", "b")
texts = st.sampled_from(["", "red", "green", "é", "zebra", "1", "true"])
numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from([-0.0, 0.0, 1.0, 1.5, 1e300, 2**53 + 1, 2.0**53])
)
scalars = st.one_of(texts, numbers, st.booleans())
others = st.one_of(st.none(), st.just({"a": 1}), st.just([["red"]]))
values = st.one_of(scalars, others, st.lists(st.one_of(scalars, others), max_size=3))
payloads = st.one_of(st.none(), st.dictionaries(st.sampled_from(FIELDS), values, max_size=2))
fields = st.sampled_from((*FIELDS, "missing"))
bounds = st.sampled_from(["gt", "gte", "lt", "lte"])


def ranges(of: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(bounds, of, min_size=1)


conditions = st.one_of(
    st.fixed_dictionaries({"field": fields, "equals": scalars}),
    st.fixed_dictionaries({"field": fields, "in": st.lists(scalars, min_size=1, max_size=4)}),
    st.fixed_dictionaries({"field": fields, "range": st.one_of(ranges(texts), ranges(numbers))}),
)
filters = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=6,
)


def holds(wanted: dict[str, Any], payload: dict[str, Any] | None) -> bool:
    """The language, evaluated for one payload in plain Python."""
    if "and" in wanted:
        return all(holds(part, payload) for part in wanted["and"])
    if "or" in wanted:
        return any(holds(part, payload) for part in wanted["or"])
    if "not" in wanted:
        return not holds(wanted["not"], payload)
    value = (payload or {}).get(wanted["field"])
    candidates = value if isinstance(value, list) else [value]
    return any(satisfies(wanted, each) for each in candidates)


def satisfies(condition: dict[str, Any], value: Any) -> bool:
    if "range" in condition:
        return all(compare(name, value, bound) for name, bound in condition["range"].items())
    wanted = condition["in"] if "in" in condition else [condition["equals"]]
    return any(alike(value, each) and plain(value) == plain(each) for each in wanted)


def compare(name: str, value: Any, bound: Any) -> bool:
    if not alike(value, bound) or isinstance(value, bool):
        return False
    one, other = plain(value), plain(bound)
    return {"gt": one > other, "gte": one >= other, "lt": one < other, "lte": one <= other}[name]


def alike(one: Any, other: Any) -> bool:
    return kind(one) == kind(other) is not None


def kind(value: Any) -> str | None:
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else None


def plain(value: Any) -> Any:
    return float(value) if kind(value) == "number" else value


def stored(rows: list[dict[str, Any] | None]) -> Payloads:
    return Payloads.of(
        pa.array([None if each is None else json.dumps(each) for each in rows], pa.string())
    )


@given(filters, st.lists(payloads, max_size=6))
def test_a_filter_finds_what_plain_python_finds(
    wanted: dict[str, Any], rows: list[dict[str, Any] | None]
) -> None:
    found = run_to_end(mask(parse_filter(wanted), stored(rows)))
    assert found.tolist() == [holds(wanted, row) for row in rows]


@given(filters, st.lists(st.lists(st.tuples(payloads, st.booleans()), max_size=4), min_size=1))
def test_joined_payloads_answer_like_those_they_came_from(
    wanted: dict[str, Any], parts: list[list[tuple[dict[str, Any] | None, bool]]]
) -> None:
    kept = [np.array([keep for _, keep in part], bool) for part in parts]
    joined = Payloads.joined([stored([row for row, _ in part]) for part in parts], kept)
    rows = [row for part in parts for row, keep in part if keep]
    assert run_to_end(mask(parse_filter(wanted), joined)).tolist() == [
        holds(wanted, row) for row in rows
    ]
    assert joined.texts.to_pylist() == stored(rows).texts.to_pylist()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("red", "filter is 'red'"),
        ({}, "filter has the fields \\[\\]"),
        ({"field": "a"}, "filter has the fields"),
        ({"field": "a", "equals": 1, "in": [1]}, "filter has the fields"),
        ({"field": "a", "like": "r%"}, "permitted are"),
        ({"field": 7, "equals": 1}, "filter.field is 7"),
        ({"field": "a", "equals": None}, "filter.equals is None"),
        ({"field": "a", "equals": math.nan}, "filter.equals is nan"),
        ({"field": "a", "equals": 10**400}, "filter.equals is 1000"),
        ({"field": "a", "equals": "\ud800"}, "filter.equals is"),
        ({"field": "a", "in": []}, "a list of 1 to 1000 values"),
        ({"field": "a", "in": [1, {}]}, "filter.in\\[1\\] is {}"),
        ({"field": "a", "range": {}}, "filter.range is {}"),
        ({"field": "a", "range": {"from": 1}}, "gt, gte, lt, lte"),
        ({"field": "a", "range": {"gt": 1, "lt": "b"}}, "all numbers, or all texts"),
        ({"field": "a", "range": {"gt": True}}, "all numbers, or all texts"),
        ({"and": []}, "filter.and is \\[\\]"),
        ({"or": [{"not": 1}]}, "filter.or\\[0\\].not is 1"),
    ],
)
def test_an_invalid_filter_is_rejected_with_a_message(document: object, words: str) -> None:
    with pytest.raises(InvalidFilter, match=words):
        parse_filter(document)


def test_a_filter_is_neither_too_deep_nor_too_long() -> None:
    condition: dict[str, Any] = {"field": "a", "equals": 1}
    nested = condition
    for _ in range(DEEPEST):
        nested = {"not": nested}
    with pytest.raises(InvalidFilter, match=f"more than {DEEPEST} deep"):
        parse_filter(nested)
    with pytest.raises(InvalidFilter, match=f"more than {MOST_CONDITIONS} conditions"):
        parse_filter({"or": [condition] * (MOST_CONDITIONS + 1)})
