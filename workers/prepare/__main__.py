"""`python -m workers.prepare`: the driver that prepares datasets. The control plane submits it.

It reserves no resources of Ray: tasks and encoders on the cluster do the work.
"""

import argparse
import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import ray

from cmcl.contract.prepare import PrepareRequest
from workers.prepare.cluster import RayCluster
from workers.prepare.dataset import Preparation, prepare_dataset
from workers.prepare.encoder_pool import EncoderPools
from workers.prepare.progress import Progress, ProgressWriter
from workers.prepare.server import PrepareServer
from workers.prepare.settings import PrepareSettings
from workers.prepare.tasks import warm_up
from workers.storage.uris import open_store

# Small datasets have one or two files.
# The last place is kept for an owner that has none. Their units share the CPUs, so more would finish later.
_DATASETS_AT_ONCE = 4
# An encoder without a dataset stays loaded: a person who tries one small dataset after another waits for it once.
_ENCODER_IDLE_SECONDS = 120
# For the cluster to start an encoder, or to start it again: loading and fetching a model may take minutes.
_ENCODER_START_SECONDS = 600
_WARM_WORKERS = 2


def main() -> None:
    """Serve requests. Exit status 0 after being idle, and after SIGTERM."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    ray.init(log_to_driver=False)
    stop = threading.Event()
    # After `ray.init`, whose own handlers would end the process at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(arguments.store, arguments.idle_seconds, PrepareSettings(), stop)
    ray.shutdown()


def serve(
    store_uri: str, idle_seconds: float | None, settings: PrepareSettings, stop: threading.Event
) -> None:
    """Serve the requests of a store on the cluster of this process, until `stop` or its parent's end."""
    # Ray's supervisor of this job, which dies with its node. Without it nothing would end this process, and a
    # thread of Ray's would poll a head that is gone.
    parent = os.getppid()
    store = open_store(store_uri)
    pools = EncoderPools(store_uri, _ENCODER_IDLE_SECONDS, _ENCODER_START_SECONDS)
    cluster = RayCluster(pools, settings)
    cluster.warm_up(warm_up, workers=_WARM_WORKERS)

    def prepare(request: PrepareRequest, progress: Progress) -> None:
        prepare_dataset(Preparation(store, request, cluster, progress))

    def look_after() -> None:
        if os.getppid() != parent:
            stop.set()
        else:
            cluster.end_idle()

    executor = ThreadPoolExecutor(_DATASETS_AT_ONCE, "dataset")
    with ProgressWriter(store) as writer:
        server = PrepareServer(store, prepare, executor, writer, _DATASETS_AT_ONCE)
        server.serve(stop, idle_seconds, look_after)
    # Datasets that are still in work end at their next check for cancellation.
    executor.shutdown(cancel_futures=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers.prepare", description=__doc__)
    parser.add_argument("--store", required=True, help="URI of the object store")
    parser.add_argument(
        "--idle-seconds", type=float, help="end after this long without a request; by default never"
    )
    return parser


if __name__ == "__main__":
    main()
