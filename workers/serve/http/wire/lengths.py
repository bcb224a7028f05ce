"""How long the lists of a JSON body are, before anything is made of their entries.

A list of 300,000 items takes the parser of `requests.py` seconds and 300 MB, on the event loop, before
it can say that they are too many: it makes Python objects even of what it refuses. Here they are
counted in a hundredth of that.
"""

from collections.abc import Iterable, Iterator

import simdjson

from workers.contract.model import WIDEST_FEATURE
from workers.serve.errors import InvalidRequest

# More than any request has; each one that nobody knows would become a record of an error.
_MOST_FIELDS = 64
# What simdjson raises for bodies that are no JSON, or are more than it reads: integers beyond 64 bits.
_NOT_JSON = (ValueError, RuntimeError)
# The parser takes a few milliseconds for a body of this size, whatever is in it.
_MOST_BYTES_OF_THE_OTHER = 256 << 10
_MOST_DIGITS = 64
_MOST_LONG = 1000
_KEPT = 4
_LONG = b"0" * 19
# Searching bytes for bytes takes a tenth of what a regular expression does.
_DIGITS_AS_ZEROS = bytes(b"0"[0] if byte in b"0123456789" else b" "[0] for byte in range(256))


class _LongIntegers(Exception):
    """The message is for the client."""


def check_lengths(body: bytes, most: int) -> None:
    """Raises InvalidRequest where a list has more than `most` entries, or a feature is too wide.

    What is wrong otherwise is left to the parser.
    """
    if len(body) <= 2 * min(most, WIDEST_FEATURE):
        return  # An entry takes two bytes at least.
    for field, value in _fields(body):
        if isinstance(value, simdjson.Array):
            _check(field, value, most)


def _fields(body: bytes) -> Iterable[tuple[str, object]]:
    """Raises InvalidRequest for a large body that simdjson does not take."""
    try:
        document = _parsed(body)
    except _LongIntegers as error:
        return _left_to_the_parser(body, str(error))
    except _NOT_JSON as error:
        return _left_to_the_parser(body, f"the body is not JSON: {error}")
    if not isinstance(document, simdjson.Object):
        return ()
    _check_few(len(document))
    names = list(document.keys())
    if len(names) != len(set(names)):  # Of two the parser takes the last, and simdjson the first.
        return _left_to_the_parser(body, "the body has a field more than once; permitted is once")
    return [(name, document[name]) for name in names]


def _left_to_the_parser(body: bytes, problem: str) -> Iterable[tuple[str, object]]:
    """It has words for everything, and no bounds: a large body is refused."""
    if len(body) > _MOST_BYTES_OF_THE_OTHER:
        raise InvalidRequest(problem, code="invalid_json")
    return ()


def _parsed(body: bytes) -> object:
    try:
        return simdjson.Parser().parse(body)
    except _NOT_JSON:
        shorter = _with_short_integers(body)
        if shorter == body:
            raise
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


def _check_few(fields: int) -> None:
    if fields > _MOST_FIELDS:
        raise InvalidRequest(f"the body has {fields} fields; permitted are {_MOST_FIELDS}")


def _check(field: str, entries: simdjson.Array, most: int) -> None:
    if len(entries) and isinstance(entries[0], int | float):
        _check_width(field, field, entries)
        return
    if len(entries) > most:
        raise InvalidRequest(f"{field} has {len(entries)} rows; permitted are 1 to {most}", field)
    for index, entry in enumerate(entries):
        feature = entry.get("feature") if isinstance(entry, simdjson.Object) else entry
        _check_width(field, f"{field}[{index}]", feature)


def _check_width(field: str, where: str, feature: object) -> None:
    if isinstance(feature, simdjson.Array) and len(feature) > WIDEST_FEATURE:
        raise InvalidRequest(
            f"{where} has {len(feature)} numbers; permitted are up to {WIDEST_FEATURE}", field
        )
