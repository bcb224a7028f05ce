"""The slow loop beside the reconciler: one service at a time removes what nobody needs any more.

Every duty looks anew, does some of what there is to do, and can be cut off anywhere: whatever it has
not done, or only half, the next round finds. The lease saves work; two that sweep at once do no harm.
"""

import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta

from cmcl.contract.errors import StorageUnavailable
from service.control.context import Context
from service.control.sweep import deleted_models, ended, expired, leftovers
from service.database.queries import leases
from service.errors import DatabaseBehind, DatabaseUnavailable
from service.launchers.port import LauncherUnavailable

logger = logging.getLogger(__name__)

Duty = Callable[[Context], None]

DUTIES: Sequence[Duty] = (
    ended.sweep_learned_datasets,
    ended.sweep_jobs,
    ended.sweep_deleted_datasets,
    deleted_models.sweep_deleted_models,
    expired.sweep_uploads,
    expired.sweep_answers,
    expired.sweep_events,
    expired.sweep_preflights,
    expired.sweep_observations,
)
# A look at every folder of the store costs more than the others together.
RARE_DUTIES: Sequence[Duty] = (leftovers.sweep_leftovers,)

_PAUSE_SECONDS = 60.0
_ROUNDS_BETWEEN_RARE_DUTIES = 60
_LEASE = timedelta(minutes=5)
_NAME = "sweeper"
_OUTAGES = (DatabaseBehind, DatabaseUnavailable, LauncherUnavailable, StorageUnavailable)


class Sweeper:
    """Rounds of all duties, while the lease is ours."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._name = uuid.uuid4().hex
        self._rounds = 0

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set."""
        while not stop.wait(_PAUSE_SECONDS):
            self.sweep(stop.is_set)

    def sweep(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """One round, unless another service is at it. Never raises: the next one may do better."""
        is_rare = self._rounds % _ROUNDS_BETWEEN_RARE_DUTIES == 0
        for duty in (*DUTIES, *(RARE_DUTIES if is_rare else ())):
            if is_over() or not self._do(duty):
                return
        self._rounds += 1

    def _do(self, duty: Duty) -> bool:
        """One duty; its errors stay its own. False if another service is at it."""
        try:
            if not self._is_ours():
                return False
            duty(self._context)
        except _OUTAGES as error:
            logger.warning("%s did not get on: %s", duty.__name__, error)
        except Exception:
            # If this ended the thread, nothing would be removed for the rest of its life.
            logger.exception("%s did not get on", duty.__name__)
        return True

    def _is_ours(self) -> bool:
        now = self._context.clock()
        return self._context.database.settle(
            lambda connection: leases.claim(connection, _NAME, self._name, now, now + _LEASE)
        )
