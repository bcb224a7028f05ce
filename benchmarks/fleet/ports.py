"""A store and a launcher that take as long as remote ones, and count requests."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from cmcl.storage.local import LocalStore
from service.launchers.port import ClusterResources, LaunchState, LaunchStatus, Submission

# Keys of one answer of S3 to a request for a listing.
_PAGE = 1000


class RemoteStore(LocalStore):
    """A local store whose requests take `seconds` longer. `live_at`: when live.json of each model was written last."""

    def __init__(self, root: Path, seconds: float) -> None:
        super().__init__(root)
        self._seconds = seconds
        self._lock = threading.Lock()
        self.requests = Counter[str]()
        self.live_at: dict[str, float] = {}

    def count(self) -> int:
        """Return the number of requests so far."""
        with self._lock:
            return self.requests.total()

    def read(self, key: str) -> bytes:
        self._request("read")
        return super().read(key)

    def stream(self, key: str) -> Iterator[bytes]:
        self._request("stream")
        return super().stream(key)

    def size(self, key: str) -> int:
        self._request("size")
        return super().size(key)

    def put(self, key: str, data: bytes) -> None:
        self._request("put")
        super().put(key, data)
        if key.endswith("/live.json"):
            self.live_at[key.split("/")[1]] = time.time()

    def create(self, key: str, data: bytes) -> None:
        self._request("create")
        super().create(key, data)

    def copy(self, source: str, target: str) -> None:
        self._request("copy")
        super().compose([source], target)

    def delete(self, key: str) -> None:
        self._request("delete")
        super().delete(key)

    def keys(self, prefix: str) -> Iterator[str]:
        self._request("list")
        for number, key in enumerate(super().keys(prefix)):
            if number and number % _PAGE == 0:
                self._request("list")
            yield key

    def _request(self, kind: str) -> None:
        with self._lock:
            self.requests[kind] += 1
        time.sleep(self._seconds)


class RemoteLauncher:
    """A launcher that runs everything permanently. Its requests take `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._requests = 0

    def count(self) -> int:
        """Return the number of requests so far."""
        return self._requests

    def submit(self, submission: Submission) -> None:
        """See the port."""
        self._request()

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        """See the port."""
        self._request()
        return dict.fromkeys(submission_ids, LaunchStatus(LaunchState.RUNNING))

    def stop(self, submission_id: str) -> None:
        """See the port."""
        self._request()

    def forget(self, submission_id: str) -> None:
        """See the port."""
        self._request()

    def log(self, submission_id: str) -> str:
        """See the port."""
        self._request()
        return ""

    def resources(self) -> ClusterResources | None:
        """See the port."""
        return None

    def _request(self) -> None:
        with self._lock:
            self._requests += 1
        time.sleep(self._seconds)
