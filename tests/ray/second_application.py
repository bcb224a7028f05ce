"""Another application of two replicas on the running Serve: deployed, updated, deleted.

SIGUSR1: deploy it with another argument, which replaces its replicas. SIGTERM: delete it, and end.
"""

import queue
import signal
import sys

import ray
from ray import serve

from workers.serve.app import build
from workers.serve.settings import ServeSettings

NAME = "second"
PREFIX = f"/{NAME}"
DEPLOYED, CHANGED, DELETED = f"{NAME} deployed", f"{NAME} changed", f"{NAME} deleted"
# A request that waits for a version is under way for as long as a test wants.
_WAITING_SECONDS = 60.0


def main(store_uri: str) -> None:
    """Run until a signal ends it."""
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    ray.init(address="auto", log_to_driver=False)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.put(number))
    _deploy(store_uri, most=100)
    print(DEPLOYED, flush=True)
    while signals.get() == signal.SIGUSR1:
        _deploy(store_uri, most=101)
        print(CHANGED, flush=True)
    serve.delete(NAME)
    print(DELETED, flush=True)


def _deploy(store_uri: str, most: int) -> None:
    settings = ServeSettings(
        store=store_uri,
        replicas=2,
        num_cpus=0.1,
        min_version_wait_seconds=_WAITING_SECONDS,
        queue_seconds=2 * _WAITING_SECONDS,
        max_top_k=most,
    )
    serve.run(build(settings), name=NAME, route_prefix=PREFIX)


if __name__ == "__main__":
    main(sys.argv[1])
