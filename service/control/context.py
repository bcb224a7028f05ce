"""What every decision may use; made once, in `service.app`."""

from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.clock import Clock
from service.control.access.doorkeeper import Doorkeeper
from service.control.announcer import Announcer
from service.control.bell import Bell
from service.control.validation.validations import Validations
from service.database.engine import Database
from service.launchers.port import Launcher
from service.observe.metrics import Metrics
from service.settings import Settings
from workers.storage.object_store import ObjectStore


@dataclass(frozen=True)
class Context:
    """The parts of one control plane. It remembers nothing about jobs: the database does."""

    settings: Settings
    database: Database
    doorkeeper: Doorkeeper
    store: ObjectStore
    launcher: Launcher
    validations: Validations
    # For steps that take longer than a round should.
    threads: Executor
    bell: Bell
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
