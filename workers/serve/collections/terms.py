"""Terms of payloads: what filters compare, one for each field and value.

A term has the field, the kind of the value (text, number, boolean) and the value, so that types never match each
other and one value of a list is enough. Numbers are written as float64, so that 1 and 1.0 are the same term.
"""

from collections.abc import Iterator, Mapping

import orjson

_BETWEEN = "\x1f"
Scalar = str | float | bool


def term(field: str, value: Scalar) -> str:
    """Return the term of this value of this field."""
    if isinstance(value, bool):
        kind, text = "b", str(value)
    elif isinstance(value, str):
        kind, text = "t", value
    else:
        # 0.0 and -0.0 are equal.
        kind, text = "n", repr(float(value) + 0.0)
    return _BETWEEN.join((field, kind, text))


def terms_of(payload: str | None) -> list[str] | None:
    """Return the terms of a payload, JSON of an object; None where there is none."""
    return None if payload is None else sorted(set(_terms(orjson.loads(payload))))


def _terms(payload: Mapping[str, object]) -> Iterator[str]:
    for field, value in payload.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str | int | float):
                yield term(field, each)


def quoted(text: str) -> str:
    """Return a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def has_any(field: str, values: tuple[Scalar, ...]) -> str:
    """Return the SQL of `one of these values`; false, not unknown, where there is no payload."""
    wanted = ", ".join(quoted(term(field, value)) for value in values)
    return f"coalesce(array_has_any(terms, [{wanted}]), false)"
