"""Validations beside the reconciler: reading one dataset must not hold up other models.

Nothing is lost with them: a control plane that starts anew simply validates again.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from functools import partial

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.errors import StorageUnavailable, WorkerError
from service.control.validation.task import Killable, Reader, ValidationTask
from service.control.validation.turns import Turn, Turns
from service.control.validation.verify import Here
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

# Reading takes processor and memory; three leave room for everything else.
_AT_ONCE = 3

# A process that was killed is gone by then, and so are its copies of files.
_CLOSE_SECONDS = 2.0

Read = Callable[[ObjectStore, ValidationTask], DatasetManifest]
Work = Callable[[Read], DatasetManifest]


class Cord:
    """See `service.control.validation.task.Leash`: cut once, from whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Killable | None = None
        self.is_cut = False

    def hold(self, process: Killable) -> None:
        """See the port."""
        with self._lock:
            self._held = process
            if self.is_cut:
                process.kill()

    def cut(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self.is_cut = True
            if self._held is not None:
                self._held.kill()


@dataclass
class _Validation:
    """One that was asked for. It has a future once it was its turn."""

    turn: Turn
    work: Work
    cord: Cord = field(default_factory=Cord)
    future: Future[DatasetManifest] | None = None


class Validations:
    """What is read now, and what waits for it. Asked by one thread; `when_done` is called by any."""

    def __init__(
        self, executor: Executor, when_done: Callable[[], None], reader: Reader | None = None
    ) -> None:
        self._executor = executor
        self._when_done = when_done
        self._reader = reader or Here()
        self._turns = Turns(_AT_ONCE)
        self._asked: dict[str, _Validation] = {}

    def outcome(self, turn: Turn, work: Work) -> DatasetManifest | None:
        """What `work` answered or raised; None while it is still at it. Asking starts it.

        `work` gets the way to read. What it raises beside WorkerError becomes StorageUnavailable.
        """
        if not self.is_under_way(turn):
            self.forget(turn.dataset)
            self._asked[turn.dataset] = _Validation(turn, work)
            self._turns.wait(turn)
            self._begin()
        future = self._asked[turn.dataset].future
        if future is None or not future.done():
            return None
        del self._asked[turn.dataset]
        return _result(future, turn.dataset)

    def is_under_way(self, turn: Turn) -> bool:
        """Whether it was asked for here in this turn, and its outcome was not taken yet."""
        asked = self._asked.get(turn.dataset)
        return asked is not None and asked.turn == turn

    def forget(self, dataset: str) -> None:
        """Nobody waits for it any more."""
        asked = self._asked.pop(dataset, None)
        if asked is None:
            return
        self._turns.leave(asked.turn)
        asked.cord.cut()
        if asked.future is not None:
            asked.future.cancel()

    def close(self) -> None:
        """Start nothing any more, end what can be ended, and do not wait long for the rest."""
        running = [asked.future for asked in self._asked.values() if asked.future is not None]
        for dataset in list(self._asked):
            self.forget(dataset)
        self._executor.shutdown(wait=False, cancel_futures=True)
        wait(running, _CLOSE_SECONDS)

    def _begin(self) -> None:
        """Whatever has its turn."""
        while (turn := self._turns.take()) is not None:
            asked = self._asked.get(turn.dataset)
            if asked is None or asked.turn != turn:
                # Forgotten a moment ago.
                self._turns.give_back(turn)
                continue
            self._submit(asked)

    def _submit(self, asked: _Validation) -> None:
        read = partial(self._reader.read, leash=asked.cord)
        try:
            asked.future = self._executor.submit(asked.work, read)
        except BaseException:
            # No thread could be had; or, where tests end a process in the middle of it, a death.
            self._turns.give_back(asked.turn)
            self._asked.pop(asked.turn.dataset, None)
            raise
        asked.future.add_done_callback(lambda _: self._end(asked.turn))

    def _end(self, turn: Turn) -> None:
        self._turns.give_back(turn)
        self._begin()
        self._when_done()


def _result(future: Future[DatasetManifest], dataset: str) -> DatasetManifest:
    try:
        return future.result()
    except WorkerError:
        raise
    except Exception as error:
        # A mistake of ours, or a full disk: to be tried again, and not for ever.
        logger.exception("dataset %s could not be read", dataset, extra={"dataset": dataset})
        words = f"the shards could not be read ({type(error).__name__}); the log says why"
        raise StorageUnavailable(words) from error
