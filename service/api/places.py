"""How many bodies of files are taken at one time: each of them fills memory and this machine's disk."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import TooManyRequests

_RETRY_SECONDS = 2
_KEPT_FOR_OTHERS = 2


class Places:
    """So many for all, and all but two of them for one owner, so that nobody keeps the others out.

    Without keys everybody is one owner: half of the places would lie idle.

    Used on the event loop alone. Who finds none free is told so at once: to wait, a request would hold
    its connection, and with it what of its body has arrived already.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._share = max(1, total - _KEPT_FOR_OTHERS)
        self._taken: Counter[str] = Counter()

    @contextmanager
    def one(self, owner: str) -> Iterator[None]:
        """A place for as long as the block runs. Raises TooManyRequests where none is free."""
        if self._taken.total() >= self._total:
            message = f"{self._total} parts of files are being taken at this moment"
            raise TooManyRequests(f"{message}; send this one again", _RETRY_SECONDS)
        if self._taken[owner] >= self._share:
            message = f"{self._share} parts of your files are being taken at this moment"
            raise TooManyRequests(f"{message}; send this one again", _RETRY_SECONDS)
        self._taken[owner] += 1
        try:
            yield
        finally:
            self._taken[owner] -= 1
            self._taken += Counter()
