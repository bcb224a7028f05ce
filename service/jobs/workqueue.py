"""Wakes the reconciler for a model: what just happened to it in this process is carried on at once.

Only for speed. A ring that is missed, or meant for another service, is made good by the next round.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import ParamSpec, TypeVar

from service.clock import Clock

# No name of a model.
EVERYBODY = "*"


# More of them share one disk and one line to the store.
_AT_ONCE = 4

Step = Callable[[], None]

P = ParamSpec("P")

T = TypeVar("T")


class DaemonThreads(Executor):
    """One thread of that name for each call; whoever submits sees to it that they are few.

    The pool of the standard library is waited for when a process ends, hung calls included.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `concurrent.futures.Executor`."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 (whoever asks for the result gets it)
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return future


class WakeSignal:
    """Rung by anybody, waited for by one."""

    def __init__(self) -> None:
        self._rung = threading.Event()
        self._models: set[str] = set()
        self._lock = threading.Lock()

    def ring(self, model: str = EVERYBODY) -> None:
        """There may be something to do, for that model or for any."""
        with self._lock:
            self._models.add(model)
            self._rung.set()

    def wait(self, seconds: float) -> frozenset[str]:
        """For which models it rang since the last wait; none if it did not for so many seconds."""
        self._rung.wait(seconds)
        with self._lock:
            self._rung.clear()
            rung, self._models = frozenset(self._models), set()
        return rung


@dataclass(frozen=True)
class _UnderWay:
    future: Future[None]
    since: datetime


class BackgroundSteps:
    """One step at a time of each model, a few at a time of all, in the order in which they were begun.

    Nothing is lost with a step that does not end: like every other one, it can be cut off anywhere and
    run again, here or elsewhere. As it may wait for its place, a step looks for itself what there is to
    do. `ring` is called with the model when one has ended. Used from the reconciler's thread alone, but
    for `longest`.
    """

    def __init__(self, executor: Executor, ring: Callable[[str], None], clock: Clock) -> None:
        self._executor = executor
        self._ring = ring
        self._clock = clock
        self._waiting: dict[str, Step] = {}
        self._under_way: dict[str, _UnderWay] = {}

    def begin(self, model: str, step: Step) -> bool:
        """Start it, or have it wait for its place; whether it was started.

        Raises what the step raises, if it has ended already.
        """
        self._waiting[model] = step
        self._fill()
        started = self._under_way.get(model)
        if started is not None and started.future.done():
            del self._under_way[model]
            started.future.result()
        return started is not None

    def is_busy(self, model: str) -> bool:
        """Whether a step of the model waits, is under way, or is yet to be told of by `ended`."""
        return model in self._waiting or model in self._under_way

    def ended(self) -> dict[str, Future[None]]:
        """Steps that have ended since, by model; their places go to those that wait."""
        ended = {name: step.future for name, step in self._under_way.items() if step.future.done()}
        for model in ended:
            del self._under_way[model]
        self._fill()
        return ended

    def longest(self) -> tuple[str, float] | None:
        """The model whose step has been under way for the longest time, and the seconds; from any thread."""
        steps = [(step.since, model) for model, step in self._under_way.copy().items()]
        if not steps:
            return None
        since, model = min(steps)
        return model, (self._clock() - since).total_seconds()

    def _fill(self) -> None:
        while self._waiting and len(self._under_way) < _AT_ONCE:
            model = next(iter(self._waiting))
            future = self._executor.submit(self._waiting.pop(model))
            self._under_way[model] = _UnderWay(future, self._clock())
            if not future.done():
                future.add_done_callback(partial(self._tell, model))

    def _tell(self, model: str, _: Future[None]) -> None:
        self._ring(model)
