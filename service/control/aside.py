"""Steps that read or copy whole files: each in a thread beside the rounds of the reconciler.

A candidate has as many bytes as its model. If one of a gigabyte were judged within a round, the other
models of this service would wait for it, and their leases would run out meanwhile.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future

# More of them share one disk and one line to the store.
_AT_ONCE = 4


class Aside:
    """One step at a time of each model. Used from the reconciler's thread alone.

    Nothing is lost with a step that does not end: like every other one, it can be cut off anywhere and
    run again, here or elsewhere. `ring` is called with the model when one has ended.
    """

    def __init__(self, executor: Executor, ring: Callable[[str], None]) -> None:
        self._executor = executor
        self._ring = ring
        self._under_way: dict[str, Future[None]] = {}

    def begin(self, model: str, step: Callable[[], None]) -> None:
        """Start it; without a place, nothing: the next round tries again.

        Raises what the step raises, if it has ended already.
        """
        if len(self._under_way) >= _AT_ONCE:
            return
        future = self._executor.submit(step)
        self._under_way[model] = future
        if not self._has_ended(model, future):
            future.add_done_callback(lambda _: self._ring(model))

    def is_busy(self, model: str) -> bool:
        """Whether a step of the model is under way. Raises what it raised, once, if it has ended."""
        future = self._under_way.get(model)
        return future is not None and not self._has_ended(model, future)

    def _has_ended(self, model: str, future: Future[None]) -> bool:
        if not future.done():
            return False
        del self._under_way[model]
        future.result()
        return True
