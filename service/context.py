"""The parts of the control plane that its packages share, and its clock. Built once, in `service.app`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Types alone: the packages that import this module are imported by none of these lines.
    from cmcl.storage.object_store import ObjectStore
    from service.auth.authenticator import Authenticator
    from service.auth.oidc import OidcLogin
    from service.auth.sessions import Sessions
    from service.database.engine import Database
    from service.jobs.workqueue import WakeSignal
    from service.launchers.port import Launcher
    from service.registry.live_pointer import Announcer
    from service.settings import Settings
    from service.telemetry.metrics import Metrics
    from service.tuning import Tuning

# Passed as a dependency, so that tests can control the time.
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The current time in UTC, timezone-aware."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Context:
    """The parts of one control plane. It holds no state of jobs: the database does."""

    settings: Settings
    tuning: Tuning
    database: Database
    authenticator: Authenticator
    sessions: Sessions
    # None unless browsers can sign in with an OpenID issuer.
    oidc_login: OidcLogin | None
    store: ObjectStore
    launcher: Launcher
    # What runs the driver on the cluster; the same one where each attempt is a submission of its own.
    driver_launcher: Launcher
    wake_signal: WakeSignal
    # Set when a job changed in this process: there may be room for another one.
    job_changed: threading.Event
    announcer: Announcer
    metrics: Metrics
    clock: Clock

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()


def is_past(context: Context, since: datetime, seconds: float) -> bool:
    """Whether more than so many seconds have gone by since that moment."""
    return context.clock() - since > timedelta(seconds=seconds)
