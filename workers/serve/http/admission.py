"""How much is worked on at once, counted in rows: a request of 4096 rows is not one of 1 row."""

from collections.abc import Iterator
from contextlib import contextmanager

from workers.serve.http.errors import Overloaded


class RowsInFlight:
    """Used from one event loop, so the count needs no lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows = 0

    @contextmanager
    def admitted(self, rows: int) -> Iterator[None]:
        """Count these rows while the block runs. Raises Overloaded if they are too many now."""
        if self._rows + rows > self._limit:
            raise Overloaded(
                f"{self._rows} rows are being embedded already, and {rows} more would be over the "
                f"limit of {self._limit}; try again"
            )
        self._rows += rows
        try:
            yield
        finally:
            self._rows -= rows
