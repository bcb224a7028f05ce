"""What a JSON body may contain, checked before the parser of `requests.py` sees it.

That parser makes an object of every value, even of one that it refuses, and no other thread runs meanwhile. An empty
list takes it ten times as long as a number: 64 MiB of them were 20 s in which a replica answered no request.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import simdjson

from cmcl.contract.encoder import WIDEST_FEATURE
from workers.serve.collections.filters import DEEPEST, MOST_CONDITIONS, MOST_VALUES
from workers.serve.errors import InvalidRequest, shortened

# More than any request has; each unknown field would become a record of an error.
MOST_FIELDS = 64
# Parsed in 50 ms. Each of 4096 items may have 16 in its payload.
_MOST_NESTED = 1 << 16
# The parser takes less than 0.1 s for any body of this size, and a few milliseconds for most.
MOST_BYTES_OF_THE_OTHER = 256 << 10
# Commas and brackets of conditions, each of which may be inside others.
_MOST_IN_FILTER = MOST_CONDITIONS * (MOST_VALUES + 4 * DEEPEST)
# simdjson writes 1e23 as 9.999999999999999e+22.
_LONGER_NUMBERS = 4
_ITEM = "query"
_FEATURES = ("feature", "numbers")
Nested = simdjson.Array | simdjson.Object


@dataclass(frozen=True)
class Bounds:
    """Fields of a body and of its items, entries of a list, and bytes of a payload."""

    fields: Sequence[str]
    item_fields: Sequence[str]
    rows: int
    payload_bytes: int


def no_field(where: str, permitted: Iterable[str]) -> str:
    """Return the message for an unknown field."""
    return f"there is no field {shortened(where)}; permitted are {', '.join(permitted)}"


def check_few(where: str, fields: int) -> None:
    """Raises InvalidRequest."""
    if fields > MOST_FIELDS:
        raise InvalidRequest(f"{where} has {fields} fields; permitted are {MOST_FIELDS}")


def check_known(names: Iterable[str], bounds: Bounds) -> None:
    """Raises InvalidRequest where the body has an unknown field."""
    for name in names:
        if name not in bounds.fields:
            raise InvalidRequest(no_field(name, bounds.fields), name)


def check_values(body: bytes, fields: Iterable[tuple[str, object]], bounds: Bounds) -> None:
    """Raises InvalidRequest for what is too large in the known fields of a body."""
    check = _Check(body, bounds)
    for field, value in fields:
        check.field(field, value)
    # Both brackets at once, and those in texts.
    if np.count_nonzero((np.frombuffer(body, np.uint8) | 0x20) == ord("{")) > _MOST_NESTED:
        _check_nesting(check.nested)


def defer_to_parser(body: bytes, problem: str, field: str | None = None) -> tuple[()]:
    """It has a message for every error, and no bounds. Raises InvalidRequest for a large body."""
    if len(body) > MOST_BYTES_OF_THE_OTHER:
        raise InvalidRequest(problem, field, "invalid_json")
    return ()


class _Check:
    """Collects what may nest further in `nested`, by field."""

    def __init__(self, body: bytes, bounds: Bounds) -> None:
        self._body = body
        self._bounds = bounds
        self.nested: dict[str, list[Nested]] = defaultdict(list)

    def field(self, field: str, value: object) -> None:
        if isinstance(value, simdjson.Array):
            self._list(field, value)
        elif isinstance(value, simdjson.Object):
            if field == _ITEM:
                self._item(field, field, value)
            else:
                _check_filter(field, value)

    def _list(self, field: str, entries: simdjson.Array) -> None:
        if len(entries) and isinstance(entries[0], int | float):
            self._feature(field, field, entries)
            return
        if len(entries) > self._bounds.rows:
            raise InvalidRequest(
                f"{field} has {len(entries)} rows; permitted are 1 to {self._bounds.rows}", field
            )
        for index, entry in enumerate(entries):
            where = f"{field}[{index}]"
            if isinstance(entry, simdjson.Object):
                self._item(field, where, entry)
            elif isinstance(entry, simdjson.Array):
                self._feature(field, where, entry)

    def _item(self, field: str, where: str, item: simdjson.Object) -> None:
        check_few(where, len(item))
        names = list(item.keys())
        if len(names) != len(set(names)):  # simdjson shows the first of two alone.
            problem = f"{where} has a field more than once; permitted is once"
            defer_to_parser(self._body, problem, field)
        for name in names:
            if name not in self._bounds.item_fields:
                raise InvalidRequest(no_field(f"{where}.{name}", self._bounds.item_fields), field)
            value = item[name]
            if name in _FEATURES and isinstance(value, simdjson.Array):
                self._feature(field, where, value)
            elif isinstance(value, Nested):
                _check_size(field, f"{where}.{name}", value, self._bounds.payload_bytes)
                self.nested[field].append(value)

    def _feature(self, field: str, where: str, numbers: simdjson.Array) -> None:
        if len(numbers) > WIDEST_FEATURE:
            raise InvalidRequest(
                f"{where} has {len(numbers)} numbers; permitted are up to {WIDEST_FEATURE}", field
            )
        self.nested[field].append(numbers)


def _check_size(field: str, where: str, value: Nested, most: int) -> None:
    """A payload that is a little too large is left to `collection_bodies.py`, which counts it as it is stored."""
    size = len(_as_bytes(value))
    if size > _LONGER_NUMBERS * most:
        raise InvalidRequest(f"{where} has {size} bytes; permitted are {most}", field)


def _check_filter(field: str, value: simdjson.Object) -> None:
    text = _as_bytes(value)
    if len(text) <= _MOST_IN_FILTER:
        return
    found = _count_outside_texts(text, b"[{,")
    if found > _MOST_IN_FILTER:
        raise InvalidRequest(
            f"{field} has {found} values; permitted are up to {_MOST_IN_FILTER}", field
        )


def _check_nesting(nested: Mapping[str, Sequence[Nested]]) -> None:
    most = _MOST_NESTED + sum(map(len, nested.values()))
    counts = {
        field: _count_outside_texts(b"".join(map(_as_bytes, values)), b"[{")
        for field, values in nested.items()
    }
    if sum(counts.values()) > most:
        field = max(counts, key=counts.__getitem__)
        raise InvalidRequest(
            f"{field} has {counts[field]} lists and objects inside its entries; permitted are {most}: "
            "send fewer entries in one request, or nest less in them",
            field,
        )


def _as_bytes(value: Nested) -> bytes:
    """Return the value as JSON without spaces."""
    return cast("bytes", value.mini)  # simdjson declares a text.


def _count_outside_texts(document: bytes, marks: bytes) -> int:
    """How many of these characters stand outside of quotes, by numpy, which lets other threads run."""
    without_escapes = document.replace(rb"\\", b"").replace(rb"\"", b"")
    characters = np.frombuffer(without_escapes, np.uint8)
    is_kept = characters == ord('"')
    for mark in marks:
        is_kept |= characters == mark
    is_quote = characters[is_kept] == ord('"')
    is_outside = ~np.logical_xor.accumulate(is_quote)
    return int(np.count_nonzero(is_outside & ~is_quote))
