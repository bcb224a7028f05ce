"""The filter language: which rows are searched, by the fields of their payloads.

    {"field": "colour", "equals": "red"}               text, number or boolean
    {"field": "colour", "in": ["red", "green"]}        one of them
    {"field": "year", "range": {"gte": 2020, "lt": 2025}}    numbers, or texts by code point
    {"and": [...]}    {"or": [...]}    {"not": {...}}

A condition holds where the field's value satisfies it, or one value of a list does. Different types never match:
true is not 1, and "1" is not 1. Numbers are compared as float64. Where the field is missing, null or an object no
condition holds; `not` inverts any result, this one as well.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmcl.contract.errors import shortened
from workers.serve.background import Steps
from workers.serve.collections.payloads import Column, Kind, Mask, Payloads

MOST_CONDITIONS = 64
DEEPEST = 8
MOST_VALUES = 1000
LONGEST_FIELD = 128

Scalar = str | float | bool

_COMPARISONS = {
    "gt": pc.greater,
    "gte": pc.greater_equal,
    "lt": pc.less,
    "lte": pc.less_equal,
}
_FORMS = (
    '{"field": ..., "equals": ...}, {"field": ..., "in": [...]}, {"field": ..., "range": {...}}, '
    '{"and": [...]}, {"or": [...]} and {"not": {...}}'
)


class InvalidFilter(ValueError):
    """The message names the place in the filter, the value and what is permitted."""


@dataclass(frozen=True)
class AnyOf:
    """The field has one of these values; `equals` is the case of one."""

    field: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Range:
    """The field lies within bounds, of which there is at least one, all of one kind."""

    field: str
    bounds: Mapping[str, str | float]


@dataclass(frozen=True)
class And:
    """All of them hold."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class Or:
    """At least one of them holds."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: "Filter"


Filter = AnyOf | Range | And | Or | Not


def mask(wanted: Filter, payloads: Payloads) -> Steps[Mask]:
    """Return which rows satisfy the filter; a step for each condition."""
    match wanted:
        case AnyOf():
            yield
            return _any_of(wanted, payloads)
        case Range():
            yield
            return _in_range(wanted, payloads)
        case Not():
            inside = yield from mask(wanted.part, payloads)
            return ~inside
    combine = np.logical_and if isinstance(wanted, And) else np.logical_or
    found = yield from mask(wanted.parts[0], payloads)
    for part in wanted.parts[1:]:
        found = combine(found, (yield from mask(part, payloads)))
    return found


def _any_of(wanted: AnyOf, payloads: Payloads) -> Mask:
    found = np.zeros(len(payloads), bool)
    for kind in Kind:
        column = payloads.column(wanted.field, kind)
        values = [value for value in wanted.values if _kind(value) == kind]
        if column is not None and values:
            found[column.rows_where(lambda c, v=values: _is_in(c, v))] = True  # type: ignore[misc]
    return found


def _is_in(values: pa.Array, wanted: list[Scalar]) -> pa.BooleanArray:
    if len(wanted) == 1:
        # 0.0 and -0.0 are equal, but is_in distinguishes them.
        return pc.equal(values, pa.scalar(wanted[0], values.type))
    plain = [value + 0.0 if isinstance(value, float) else value for value in wanted]
    if pa.types.is_floating(values.type):
        values = pc.add(values, 0.0)
    return pc.is_in(values, value_set=pa.array(plain, values.type))


def _in_range(wanted: Range, payloads: Payloads) -> Mask:
    found = np.zeros(len(payloads), bool)
    kind = _kind(next(iter(wanted.bounds.values())))
    column = payloads.column(wanted.field, kind)
    if column is not None:
        found[_rows_within(column, wanted.bounds)] = True
    return found


def _rows_within(column: Column, bounds: Mapping[str, str | float]) -> np.ndarray:
    def condition(values: pa.Array) -> pa.BooleanArray:
        holds = pa.array(np.ones(len(values), bool))
        for name, bound in bounds.items():
            compared = _COMPARISONS[name](values, pa.scalar(bound, values.type))
            holds = pc.and_(holds, compared)
        return holds

    return column.rows_where(condition)


def _kind(value: Scalar) -> Kind:
    if isinstance(value, bool):
        return Kind.FLAG
    return Kind.TEXT if isinstance(value, str) else Kind.NUMBER


def parse_filter(document: object) -> Filter:
    """Parse a filter. Raises InvalidFilter."""
    return _Parser().parse(document, "filter", 1)


class _Parser:
    """Counts conditions: a filter must not cost more than the search."""

    def __init__(self) -> None:
        self._conditions = 0

    def parse(self, document: object, where: str, depth: int) -> Filter:
        if depth > DEEPEST:
            raise InvalidFilter(f"{where} is nested more than {DEEPEST} deep")
        if not isinstance(document, dict):
            raise InvalidFilter(f"{where} is {shortened(ascii(document))}; permitted are {_FORMS}")
        match sorted(document):
            case ["and"]:
                return And(self._several(document["and"], f"{where}.and", depth))
            case ["or"]:
                return Or(self._several(document["or"], f"{where}.or", depth))
            case ["not"]:
                return Not(self.parse(document["not"], f"{where}.not", depth + 1))
            case ["equals", "field"] | ["field", "in"] | ["field", "range"]:
                return self._condition(document, where)
        raise InvalidFilter(
            f"{where} has the fields {shortened(ascii(sorted(map(str, document))))}; permitted are {_FORMS}"
        )

    def _several(self, parts: object, where: str, depth: int) -> tuple[Filter, ...]:
        if not isinstance(parts, list) or not parts:
            raise InvalidFilter(
                f"{where} is {shortened(ascii(parts))}; permitted is a list of filters"
            )
        return tuple(
            self.parse(part, f"{where}[{index}]", depth + 1) for index, part in enumerate(parts)
        )

    def _condition(self, document: dict[str, object], where: str) -> Filter:
        self._conditions += 1
        if self._conditions > MOST_CONDITIONS:
            raise InvalidFilter(f"the filter has more than {MOST_CONDITIONS} conditions")
        field = document["field"]
        if not isinstance(field, str) or not 1 <= len(field) <= LONGEST_FIELD:
            raise InvalidFilter(
                f"{where}.field is {shortened(ascii(field))}; permitted is the name of a payload's field, up "
                f"to {LONGEST_FIELD} characters"
            )
        if "equals" in document:
            return AnyOf(field, (_scalar(document["equals"], f"{where}.equals"),))
        if "in" in document:
            return AnyOf(field, _scalars(document["in"], f"{where}.in"))
        return Range(field, _bounds(document["range"], f"{where}.range"))


def _scalars(values: object, where: str) -> tuple[Scalar, ...]:
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_VALUES:
        raise InvalidFilter(
            f"{where} is {shortened(ascii(values))}; permitted is a list of 1 to {MOST_VALUES} values"
        )
    return tuple(_scalar(value, f"{where}[{index}]") for index, value in enumerate(values))


def _scalar(value: object, where: str) -> Scalar:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and is_writable(value):
        return value
    number = as_number(value)
    if number is None:
        raise InvalidFilter(
            f"{where} is {shortened(ascii(value))}; permitted are a text, a number and a boolean"
        )
    return number


def _bounds(bounds: object, where: str) -> dict[str, str | float]:
    if not isinstance(bounds, dict) or not bounds or not set(bounds) <= set(_COMPARISONS):
        raise InvalidFilter(
            f"{where} is {shortened(ascii(bounds))}; permitted is an object with some of "
            f"{', '.join(_COMPARISONS)}"
        )
    parsed = {name: _scalar(value, f"{where}.{name}") for name, value in bounds.items()}
    kinds = {_kind(value) for value in parsed.values()}
    if len(kinds) > 1 or Kind.FLAG in kinds:
        raise InvalidFilter(
            f"{where} is {shortened(ascii(bounds))}; permitted are bounds that are all numbers, or all texts"
        )
    return parsed


def as_number(value: object) -> float | None:
    """Return a value as float64; None where it is not a finite number of that range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_writable(text: str) -> bool:
    """Whether the text can be stored as UTF-8: JSON permits lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
