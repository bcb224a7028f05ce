"""Filters: the same answer as a plain evaluation in Python, for any payloads and filters hold."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmcl.storage.local import LocalStore
from tests.unit.serve.collections.scene import Scene, spec
from workers.serve.collections.filters import (
    DEEPEST,
    MOST_CONDITIONS,
    InvalidFilter,
    filter_sql,
)
from workers.serve.collections.registry import Registry
from workers.serve.collections.table import ITEMS, Row, State

LONG = "x" * 300
TEXTS = ["", "red", "green", "é", "zebra", "1", "true", "o'clock", "\uffff", "😀", "a\x1ft", LONG]
NUMBERS = [-3, -1, 0, 1, 2, 3, -0.0, 1.0, 1.5, 1e300, 2**53 + 1, 2.0**53]
texts = st.sampled_from(TEXTS)
numbers = st.sampled_from(NUMBERS)
scalars = st.one_of(texts, numbers, st.booleans())
fields = st.sampled_from(("a", "b", "it's", "missing"))
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
    if "range" in wanted:
        bounds = wanted["range"].items()
        return all(any(compare(name, each, bound) for each in candidates) for name, bound in bounds)
    return any(satisfies(wanted, each) for each in candidates)


def satisfies(condition: dict[str, Any], value: Any) -> bool:
    wanted = condition["in"] if "in" in condition else [condition["equals"]]
    return any(alike(value, each) and plain(value) == plain(each) for each in wanted)


def compare(name: str, value: Any, bound: Any) -> bool:
    # A text as long as that is compared by its digest, and has no order.
    if not alike(value, bound) or isinstance(value, bool) or value == LONG:
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


def many_payloads() -> list[dict[str, Any] | None]:
    """Each value alone, each pair of a list, and two fields."""
    alone = [*TEXTS, *NUMBERS, True, False, None, {"a": 1}, [["red"]], []]
    pairs = [[one, other] for one in alone for other in ("red", 0, 2.0**53, True, None)]
    both = [{"a": one, "b": other} for one in alone for other in (1, "red", True)]
    return [None, {}, *({"a": each} for each in alone + pairs), *both, {"it's": "o'clock"}]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, list[dict[str, Any] | None]]:
    """A table, and the payloads of its items in their order."""
    table = Registry(LocalStore(tmp_path_factory.mktemp("store"))).create(spec()).table
    rows = many_payloads()
    image = np.ones(5, np.float32)
    # Each write adds the columns of ranges that it needs.
    new = [
        Row(f"{at:04}", "image", image, None if each is None else json.dumps(each))
        for at, each in enumerate(rows)
    ]
    for part in (new[:3], new[3:]):
        table.write(part, lambda *_: None)
    return table.read(), rows


def found(state: State, wanted: dict[str, Any]) -> list[str]:
    """Ids of the items that satisfy a filter, as a search finds them."""
    sql = filter_sql(wanted, state.dataset.schema.names)
    read = state.dataset.to_table(columns=["id"], filter=f"{ITEMS} AND ({sql})")
    return sorted(read["id"].to_pylist())


@given(filters)
def test_a_filter_finds_what_plain_python_finds(
    stored: tuple[State, list[dict[str, Any] | None]], wanted: dict[str, Any]
) -> None:
    state, rows = stored
    expected = [f"{at:04}" for at, row in enumerate(rows) if holds(wanted, row)]
    assert found(state, wanted) == expected


def test_equals_still_works_with_more_fields_than_have_a_range(scene: Scene) -> None:
    payload = {f"f{number:03}": number for number in range(70)}
    scene.add([Row("many", "image", np.ones(5, np.float32), json.dumps(payload))])
    state = scene.table.read()
    by_range = [bool(found(state, {"field": name, "range": {"gte": 0}})) for name in payload]
    assert sum(by_range) == 64
    assert all(found(state, {"field": name, "equals": n}) for name, n in payload.items())


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
        filter_sql(document, ())


def test_a_filter_is_neither_too_deep_nor_too_long() -> None:
    condition: dict[str, Any] = {"field": "a", "equals": 1}
    nested = condition
    for _ in range(DEEPEST):
        nested = {"not": nested}
    with pytest.raises(InvalidFilter, match=f"more than {DEEPEST} deep"):
        filter_sql(nested, ())
    with pytest.raises(InvalidFilter, match=f"more than {MOST_CONDITIONS} conditions"):
        filter_sql({"or": [condition] * (MOST_CONDITIONS + 1)}, ())
