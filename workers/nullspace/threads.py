"""Threads of small products: a second one costs more than it saves, most where its core is busy or has to wake up."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(is_on: bool = True) -> Iterator[None]:
    """Compute with one thread, if `is_on`."""
    threads = torch.get_num_threads()
    try:
        if is_on:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
