"""Features in JSON, read straight into an array: a third of the time of making a list of numbers.

Shapes: B rows, F width of the raw feature.

Only the plain case: one list of numbers, or lists of equal length. Whatever is not that, or not right,
is left to the parser of `requests.py`, which takes all forms and has words for all mistakes.
"""

from dataclasses import dataclass

import numpy as np
import simdjson
from numpy.typing import NDArray
from pydantic import ValidationError

from cmcl.contract.model import WIDEST_FEATURE
from workers.serve.api.wire.requests import EmbeddingOptions

# More rows than any replica takes on at once; the other parser says so.
_MOST_ROWS = 1 << 16
# What simdjson raises for bodies that are no JSON, and for entries that are no numbers.
_NOT_PLAIN = (ValueError, TypeError, RuntimeError, KeyError, UnicodeDecodeError)


@dataclass(frozen=True)
class PlainRequest:
    """A request whose input is features alone."""

    options: EmbeddingOptions
    rows_BF: NDArray[np.float64]


def read_plain(body: bytes) -> PlainRequest | None:
    """None where the body is anything else, or has a mistake."""
    try:
        return _read(body)
    except (*_NOT_PLAIN, ValidationError):
        return None


def _read(body: bytes) -> PlainRequest | None:
    document = simdjson.Parser().parse(body)
    if not isinstance(document, simdjson.Object):
        return None
    names, given = list(document.keys()), document["input"]
    if len(names) != len(set(names)) or not isinstance(given, simdjson.Array):
        return None
    rows = _rows(given)
    # `as_buffer` flattens whatever depth there is: a bracket for each list, and no other anywhere.
    brackets = len(rows) + (rows[0] is not given) if rows else 0
    widths = {len(row) for row in rows}
    if len(widths) != 1 or not 1 <= max(widths) <= WIDEST_FEATURE or body.count(b"[") != brackets:
        return None
    options = {name: document[name] for name in names if name != "input"}
    numbers = np.frombuffer(given.as_buffer(of_type="d"), np.float64)
    return PlainRequest(EmbeddingOptions.model_validate(options), numbers.reshape(len(rows), -1))


def _rows(given: simdjson.Array) -> list[simdjson.Array]:
    """One where the entries are numbers; none where there is nothing, or too much."""
    if not 1 <= len(given) <= _MOST_ROWS:
        return []
    if not isinstance(given[0], simdjson.Array):
        return [given]
    rows = [row for row in given if isinstance(row, simdjson.Array)]
    return rows if len(rows) == len(given) else []
