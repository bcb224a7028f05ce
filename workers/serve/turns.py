"""Whose turn it is: whoever asks for much must not keep those waiting who ask for little."""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """First come, first served within a key; keys take turns. Used from one thread."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[str, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def add(self, key: str, item: T) -> None:
        """Behind what its key has waiting."""
        self._by_key.setdefault(key, deque()).append(item)

    @property
    def next(self) -> T:
        """Whose turn it is. Raises StopIteration where nobody waits."""
        return next(iter(self._by_key.values()))[0]

    def take(self) -> T:
        """The next one, which then waits no more. Raises StopIteration where nobody waits."""
        key, waiting = next(iter(self._by_key.items()))
        taken = waiting.popleft()
        if waiting:
            self._by_key.move_to_end(key)
        else:
            del self._by_key[key]
        return taken
