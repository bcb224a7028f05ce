"""JSON bodies, looked at by simdjson once before anything is made of their entries.

Features alone are read straight into an array, in a third of the time of making a list of numbers. Every
other body is checked by `json_bounds.py` before it is parsed.

Shapes: B rows, F width of the raw feature.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import pybase64
import simdjson
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from cmcl.contract.encoder import WIDEST_FEATURE
from workers.serve.api.wire.json_bounds import (
    MOST_BYTES_OF_THE_OTHER,
    MOST_FIELDS,
    Bounds,
    check_few,
    check_known,
    check_values,
    defer_to_parser,
)

M = TypeVar("M", bound=BaseModel)

# More rows than any replica takes on at once; the parser of `requests.py` has the message.
_MOST_ROWS = 1 << 16
# What simdjson raises for bodies that are no JSON, or are more than it reads: integers beyond 64 bits.
_NOT_JSON = (ValueError, RuntimeError)
# And for entries that are no numbers.
_NOT_PLAIN = (*_NOT_JSON, TypeError, KeyError, ValidationError)
_MOST_DIGITS = 64
_MOST_LONG = 1000
_KEPT = 4
_LONG = b"0" * 19
# Searching bytes for bytes takes a tenth of what a regular expression does.
_DIGITS_AS_ZEROS = bytes(b"0"[0] if byte in b"0123456789" else b" "[0] for byte in range(256))
# What Python's `json.dumps` writes where there is no number.
_NO_NUMBERS = (b"NaN", b"Infinity")
_MOST_TEXTS = 8
_FIELDS_OF_ITEM = ("modality", "feature")


class _LongIntegers(Exception):
    """The message is for the client."""


@dataclass(frozen=True)
class ScannedBody:
    """A body and what simdjson reads in it. `is_json`: whether simdjson takes the body."""

    body: bytes
    document: object
    is_json: bool = True


def scan(body: bytes) -> ScannedBody:
    """Parse the body once. Never raises."""
    try:
        return ScannedBody(body, simdjson.Parser().parse(body))
    except _NOT_JSON:
        return ScannedBody(body, None, is_json=False)


@dataclass(frozen=True)
class ItemRows:
    """Features of the items of one modality (B × F), and the positions of these items in the input."""

    modality: str
    rows_BF: NDArray[np.float32]
    positions: Sequence[int]


@dataclass(frozen=True)
class PlainRequest(Generic[M]):
    """A request whose input is features alone: one list of numbers, lists of equal length, or items with base64.

    `features`: the lists as an array (B × F), or the items by modality.
    """

    options: M
    features: NDArray[np.float64] | list[ItemRows]


def read_plain(scanned: ScannedBody, options_model: type[M]) -> PlainRequest[M] | None:
    """Return None where the input is anything else, or has an error, which `requests.py` reports."""
    if not isinstance(scanned.document, simdjson.Object):
        return None
    try:
        return _plain(scanned.body, scanned.document, options_model)
    except _NOT_PLAIN:
        return None


def _plain(
    body: bytes, document: simdjson.Object, options_model: type[M]
) -> PlainRequest[M] | None:
    if len(document) > MOST_FIELDS:
        return None
    names, given = list(document.keys()), document["input"]
    if len(names) != len(set(names)) or not isinstance(given, simdjson.Array):
        return None
    if not 1 <= len(given) <= _MOST_ROWS:
        return None
    is_items = isinstance(given[0], simdjson.Object)
    # Items name their modalities themselves.
    if is_items and "modality" in names:
        return None
    features = _items(given) if is_items else _lists(given, body)
    if features is None:
        return None
    options = {name: document[name] for name in names if name != "input"}
    return PlainRequest(options_model.model_validate(options), features)


def _lists(given: simdjson.Array, body: bytes) -> NDArray[np.float64] | None:
    """Return None where an entry is neither number nor list, or lists differ in length."""
    rows = [row for row in given if isinstance(row, simdjson.Array)] or [given]
    # `as_buffer` flattens any depth: one bracket for each list, and no other anywhere.
    brackets = len(rows) + (rows[0] is not given)
    width = len(rows[0])
    # By numpy in a third of the time of `body.count`.
    found = np.count_nonzero(np.frombuffer(body, np.uint8) == ord("["))
    if not 1 <= width <= WIDEST_FEATURE or found != brackets:
        return None
    numbers = np.frombuffer(given.as_buffer(of_type="d"), np.float64)
    is_even = len(numbers) == len(rows) * width and all(len(row) == width for row in rows)
    return numbers.reshape(-1, width) if is_even else None


def _items(given: simdjson.Array) -> list[ItemRows] | None:
    """Return None where an item is more or less than a modality and a feature in base64, or lengths differ."""
    positions: dict[str, list[int]] = {}
    features: dict[str, list[bytes]] = {}
    for index, item in enumerate(given):
        if not isinstance(item, simdjson.Object) or len(item) != len(_FIELDS_OF_ITEM):
            return None
        modality, feature = map(item.__getitem__, _FIELDS_OF_ITEM)
        if not isinstance(modality, str) or not isinstance(feature, str):
            return None
        positions.setdefault(modality, []).append(index)
        features.setdefault(modality, []).append(pybase64.b64decode(feature, validate=True))
    if any(len({len(each) for each in rows}) > 1 for rows in features.values()):
        return None
    # A bytearray: torch warns of arrays that it may not write to.
    return [
        ItemRows(
            modality,
            np.frombuffer(bytearray().join(rows), "<f4").reshape(len(rows), -1),
            positions[modality],
        )
        for modality, rows in features.items()
    ]


def check_lengths(body: bytes, bounds: Bounds, scanned: ScannedBody | None = None) -> None:
    """Raises InvalidRequest where the body has an unknown field, or more than `bounds` permits.

    `scanned`: the body, where it was scanned before. Other errors are left to the parser.
    """
    if len(body) <= 2 * min(bounds.rows, WIDEST_FEATURE):
        return  # An entry takes two bytes at least.
    check_values(body, _fields(scanned or scan(body), bounds), bounds)


def _fields(scanned: ScannedBody, bounds: Bounds) -> Iterable[tuple[str, object]]:
    """Raises InvalidRequest for an unknown field, and for a large body that simdjson does not take."""
    body, document = scanned.body, scanned.document
    if not scanned.is_json:
        try:
            document = _parsed_with_short_integers(body)
        except _LongIntegers as error:
            return defer_to_parser(body, str(error))
        except _NOT_JSON:
            return defer_to_parser(body, _error_message(body))
    if not isinstance(document, simdjson.Object):
        return defer_to_parser(body, "the body is not a JSON object")
    check_few("the body", len(document))
    names = list(document.keys())
    check_known(names, bounds)
    if len(names) != len(set(names)):  # Of two the parser takes the last, and simdjson the first.
        return defer_to_parser(body, "the body has a field more than once; permitted is once")
    return [(name, document[name]) for name in names]


def _parsed_with_short_integers(body: bytes) -> object:
    """A body that simdjson refused as it is. Raises _LongIntegers, and what simdjson raises."""
    shorter = _with_short_integers(body)
    if shorter == body:
        raise ValueError("the body is not JSON")
    return simdjson.Parser().parse(shorter)


def _with_short_integers(body: bytes) -> bytes:
    """Integers beyond 64 bits, which simdjson refuses, cut to four digits: it is lists that count.

    Digits in texts are cut as well; four of them end any escape. Raises _LongIntegers where there are
    so many or so long ones that the parser could take seconds.
    """
    pieces, last = [], 0
    for number, (start, end) in enumerate(_long_runs(body)):
        if end - start > _MOST_DIGITS or number == _MOST_LONG:
            raise _LongIntegers(
                "the body has an integer of more than 64 bits; permitted beside one are up to "
                f"{_MOST_DIGITS} digits in a row, and 19 or more of them up to {_MOST_LONG} times"
            )
        pieces.append(body[last : start + _KEPT])
        last = end
    return b"".join([*pieces, body[last:]])


def _long_runs(body: bytes) -> Iterator[tuple[int, int]]:
    """Where 19 digits or more in a row begin and end: no fewer are beyond 64 bits."""
    digits = body.translate(_DIGITS_AS_ZEROS) + b" "
    start = digits.find(_LONG)
    while start >= 0:
        end = digits.index(b" ", start)
        yield start, end
        start = digits.find(_LONG, end)


def _error_message(body: bytes) -> str:
    """The message for a body that is too large for the parser's own."""
    finite = body
    for name in _NO_NUMBERS:
        finite = finite.replace(name, b"0")
    if finite == body or not _is_json(finite):
        return (
            "the body is not JSON: it is cut off, a comma, bracket or quote is missing or one too "
            "many, or a value is none; of one of up to "
            f"{MOST_BYTES_OF_THE_OTHER} bytes the error would say where"
        )
    found = [(_outside_texts(body, name), name.decode()) for name in _NO_NUMBERS]
    places = [f"{name} at byte {place}" for place, name in found if place is not None]
    return f"the body has {' and '.join(places) or 'NaN or Infinity'}; permitted are finite numbers"


def _is_json(body: bytes) -> bool:
    if scan(body).is_json:
        return True
    try:
        _parsed_with_short_integers(body)
    except (*_NOT_JSON, _LongIntegers):
        return False
    return True


def _outside_texts(body: bytes, word: bytes) -> int | None:
    """Where it first stands outside of quotes; None where that is not among the first few places."""
    place = body.find(word)
    for _ in range(_MOST_TEXTS):
        if place < 0:
            return None
        before = body[:place].replace(rb"\\", b"").replace(rb"\"", b"")
        if before.count(b'"') % 2 == 0:
            return place
        place = body.find(word, place + 1)
    return None
