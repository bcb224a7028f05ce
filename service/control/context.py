"""What every decision may use; made once, in `service.app`."""

from dataclasses import dataclass

from service.clock import Clock
from service.control.validate import Validations
from service.database.engine import Database
from service.launchers.port import Launcher
from service.metrics import Metrics
from service.settings import Settings
from workers.storage.port import ObjectStore


@dataclass(frozen=True)
class Context:
    """The parts of one control plane. It remembers nothing about jobs: the database does."""

    settings: Settings
    database: Database
    store: ObjectStore
    launcher: Launcher
    validations: Validations
    metrics: Metrics
    clock: Clock
