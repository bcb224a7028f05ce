"""The parts of one control plane that its packages share. Built once, in `service.app`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cmcl.storage.object_store import ObjectStore
from service.auth.authenticator import Authenticator
from service.auth.sessions import Sessions
from service.core.clock import Clock
from service.core.settings import Settings
from service.database.engine import Database
from service.launchers.port import Launcher
from service.telemetry.metrics import Metrics

Announce = Callable[[], None]


@dataclass(frozen=True)
class Tuning:
    """Intervals, deadlines and sizes of the control plane that are the same in every installation.

    No operator has had to change one, and some of them depend on each other. Tests pass other values.
    """

    # Threads of an instance that process models; at most half of them judge and store versions at a time, so that large
    # files do not delay other models. They wait for the store and for the database most of the time.
    reconcile_workers: int = 8
    # All models for which a step may be due are processed once in this time although no event woke them. A change
    # whose event was missed is processed within twice of it, plus the wait for a worker.
    resync_seconds: float = 30
    # Between two looks for progress of running attempts: a candidate waits for half of it in the mean, and each look
    # is one listing of the store for all attempts. On S3 that is 18,000 lists an hour, about 0.09 $, while attempts run.
    watch_seconds: float = 0.2
    # How old the launcher's list of attempts may be, which shows those that died, and between two looks while none runs.
    launcher_seconds: float = 1
    # How long the leases of an instance that crashed block the others. Longer than its longest step without a beat.
    lease_seconds: float = 15
    # Datasets whose preparation is requested at the same time, over all owners, who share it equally. More than the
    # process that prepares them works on, so that it never waits for a request.
    preparations_at_once: int = 64
    # A dataset fails whose preparation makes no progress for this long; time in which the launcher does not respond
    # does not count. As long as one file may take (workers/prepare/tasks.py).
    prepare_deadline_seconds: float = 3600
    # For the cluster to accept an attempt, and for that to report progress: pulling an image may take minutes.
    start_deadline_seconds: float = 600
    # An attempt without a heartbeat for this long counts as lost and is retried. A rank that hangs is replaced after
    # CMCL_PEER_SECONDS, and reads of large shards pause the heartbeat.
    heartbeat_deadline_seconds: float = 300
    # After an attempt ended without a candidate, before the next one starts: its last writes may still arrive.
    lost_attempt_grace_seconds: float = 5
    # For all keys and tokens of one owner, counted by each instance. More than a hundred a second is a loop.
    requests_per_minute_per_owner: int = 6000
    # Files that one instance receives at a time; one owner may have four times what stays free. With a bucket, each takes
    # as much memory as a part of a multipart upload, 5 MiB.
    uploads_at_once: int = 32


@dataclass(frozen=True)
class Context:
    """The parts of one control plane. It holds no state of jobs: the database does."""

    settings: Settings
    tuning: Tuning
    database: Database
    authenticator: Authenticator
    sessions: Sessions
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
