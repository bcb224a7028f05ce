"""Threads that compute side by side, each with one of BLAS.

Two threads of one product wait for each other: where other processes use a core now and then, for the later of the two
each time. Small products gain nothing from a second thread at all.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, and restore the number afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results for all items, of as many at a time as torch has threads."""
    threads = torch.get_num_threads()
    if threads == 1:
        return [function(item) for item in items]
    # A new thread computes with as many as are set when it starts.
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        return [*pool.map(function, items)]


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, each made in another thread while the one before is used, if torch has several threads."""
    if torch.get_num_threads() == 1:
        yield from items
        return
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item
