"""The parts of one control plane that its packages share. Built once, in `service.app`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cmcl.storage.object_store import ObjectStore
from service.auth.authenticator import Authenticator
from service.auth.sessions import Sessions
from service.core.clock import Clock
from service.core.settings import Settings
from service.core.tuning import Tuning
from service.database.engine import Database
from service.launchers.port import Launcher
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    # Slow to import, and most installations have no issuer.
    from service.auth.oidc import OidcLogin


Announce = Callable[[], None]


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
    # Announces to the embeddings endpoint that a live pointer has changed. Does not wait for it.
    announce: Announce
    metrics: Metrics
    clock: Clock

    def close(self) -> None:
        self.database.close()

    def is_past(self, since: datetime, seconds: float) -> bool:
        """Return whether more than `seconds` have gone by since that moment."""
        return self.clock() - since > timedelta(seconds=seconds)
