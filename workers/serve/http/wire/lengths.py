"""How long the lists of a JSON body are, before anything is made of their entries.

A list of 300,000 items takes the parser of `requests.py` seconds and 300 MB, on the event loop, before
it can say that they are too many: it makes Python objects even of what it refuses. Here they are
counted in a hundredth of that.
"""

from collections.abc import Iterable

import simdjson
from pydantic_core import from_json

from workers.contract.model import WIDEST_FEATURE
from workers.serve.errors import InvalidRequest

# More than any request has; each one that nobody knows would become a record of an error.
_MOST_FIELDS = 64
_LISTS = (simdjson.Array, list)


def check_lengths(body: bytes, most: int) -> None:
    """Raises InvalidRequest where a list has more than `most` entries, or a feature is too wide.

    What is wrong otherwise is left to the parser.
    """
    if len(body) <= 2 * min(most, WIDEST_FEATURE):
        return  # An entry takes two bytes at least.
    for field, value in _fields(body):
        if isinstance(value, _LISTS):
            _check(field, value, most)


def _fields(body: bytes) -> Iterable[tuple[str, object]]:
    try:
        document = simdjson.Parser().parse(body)
    except (ValueError, RuntimeError):
        return _fields_by_the_other(body)
    if not isinstance(document, simdjson.Object):
        return ()
    _check_few(len(document))
    names = list(document.keys())
    if len(names) != len(set(names)):  # Of two the parser takes the last, and simdjson the first.
        return _fields_by_the_other(body)
    return [(name, document[name]) for name in names]


def _fields_by_the_other(body: bytes) -> Iterable[tuple[str, object]]:
    """Of JSON that simdjson does not take, as integers of more than 64 bits in it."""
    try:
        document = from_json(body)
    except ValueError:
        return ()  # No JSON: the parser has words for it.
    if not isinstance(document, dict):
        return ()
    _check_few(len(document))
    return document.items()


def _check_few(fields: int) -> None:
    if fields > _MOST_FIELDS:
        raise InvalidRequest(f"the body has {fields} fields; permitted are {_MOST_FIELDS}")


def _check(field: str, entries: simdjson.Array | list[object], most: int) -> None:
    if len(entries) and isinstance(entries[0], int | float):
        _check_width(field, field, entries)
        return
    if len(entries) > most:
        raise InvalidRequest(f"{field} has {len(entries)} rows; permitted are 1 to {most}", field)
    for index, entry in enumerate(entries):
        feature = entry.get("feature") if isinstance(entry, simdjson.Object | dict) else entry
        _check_width(field, f"{field}[{index}]", feature)


def _check_width(field: str, where: str, feature: object) -> None:
    if isinstance(feature, _LISTS) and len(feature) > WIDEST_FEATURE:
        raise InvalidRequest(
            f"{where} has {len(feature)} numbers; permitted are up to {WIDEST_FEATURE}", field
        )
