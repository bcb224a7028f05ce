"""`python -m workers.driver`: prepares datasets, and trains attempts with resident ranks. The control plane submits it.

It reserves no resources of Ray: tasks, encoders and ranks on the cluster do the work.
"""

import argparse
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

import ray

from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.job import AttemptRequest, DriverReady
from cmcl.contract.prepare import PrepareRequest
from cmcl.storage import layout
from cmcl.storage.documents import write_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import open_store
from workers.prepare.cluster import EncoderPools, PrepareSettings, RayCluster
from workers.prepare.dataset import Preparation, prepare_dataset
from workers.prepare.progress import DatasetProgress, ProgressWriter
from workers.prepare.server import PrepareServer
from workers.prepare.tasks import warm_up
from workers.train.pool import RayPool, has_room
from workers.train.server import AttemptServer
from workers.train.settings import PoolSetup, Ranks, add_rank_options, ranks_from_options

logger = logging.getLogger(__name__)

# A new request waits for the next listing, and object stores charge for each one.
_LIST_SECONDS, _IDLE_LIST_SECONDS = 0.1, 1.0
# The pace is high for this long after a request has come or ended: others often follow.
_BUSY_SECONDS = 60.0
_LONGEST_PAUSE = 10.0
# Small datasets have one or two files.
# The last place is kept for an owner that has none. Their units share the CPUs, so more would finish later.
_DATASETS_AT_ONCE = 4
# An encoder without a dataset stays loaded: a person who tries one small dataset after another waits for it once.
_ENCODER_IDLE_SECONDS = 120
# For the cluster to start an encoder, or to start it again: loading and fetching a model may take minutes.
_ENCODER_START_SECONDS = 600
_WARM_WORKERS = 2


class Server(Protocol):
    """Carries out requests of one kind."""

    @property
    def is_idle(self) -> bool:
        """True if no request waits or is in work."""
        ...

    def step(self) -> bool:
        """Look for requests once. Returns whether one has come, gone or ended. Raises StorageUnavailable."""
        ...

    def close(self) -> None:
        """End all work. The next driver takes it up."""
        ...


class Warm(Protocol):
    """What takes some time to start."""

    @property
    def is_warm(self) -> bool:
        """Whether it has started."""
        ...


@dataclass
class Readiness:
    """Writes `driver.json` once all parts have started. `ranks`: how many are resident then."""

    store: ObjectStore
    parts: Sequence[Warm]
    ranks: int
    _is_shown: bool = False

    def look(self) -> None:
        """Look at the parts until all have started. An outage of the store delays the object."""
        if self._is_shown or not all(part.is_warm for part in self.parts):
            return
        ready = DriverReady(at=datetime.now(UTC), ranks=self.ranks)
        with suppress(StorageUnavailable):
            write_document(self.store, layout.driver_ready(), ready)
            self._is_shown = True
            logger.info("ready, with %d resident ranks", self.ranks)


def main() -> None:
    """Serve requests. Exit status 0 after being idle, and after SIGTERM."""
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    ray.init(log_to_driver=False)
    stop = threading.Event()
    # After `ray.init`, whose own handlers would end the process at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(arguments, PrepareSettings(), stop)
    ray.shutdown()


def run(arguments: argparse.Namespace, settings: PrepareSettings, stop: threading.Event) -> None:
    """Serve the requests of a store on the cluster of this process, until `stop` or its parent's end."""
    # Ray's supervisor of this job, which dies with its node. Without it nothing would end this process, and a
    # thread of Ray's would poll a head that is gone.
    parent = os.getppid()
    store = open_store(arguments.store)
    pools = EncoderPools(arguments.store, _ENCODER_IDLE_SECONDS, _ENCODER_START_SECONDS)
    cluster = RayCluster(pools, settings)
    attempts = [_attempts(store, arguments)] if arguments.ranks.most else []
    cluster.warm_up(warm_up, workers=_WARM_WORKERS)

    def prepare(request: PrepareRequest, progress: DatasetProgress) -> None:
        prepare_dataset(Preparation(store, request, cluster, progress))

    has_ranks = any(each.resident is not None for each in attempts)
    readiness = Readiness(store, [cluster, *attempts], arguments.ranks.most if has_ranks else 0)

    def look_after() -> None:
        if os.getppid() != parent:
            stop.set()
        else:
            cluster.end_idle()
            readiness.look()

    executor = ThreadPoolExecutor(_DATASETS_AT_ONCE, "dataset")
    with ProgressWriter(store) as writer:
        datasets = PrepareServer(store, prepare, executor, writer, _DATASETS_AT_ONCE)
        serve([datasets, *attempts], stop, arguments.idle_seconds, look_after)
    # Datasets that are still in work end at their next check for cancellation.
    executor.shutdown(cancel_futures=True)


def serve(
    servers: Sequence[Server],
    stop: threading.Event,
    idle_seconds: float | None,
    also: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Have servers look for requests until `stop`, or until there was none for `idle_seconds`, if that is given.

    `also` is called in each round, whether or not the store responds. Each server lists one prefix in a round: on S3,
    36,000 lists an hour while requests come and end, and 3,600 otherwise.
    """
    changed_at = idle_since = clock()
    pause = _LIST_SECONDS
    while not stop.wait(pause):
        try:
            changes = [server.step() for server in servers]
            if any(changes):
                changed_at = clock()
            is_busy = clock() - changed_at < _BUSY_SECONDS
            pause = _LIST_SECONDS if is_busy else _IDLE_LIST_SECONDS
        except StorageUnavailable as error:
            logger.warning("the store does not respond; will retry: %s", error)
            pause = min(2 * pause, _LONGEST_PAUSE)
            idle_since = clock()
        also()
        if not all(server.is_idle for server in servers):
            idle_since = clock()
        elif idle_seconds is not None and clock() - idle_since >= idle_seconds:
            logger.info("no request for %g s", idle_seconds)
            break
    for server in servers:
        server.close()


def _attempts(store: ObjectStore, arguments: argparse.Namespace) -> AttemptServer:
    """The server of attempts. Its ranks start now if there is room: an autoscaler adds no nodes before the first one."""
    setup = PoolSetup(arguments.ranks)
    start = partial(RayPool, store.uri)
    resident = start(setup) if has_room(setup) else None
    idle_seconds = arguments.ranks_idle_seconds
    return AttemptServer(store, start, _setup_of, has_room, idle_seconds, resident)


def _setup_of(request: AttemptRequest) -> PoolSetup:
    return PoolSetup(Ranks(request.ranks, request.min_ranks, request.gpus_per_rank))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with a message if it is invalid. `ranks` are `Ranks`."""
    parser = argparse.ArgumentParser(prog="python -m workers.driver", description=__doc__)
    parser.add_argument("--store", required=True, help="URI of the object store")
    parser.add_argument(
        "--idle-seconds", type=float, help="end after this long without a request; by default never"
    )
    # 0: it prepares datasets only.
    add_rank_options(parser, default=0)
    parser.add_argument(
        "--ranks-idle-seconds",
        type=float,
        default=0.0,
        help="the ranks end after this long without an attempt; 0: never",
    )
    arguments = parser.parse_args(argv)
    arguments.ranks = ranks_from_options(parser, arguments, fewest=0)
    return arguments


if __name__ == "__main__":
    main()
