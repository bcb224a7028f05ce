"""What filters and words compare: terms of payloads for `equals` and `in`, columns of single fields for `range`,
and their text.

A term has the length of the field, the kind of the value (text, number, boolean), the field and the value, so that
types never match each other and one value of a list is enough. Numbers are written as float64, so that 1 and 1.0 are
the same term.

A range needs values in order: each field with numbers has a column of lists of float64, each with texts one of
lists of strings. They are named by a digest of the field, and added by the first write that has the field.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import orjson
import pyarrow as pa

# Longer texts are compared by their digests, and have no order.
_LONGEST_TEXT = 256
Scalar = str | float | bool
RANGES = "range_"
_TYPES = {"n": pa.list_(pa.float64()), "t": pa.list_(pa.string())}


def quoted(text: str) -> str:
    """Return a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


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
        for field, value in _scalars(payload):
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
        for field, value in (_scalars(payload) if fields else ())
        if field in fields and isinstance(value, str)
    ]
    return "\n".join(found) or None


def _scalars(payload: str | None) -> Iterator[tuple[str, Scalar]]:
    for field, value in orjson.loads(payload or "{}").items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str | int | float):
                yield field, each
