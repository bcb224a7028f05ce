"""`python -m tests.ray.slow_follower STORE`: a replica of the cluster without HTTP.

It polls the store once an hour, and prints announcements and swaps, or what its threads do if it does not connect.
"""

import faulthandler
import sys
import threading

import ray

from cmcl.storage.uris import open_store
from tests.fakes.serve_metrics import RecordedMetrics
from workers.serve.announcements import AnnouncementListener
from workers.serve.versions.cache import VersionCache
from workers.serve.versions.follower import Follower, Swapper
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import StoredVersions

POLL_SECONDS = 3600.0


class PrintedMetrics(RecordedMetrics):
    """Prints swaps, which the test reads."""

    def connected(self, announcements: bool) -> None:
        if announcements:
            faulthandler.cancel_dump_traceback_later()
        print("connected" if announcements else "disconnected", flush=True)

    def swapped(self, model: str, version: int, seconds: float) -> None:
        print(f"{model}@{version}", flush=True)


def main(store_uri: str) -> None:
    """Follow the store until the process is killed."""
    faulthandler.dump_traceback_later(120)
    ray.init(address="auto", log_to_driver=False)
    store, live, metrics = open_store(store_uri), LiveVersions(), PrintedMetrics()
    cache = VersionCache(*(StoredVersions(store), 4, 1 << 30, metrics))
    follower = Follower(store, live, Swapper(live, cache, metrics), POLL_SECONDS)
    follower.start()
    AnnouncementListener(follower.wake, metrics.connected).start()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
