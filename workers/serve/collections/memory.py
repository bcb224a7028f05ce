"""Upper bounds of what rows take in the memory of a replica, before they are read.

Memory for reading is bounded and not counted here: rows are read about 1 MiB of payloads at a time, and parts are
merged up to 32 MiB of payloads (`index_builder.py`).
"""

from collections.abc import Iterable

from workers.serve.collections.index import GRAPH_FROM_ROWS, ROW_BYTES

# The text, and each value in a table: `{"a":[1,1,...]}` has 2 bytes for one, and a table 12 more.
_PAYLOAD_TIMES = 7
_BYTES_OF_NUMBER = 4
# Offsets of a row's id and payload, and validity.
_BYTES_OF_PLACES = 16
# The index that answers, the one before for a rollback, and the one that is being built.
VERSIONS = 3
# Bytes of a row in a graph: its vector as float16, and its edges.
_BYTES_OF_HALF = 2
_BYTES_OF_EDGES = 700


def vectors_bytes(rows: int, width: int) -> int:
    """Bytes of so many rows: vectors of three versions of that width, and the overhead of each row."""
    return rows * (VERSIONS * _BYTES_OF_NUMBER * width + ROW_BYTES + _BYTES_OF_PLACES)


def graphs_bytes(rows: int, width: int) -> int:
    """Bytes of the graphs of a collection of so many rows, for three versions."""
    if rows < GRAPH_FROM_ROWS:
        return 0
    return rows * VERSIONS * (_BYTES_OF_HALF * width + _BYTES_OF_EDGES)


def texts_bytes(ids: int, payloads: int) -> int:
    """Bytes of ids and payloads that have so many bytes as text."""
    return ids + _PAYLOAD_TIMES * payloads


def rows_bytes(width: int, ids: Iterable[str], payloads: Iterable[str | None]) -> int:
    """Bytes of new rows in all."""
    sizes = [len(each.encode()) for each in ids]
    payload_sizes = (len((each or "").encode()) for each in payloads)
    return vectors_bytes(len(sizes), width) + texts_bytes(sum(sizes), sum(payload_sizes))
