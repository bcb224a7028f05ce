"""What rows take in the memory of a replica, told before they are there: as much, or more than it will be.

Without graphs, which only large collections have.
"""

from collections.abc import Iterable

from workers.serve.search.index.index import ROW_BYTES

# Its text, and each value in a table: `{"a":[1,1,...]}` has 2 bytes for one, and a table 12 more.
_PAYLOAD_TIMES = 7
_BYTES_OF_NUMBER = 4
# Where a row's id and payload begin, and whether it has one.
_BYTES_OF_PLACES = 16
# That of before a swap is kept.
_VERSIONS = 2


def vectors_bytes(rows: int, width: int) -> int:
    """Of so many rows: vectors of two versions of that width, and what else each has, however short."""
    return rows * (_VERSIONS * _BYTES_OF_NUMBER * width + ROW_BYTES + _BYTES_OF_PLACES)


def texts_bytes(ids: int, payloads: int) -> int:
    """Of ids and payloads that have so many bytes as they are written."""
    return ids + _PAYLOAD_TIMES * payloads


def rows_bytes(width: int, ids: Iterable[str], payloads: Iterable[str | None]) -> int:
    """Of new rows, whole."""
    sizes = [len(each.encode()) for each in ids]
    payload_sizes = (len((each or "").encode()) for each in payloads)
    return vectors_bytes(len(sizes), width) + texts_bytes(sum(sizes), sum(payload_sizes))
