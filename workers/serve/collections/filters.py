"""The filter language: which rows are searched, by the fields of their payloads.

    {"field": "colour", "equals": "red"}               text, number or boolean
    {"field": "colour", "in": ["red", "green"]}        one of them
    {"field": "year", "range": {"gte": 2020, "lt": 2025}}    numbers, or texts by code point
    {"and": [...]}    {"or": [...]}    {"not": {...}}

A condition holds where the field's value satisfies it, or one value of a list does; of two bounds one value may satisfy
the one and another value the other. Different types never match: true is not 1, and "1" is not 1. Numbers are compared
as float64. Where the field is missing, null or an object no condition holds; `not` inverts any result, this one as well.


They compare terms of payloads for `equals` and `in`, columns of single fields for `range`. A term has the length of the
field, the kind of the value (text, number, boolean), the field and the value, so that types never match each other and
one value of a list is enough. Numbers are written as float64, so that 1 and 1.0 are the same term.

A range needs values in order: each field with numbers has a column of lists of float64, each with texts one of
lists of strings. They are named by a digest of the field, and added by the first write that has the field.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import orjson
import pyarrow as pa

from cmcl.contract.errors import shortened

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
# Longer texts are compared by their digests, and have no order.
_LONGEST_TEXT = 256
Scalar = str | float | bool
RANGES = "range_"
_TYPES = {"n": pa.list_(pa.float64()), "t": pa.list_(pa.string())}


class InvalidFilter(ValueError):
    """The message names the place in the filter, the value and what is permitted."""


def filter_sql(document: object, columns: Collection[str]) -> str:
    """Return the SQL that holds for items that satisfy a filter. `columns`: those of the table. Raises InvalidFilter."""
    return _Writer(columns).sql(document, "filter", 1)


class _Writer:
    """Counts conditions: a filter must not cost more than the search."""

    def __init__(self, columns: Collection[str]) -> None:
        self._columns = columns
        self._conditions = 0

    def sql(self, document: object, where: str, depth: int) -> str:
        if depth > DEEPEST:
            raise InvalidFilter(f"{where} is nested more than {DEEPEST} deep")
        if not isinstance(document, dict):
            raise InvalidFilter(f"{where} is {shortened(ascii(document))}; permitted are {_FORMS}")
        match sorted(document):
            case ["and" | "or" as name]:
                parts, where = document[name], f"{where}.{name}"
                if not isinstance(parts, list) or not parts:
                    raise InvalidFilter(
                        f"{where} is {shortened(ascii(parts))}; permitted is a list of filters"
                    )
                written = [
                    self.sql(part, f"{where}[{index}]", depth + 1)
                    for index, part in enumerate(parts)
                ]
                return f" {name.upper()} ".join(f"({part})" for part in written)
            case ["not"]:
                return f"NOT ({self.sql(document['not'], f'{where}.not', depth + 1)})"
            case ["equals", "field"] | ["field", "in"] | ["field", "range"]:
                return self._condition(document, where)
        raise InvalidFilter(
            f"{where} has the fields {shortened(ascii(sorted(map(str, document))))}; permitted are {_FORMS}"
        )

    def _condition(self, document: dict[str, object], where: str) -> str:
        self._conditions += 1
        if self._conditions > MOST_CONDITIONS:
            raise InvalidFilter(f"the filter has more than {MOST_CONDITIONS} conditions")
        field = document["field"]
        if not isinstance(field, str) or not 1 <= len(field) <= LONGEST_FIELD:
            raise InvalidFilter(
                f"{where}.field is {shortened(ascii(field))}; permitted is the name of a payload's field, up "
                f"to {LONGEST_FIELD} characters"
            )
        if "range" in document:
            return self._range(field, _bounds(document["range"], f"{where}.range"))
        if "equals" in document:
            values = [_scalar(document["equals"], f"{where}.equals")]
        else:
            values = _scalars(document["in"], f"{where}.in")
        return f"array_has_any(terms, [{', '.join(quoted(term(field, each)) for each in values)}])"

    def _range(self, field: str, bounds: Mapping[str, str | float]) -> str:
        """Two bounds hold for a list whose values, from its smallest to its largest, overlap them."""
        column = range_column(field, kind_of(next(iter(bounds.values()))))
        if column not in self._columns:
            return "false"  # No item has the field, with values of that kind.
        parts = [
            f"{_EXTREMES[name]}({column}) {_COMPARISONS[name]} {_literal(bound)}"
            for name, bound in bounds.items()
        ]
        return f"coalesce({' AND '.join(parts)}, false)"


def _literal(bound: str | float) -> str:
    return quoted(bound) if isinstance(bound, str) else f"CAST('{as_float(bound)!r}' AS DOUBLE)"


def _scalars(values: object, where: str) -> list[Scalar]:
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_VALUES:
        raise InvalidFilter(
            f"{where} is {shortened(ascii(values))}; permitted is a list of 1 to {MOST_VALUES} values"
        )
    return [_scalar(value, f"{where}[{index}]") for index, value in enumerate(values)]


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


def quoted(text: str) -> str:
    """Return a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def is_among(modalities: Collection[str]) -> str:
    """Return the SQL of items of these modalities."""
    return f"modality IN ({', '.join(map(quoted, sorted(modalities)))})" if modalities else "false"


def term(field: str, value: Scalar) -> str:
    """Return the term of this value of this field."""
    kind = kind_of(value)
    text = repr(as_float(value)) if kind == "n" else str(value)
    if len(text) > _LONGEST_TEXT:
        kind, text = "d", hashlib.sha256(text.encode()).hexdigest()
    return f"{len(field)}{kind}{field}{text}"


def kind_of(value: Scalar) -> str:
    """Return `b`, `t` or `n`: boolean, text, number."""
    if isinstance(value, bool):
        return "b"
    return "t" if isinstance(value, str) else "n"


def as_float(value: Scalar) -> float:
    """Return a number as float64; -0.0 as 0.0, which it equals."""
    return float(value) + 0.0


def range_column(field: str, kind: str) -> str:
    """Return the name of the column of the numbers (`n`) or texts (`t`) of a field."""
    return f"{RANGES}{kind}_{hashlib.sha256(field.encode()).hexdigest()[:12]}"


def range_type(column: str) -> pa.DataType:
    """Return the type of such a column, by its name."""
    return _TYPES[column.removeprefix(RANGES)[0]]


class PayloadTerms:
    """The terms and the values in order of one payload, JSON of an object; None: there is none."""

    def __init__(self, payload: str | None) -> None:
        terms: set[str] = set()
        values: dict[str, list[Scalar]] = defaultdict(list)
        for field, value in _values_in(payload):
            terms.add(term(field, value))
            kind = kind_of(value)
            if kind == "n":
                values[range_column(field, kind)].append(as_float(value))
            elif kind == "t" and len(str(value)) <= _LONGEST_TEXT:
                values[range_column(field, kind)].append(value)
        self.terms = sorted(terms)
        self.values: Mapping[str, list[Scalar]] = values


def text_of(payload: str | None, fields: Sequence[str]) -> str | None:
    """Return the texts of these fields, a line each; None: there are none."""
    found = [
        value
        for field, value in (_values_in(payload) if fields else ())
        if field in fields and isinstance(value, str)
    ]
    return "\n".join(found) or None


def _values_in(payload: str | None) -> Iterator[tuple[str, Scalar]]:
    for field, value in orjson.loads(payload or "{}").items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str | int | float):
                yield field, each
