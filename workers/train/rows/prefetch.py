"""The next items are made in a thread while the present one is in use."""

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Generic, TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.1


class Ahead(Generic[T]):
    """Items that a thread makes from now on, up to `depth` of them before they are asked for.

    They come in their order, and errors in their place. Whoever has it closes it.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._left = threading.Event()
        self._maker = threading.Thread(
            target=_make, args=[items, self._made, self._left], daemon=True, name="prefetch"
        )
        self._maker.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._made.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def close(self) -> None:
        """The thread ends, which closes `items`."""
        self._left.set()
        self._maker.join()


def prefetched(items: Iterator[T], depth: int) -> Generator[T]:
    """The same items in the same order, up to `depth` of them made ahead; errors come in their place.

    Whoever stops asking ends the thread; `items` is closed by it.
    """
    with closing(Ahead(items, depth)) as ahead:
        yield from ahead


def _make(
    items: Iterator[T],
    ahead: "queue.Queue[tuple[T | None, BaseException | None]]",
    left: threading.Event,
) -> None:
    """Items, then either None or the error that ended them."""
    end: tuple[T | None, BaseException | None] = (None, None)
    try:
        with closing(items):  # type: ignore[type-var]
            for item in items:
                if not _put(ahead, (item, None), left):
                    return
    except BaseException as error:  # noqa: BLE001
        # It is raised where the item was asked for.
        end = (None, error)
    _put(ahead, end, left)


def _put(
    ahead: "queue.Queue[tuple[T | None, BaseException | None]]",
    entry: tuple[T | None, BaseException | None],
    left: threading.Event,
) -> bool:
    """False once nobody asks any more."""
    while not left.is_set():
        try:
            ahead.put(entry, timeout=_LOOK_SECONDS)
        except queue.Full:
            continue
        return True
    return False
