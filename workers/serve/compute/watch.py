"""Whether the threads that compute still move: what health checks ask."""

from workers.serve.compute.port import Compute

# A search that compares with millions of rows, or a map between two versions, takes some seconds.
_HEAVY_SECONDS = 120.0


async def stuck(compute: Compute, seconds: float) -> str | None:
    """What does not move, in words; None where everything does. Waits for `seconds` at most."""
    if not await compute.moves(seconds):
        return f"the compute thread did nothing for {seconds:g} s"
    busy = compute.heavy_seconds
    if busy > _HEAVY_SECONDS:
        return f"the thread of searches and maps has been at the same work for {busy:.0f} s"
    return None
