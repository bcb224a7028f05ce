"""How much collections may hold, as `settings.py` says it; nothing is imported for it."""

from typing import NamedTuple


class Limits(NamedTuple):
    """Collections of one owner, rows of one collection, rows and bytes of all of them in a replica."""

    collections: int
    rows: int
    all_rows: int
    all_bytes: int
