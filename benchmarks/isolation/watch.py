"""Memory, descriptors and exits of a local stack's processes, by role, twice a second."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

from benchmarks.processes import family, title
from cmcl.stack import LocalStack

SERVICE, PROXY, REPLICA, HEAD = ROLES = ("service", "proxy", "replica", "head")
_EVERY_SECONDS = 0.5
# Listing all processes of the machine takes longer than reading a few of them.
_FIND_SECONDS = 2.0
_RAYS = {
    "ServeReplica:embeddings:Embedder": REPLICA,
    "gcs_server": HEAD,
    "raylet/raylet": HEAD,
    "dashboard/dashboard.py": HEAD,
}


@dataclass(frozen=True)
class Sample:
    """A sample of all processes of one role. `mib`: their total proportional set size (PSS).

    `descriptors`, `limit`: of the process with the most descriptors. `numbers`: process ids,
    without those of children of the service.
    """

    mib: float = 0.0
    descriptors: int = 0
    limit: int = 0
    numbers: frozenset[int] = frozenset()


TimedSample = tuple[float, Mapping[str, Sample]]


class ProcessMonitor:
    """A thread that takes samples until the block ends. Times are of the monotonic clock."""

    def __init__(self, stack: LocalStack) -> None:
        self._stack = stack
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._samples: list[TimedSample] = []

    def __enter__(self) -> Self:
        self._sample(self.processes())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def between(self, begin: float, end: float) -> list[Mapping[str, Sample]]:
        """Return the samples of that time in order, or the last one before it."""
        known = [(at, samples) for at, samples in list(self._samples) if at <= end]
        return [samples for at, samples in known if begin <= at] or [known[-1][1]]

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return the current processes by role."""
        found: dict[str, list[psutil.Process]] = {role: [] for role in ROLES}
        parts = dict(self._stack.processes)
        if SERVICE in parts:
            with suppress(psutil.NoSuchProcess):
                found[SERVICE] = [psutil.Process(parts[SERVICE].pid), *family(parts[SERVICE].pid)]
                # And the proxy before it.
                found[SERVICE].append(psutil.Process(parts["proxy"].pid))
        for each in family(parts["ray"].pid) if "ray" in parts else []:
            words = title(each)
            for mark, role in _RAYS.items():
                if mark in words:
                    found[role].append(each)
        # HAProxy is detached from its parent.
        folder = str(self._stack.proxy_folder)
        for each in psutil.process_iter(["name"]):
            if each.info["name"] == "haproxy" and folder in title(each):
                found[PROXY].append(each)
        return found

    def _run(self) -> None:
        found, due = self.processes(), time.monotonic() + _FIND_SECONDS
        while not self._over.wait(_EVERY_SECONDS):
            if time.monotonic() > due:
                found, due = self.processes(), time.monotonic() + _FIND_SECONDS
            self._sample(found)

    def _sample(self, found: Mapping[str, Sequence[psutil.Process]]) -> None:
        samples = {role: _total(role, processes) for role, processes in found.items()}
        self._samples.append((time.monotonic(), samples))


def _total(role: str, processes: Sequence[psutil.Process]) -> Sample:
    seen = list(_seen(processes))
    if not seen:
        return Sample()
    most = max(seen, key=lambda each: each[2])
    counted = seen[:1] if role == SERVICE else seen
    return Sample(
        mib=sum(mib for _, mib, _, _ in seen),
        descriptors=most[2],
        limit=most[3],
        numbers=frozenset(number for number, _, _, _ in counted),
    )


def _seen(processes: Sequence[psutil.Process]) -> Iterator[tuple[int, float, int, int]]:
    """Yield id, MiB, descriptors and their limit of the processes that still exist."""
    for each in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if each.status() != psutil.STATUS_ZOMBIE:
                mib = each.memory_full_info().pss / 2**20
                limit = each.rlimit(psutil.RLIMIT_NOFILE)[0]
                without = limit == psutil.RLIM_INFINITY
                yield each.pid, mib, each.num_fds(), sys.maxsize if without else limit
