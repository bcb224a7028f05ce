"""The parts of the control plane that its packages share. Built once, in `service.app`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Types alone: the packages that import this module are imported by none of these lines.
    from concurrent.futures import Executor

    from service.auth.authenticator import Authenticator
    from service.clock import Clock
    from service.database.engine import Database
    from service.datasets.validations import Validations
    from service.jobs.workqueue import WakeSignal
    from service.launchers.port import Launcher
    from service.registry.announcer import Announcer
    from service.settings import Settings
    from service.telemetry.metrics import Metrics
    from workers.storage.object_store import ObjectStore


@dataclass(frozen=True)
class Context:
    """The parts of one control plane. It holds no state of jobs: the database does."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    store: ObjectStore
    launcher: Launcher
    validations: Validations
    # For steps that take longer than a round should.
    threads: Executor
    wake_signal: WakeSignal
    announcer: Announcer
    metrics: Metrics
    clock: Clock

    def close(self) -> None:
        """Stop validations, and close the database's connections."""
        self.validations.close()
        self.database.close()


def is_past(context: Context, since: datetime, seconds: float) -> bool:
    """Whether more than so many seconds have gone by since that moment."""
    return context.clock() - since > timedelta(seconds=seconds)
