"""The filter language: which rows are searched, by the fields of their payloads.

    {"field": "colour", "equals": "red"}               text, number or boolean
    {"field": "colour", "in": ["red", "green"]}        one of them
    {"field": "year", "range": {"gte": 2020, "lt": 2025}}    numbers, or texts by code point
    {"and": [...]}    {"or": [...]}    {"not": {...}}

A condition holds where the field's value satisfies it, or one value of a list does; of two bounds one value may satisfy
the one and another value the other. Different types never match: true is not 1, and "1" is not 1. Numbers are compared
as float64. Where the field is missing, null or an object no condition holds; `not` inverts any result, this one as well.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cmcl.contract.errors import shortened
from workers.serve.collections.terms import Scalar, as_float, kind_of, quoted, range_column, term

MOST_CONDITIONS = 64
DEEPEST = 8
MOST_VALUES = 1000
LONGEST_FIELD = 128

_COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_EXTREMES = {"gt": "array_max", "gte": "array_max", "lt": "array_min", "lte": "array_min"}
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


def sql_of(wanted: Filter, columns: Collection[str]) -> str:
    """Return the SQL that holds for items that satisfy the filter. `columns`: those of the table."""
    match wanted:
        case AnyOf():
            terms = ", ".join(quoted(term(wanted.field, value)) for value in wanted.values)
            return f"array_has_any(terms, [{terms}])"
        case Range():
            return _range_sql(wanted, columns)
        case Not():
            return f"NOT ({sql_of(wanted.part, columns)})"
    between = " AND " if isinstance(wanted, And) else " OR "
    return between.join(f"({sql_of(part, columns)})" for part in wanted.parts)


def _range_sql(wanted: Range, columns: Collection[str]) -> str:
    """Two bounds hold for a list whose values, from its smallest to its largest, overlap them."""
    column = range_column(wanted.field, kind_of(next(iter(wanted.bounds.values()))))
    if column not in columns:
        return "false"  # No item has the field, with values of that kind.
    parts = [
        f"{_EXTREMES[name]}({column}) {_COMPARISONS[name]} {_literal(bound)}"
        for name, bound in wanted.bounds.items()
    ]
    return f"coalesce({' AND '.join(parts)}, false)"


def _literal(bound: str | float) -> str:
    return quoted(bound) if isinstance(bound, str) else f"CAST('{as_float(bound)!r}' AS DOUBLE)"


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
    kinds = {kind_of(value) for value in parsed.values()}
    if len(kinds) > 1 or "b" in kinds:
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
