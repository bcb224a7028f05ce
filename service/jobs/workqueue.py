"""What feeds the reconciler beside its rounds: a wake signal, and steps that run in the background."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import ParamSpec, TypeVar

from service.clock import Clock

P = ParamSpec("P")
T = TypeVar("T")

Step = Callable[[], None]

# Not the name of a model.
ALL_MODELS = "*"
# More of them would share one disk and one connection to the store.
_MAX_RUNNING = 4


class DaemonThreads(Executor):
    """Executor with one daemon thread per call. The caller bounds the number of calls.

    `ThreadPoolExecutor` would not do: the interpreter joins its threads at exit, hung calls included.
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
            except BaseException as error:  # noqa: BLE001 (raised by `future.result()`)
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return future


class WakeSignal:
    """Wakes the reconciler for a model that changed in this process.

    It saves latency only: a change that is signalled nowhere, or in another replica, is found by the next
    round. Any thread may notify; one thread waits.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._models: set[str] = set()
        self._lock = threading.Lock()

    def notify(self, model: str = ALL_MODELS) -> None:
        """Signal that the model may have work; by default, that any model may."""
        with self._lock:
            self._models.add(model)
            self._event.set()

    def wait(self, seconds: float) -> frozenset[str]:
        """Return the models signalled since the last wait; empty after so many seconds without one."""
        self._event.wait(seconds)
        with self._lock:
            self._event.clear()
            woken, self._models = frozenset(self._models), set()
        return woken


@dataclass(frozen=True)
class _Running:
    future: Future[None]
    since: datetime


class BackgroundSteps:
    """Runs steps that read or copy whole files outside the rounds: one per model, a few in total, in FIFO order.

    A candidate is as large as its model. Judging one of a gigabyte within a round would delay the other
    models of this replica until their leases expire.

    A step may be interrupted anywhere and run again, in this process or another one. It may wait for its
    start, so it reads what there is to do when it runs. `notify` is called with the model when a step ends.
    All methods but `longest` are for the reconciler's thread.
    """

    def __init__(self, executor: Executor, notify: Callable[[str], None], clock: Clock) -> None:
        self._executor = executor
        self._notify = notify
        self._clock = clock
        self._waiting: dict[str, Step] = {}
        self._running: dict[str, _Running] = {}

    def begin(self, model: str, step: Step) -> bool:
        """Start the step, or queue it. Return whether it was started.

        Raises what the step raises, if it has ended already.
        """
        self._waiting[model] = step
        self._fill()
        started = self._running.get(model)
        if started is not None and started.future.done():
            del self._running[model]
            started.future.result()
        return started is not None

    def is_busy(self, model: str) -> bool:
        """Return whether a step of the model is queued, running, or not yet returned by `ended`."""
        return model in self._waiting or model in self._running

    def ended(self) -> dict[str, Future[None]]:
        """Return the steps that ended since the last call, by model, and start queued ones."""
        ended = {name: step.future for name, step in self._running.items() if step.future.done()}
        for model in ended:
            del self._running[model]
        self._fill()
        return ended

    def longest(self) -> tuple[str, float] | None:
        """Return the model of the step that runs longest, and its seconds. Any thread may call this."""
        steps = [(step.since, model) for model, step in self._running.copy().items()]
        if not steps:
            return None
        since, model = min(steps)
        return model, (self._clock() - since).total_seconds()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < _MAX_RUNNING:
            model = next(iter(self._waiting))
            future = self._executor.submit(self._waiting.pop(model))
            self._running[model] = _Running(future, self._clock())
            if not future.done():
                future.add_done_callback(partial(self._signal, model))

    def _signal(self, model: str, _: Future[None]) -> None:
        self._notify(model)
