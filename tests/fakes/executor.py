"""Executors that do work at once, never, or when there are threads."""

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class InlineExecutor(Executor):
    """Runs at once. A simulated death goes through to the caller, as a real one would."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The finished future."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 (an executor passes on every exception)
            future.set_exception(error)
        return future


class IdleExecutor(Executor):
    """Accepts work and never runs it: a validation that never ends."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A future that never completes."""
        return Future()


class ScarceThreads(ThreadPoolExecutor):
    """While `are_gone` what is submitted stays in the queue and raises, as with any executor."""

    are_gone = False

    def _adjust_thread_count(self) -> None:
        if self.are_gone:
            raise RuntimeError("can't start new thread")
        super()._adjust_thread_count()  # type: ignore[misc]
