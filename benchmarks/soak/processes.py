"""Roles of a local system's processes, and their memory."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from benchmarks.processes import family, title
from benchmarks.swaps.memory import Slope, slope
from cmcl.stack import LocalStack

# By words in the process title. Drivers are left out, because they exist only during an attempt.
_ROLES = {
    "rank": "RayTrainWorker",
    "resident": "PoolActor",
    "replica": "ServeReplica",
    "Serve's controller": "ServeController",
    "raylet": "raylet/raylet",
    "Ray's head (GCS)": "gcs_server",
}


@dataclass
class Looks:
    """MiB of each process after each job, by role and process id."""

    jobs: int = 0
    mebibytes: dict[str, list[float]] = field(default_factory=dict)

    def look(self, stack: LocalStack) -> None:
        """Take a sample after a job. A process that started later gets a separate curve."""
        self.jobs += 1
        for name, size in _sizes(stack).items():
            self.mebibytes.setdefault(name, []).append(size)

    def growth(self, since: int) -> dict[str, Slope | None]:
        """Return MiB per hundred jobs after the first `since`; None for a process that did not run
        all the time."""
        return {
            name: slope(range(since, self.jobs), sizes[since:]) if len(sizes) == self.jobs else None
            for name, sizes in self.mebibytes.items()
        }


def _sizes(stack: LocalStack) -> Mapping[str, float]:
    """Return private MiB, without mapped files, of all running processes."""
    roles = [(psutil.Process(stack.processes["service"].pid), "service")]
    for each in family(stack.processes["ray"].pid):
        roles += [
            (each, f"{role} {each.pid}") for role, words in _ROLES.items() if words in title(each)
        ]
    found = {}
    for process, name in roles:
        with suppress(psutil.NoSuchProcess):
            info = process.memory_info()
            found[name] = float(info.rss - info.shared) / 2**20
    return found
