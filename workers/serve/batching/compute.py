"""The compute side of a replica as a port: embedding rows, and heavy work in the background.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from workers.serve.tracing import RequestTrace
from workers.serve.versions.loading import Float32Array, ServedVersion

# The tenant of work that no request waits for.
BACKGROUND = "(background)"

P = ParamSpec("P")
T = TypeVar("T")

# How long the steps of one tenant run before another tenant's turn.
_TURN_SECONDS = 0.02
Steps = Generator[None, None, T]
# A search that compares with millions of rows, or a map between two versions, takes some seconds.
_HEAVY_SECONDS = 120.0


@dataclass(frozen=True)
class Ticket:
    """The tenant whose share of the compute rows take, the deadline, by the event loop's clock, and where times of a
    traced request are noted."""

    tenant: str = ""
    deadline: float = float("inf")
    trace: RequestTrace | None = None


NO_TICKET = Ticket()


class Compute(Protocol):
    """Applies heads to rows; used from one event loop."""

    @property
    def waiting_rows(self) -> int:
        """Rows that no product has been started for."""
        ...

    async def embed(
        self,
        version: ServedVersion,
        modality: str,
        rows_BF: Float32Array,
        *,
        normalize: bool = True,
        ticket: Ticket = NO_TICKET,
    ) -> Float32Array:
        """Embeddings (B × E) by this version; rows of other requests may share the product.

        Raises DeadlineExceeded, where the rows waited until after the deadline.
        """
        ...

    async def run(
        self, tenant: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run anything heavy, one after the other, in another thread than the products.

        `tenant`: tenants are served in turns; or BACKGROUND.
        """
        ...

    @property
    def background_seconds(self) -> float:
        """How long the present work of `run` has taken; 0 where there is none."""
        ...

    async def responds(self, seconds: float) -> bool:
        """Whether the thread of the products completes a task within so many seconds."""
        ...


async def run_interleaved(compute: Compute, tenant: str, steps: Steps[T]) -> T:
    """Run steps as `Compute.run` does, with other tenants' turns in between. Returns what they return."""
    while True:
        done = await compute.run(tenant, _advance, steps)
        if done is not None:
            return done[0]


def _advance(steps: Steps[T]) -> tuple[T] | None:
    until = time.monotonic() + _TURN_SECONDS
    try:
        while time.monotonic() < until:
            next(steps)
    except StopIteration as end:
        return (end.value,)
    return None


def run_to_end(steps: Steps[T]) -> T:
    """Run all steps in this thread. Returns what they return."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        found: T = end.value
        return found


async def stuck(compute: Compute, seconds: float) -> str | None:
    """Return which thread is stuck; None where none is. Waits for `seconds` at most."""
    if not await compute.responds(seconds):
        return f"the compute thread did not respond for {seconds:g} s"
    busy = compute.background_seconds
    if busy > _HEAVY_SECONDS:
        return f"the background thread has been busy with the same work for {busy:.0f} s"
    return None
