"""The next items are made in a thread while the present one is in use."""

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.1


def prefetched(items: Iterator[T], depth: int) -> Generator[T]:
    """The same items in the same order, up to `depth` of them made ahead; errors come in their place.

    Whoever stops asking ends the thread; `items` is closed by it.
    """
    ahead: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    left = threading.Event()
    maker = threading.Thread(target=_make, args=[items, ahead, left], daemon=True, name="prefetch")
    maker.start()
    try:
        while True:
            item, error = ahead.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        left.set()
        maker.join()


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
