"""What rows take in the memory of a replica, estimated before they are there: as much, or more.

What reading takes for a moment is bounded, and not counted here: rows are read about 1 MiB of payloads at
a time, and parts are merged up to 32 MiB of payloads (`index/draft.py`).
"""

from collections.abc import Iterable

from workers.serve.collections.index import GRAPH_FROM_ROWS, ROW_BYTES

# Its text, and each value in a table: `{"a":[1,1,...]}` has 2 bytes for one, and a table 12 more.
_PAYLOAD_TIMES = 7
_BYTES_OF_NUMBER = 4
# Where a row's id and payload begin, and whether it has one.
_BYTES_OF_PLACES = 16
# The one that answers, the one before, which is kept for a roll back, and the one that is being made.
VERSIONS = 3
# Of a row in a graph: its vector as float16, and its edges.
_BYTES_OF_HALF = 2
_BYTES_OF_EDGES = 700


def vectors_bytes(rows: int, width: int) -> int:
    """Of so many rows: vectors of three versions of that width, and what else each has, however short."""
    return rows * (VERSIONS * _BYTES_OF_NUMBER * width + ROW_BYTES + _BYTES_OF_PLACES)


def graphs_bytes(rows: int, width: int) -> int:
    """Of the graphs that a collection of so many rows is given, for three versions."""
    if rows < GRAPH_FROM_ROWS:
        return 0
    return rows * VERSIONS * (_BYTES_OF_HALF * width + _BYTES_OF_EDGES)


def texts_bytes(ids: int, payloads: int) -> int:
    """Of ids and payloads that have so many bytes as they are written."""
    return ids + _PAYLOAD_TIMES * payloads


def rows_bytes(width: int, ids: Iterable[str], payloads: Iterable[str | None]) -> int:
    """Of new rows, whole."""
    sizes = [len(each.encode()) for each in ids]
    payload_sizes = (len((each or "").encode()) for each in payloads)
    return vectors_bytes(len(sizes), width) + texts_bytes(sum(sizes), sum(payload_sizes))
