"""Tensors of all heads in one replica: one copy of each, counted in bytes while anything refers to it."""

import threading
import weakref
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from torch import Tensor


@dataclass(eq=False)
class Reservation:
    """Bytes set aside for heads that are being read. `left` shrinks as their tensors are counted."""

    owner: str | None
    left: int


@dataclass(frozen=True, eq=False)
class SharedTensor:
    """A contiguous float32 tensor that several versions may hold; nothing writes to it."""

    tensor: Tensor

    @property
    def bytes(self) -> int:
        """Of its entries."""
        return self.tensor.nbytes


class TensorPool:
    """Holds nothing itself: a tensor goes with the last version or request that refers to it.

    Used from several threads. Counting relies on reference counts, so a version that was evicted while
    a request uses it counts until that request is over.
    """

    def __init__(self) -> None:
        self._by_content: weakref.WeakValueDictionary[Hashable, SharedTensor] = (
            weakref.WeakValueDictionary()
        )
        self._bytes = 0
        # Finalizers run at any moment in any thread, also inside of the lock: they only append.
        self._freed: deque[int] = deque()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Of all tensors that something refers to."""
        with self._lock:
            return self._count()

    def share(self, tensor: Tensor, reservation: Reservation) -> SharedTensor:
        """The tensor, or the one with the same shape and entries that is here already."""
        content = (
            tuple(tensor.shape),
            blake3(tensor.flatten().numpy().view(np.uint8).data).digest(),
        )
        with self._lock:
            reservation.left -= min(reservation.left, tensor.nbytes)
            shared = self._by_content.get(content)
            if shared is None:
                shared = self._by_content[content] = SharedTensor(tensor)
                self._bytes += tensor.nbytes
                weakref.finalize(shared, self._freed.append, tensor.nbytes).atexit = False
            return shared

    def _count(self) -> int:
        while self._freed:
            self._bytes -= self._freed.popleft()
        return self._bytes
