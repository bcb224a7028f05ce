"""Who of a local system is who, and what each has in memory."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from benchmarks.processes import family, title
from benchmarks.swaps.memory import Slope, slope
from cmcl.stack import LocalStack

# By words of its title. The driver of an attempt comes and goes with it, and is none of these.
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
    """Of each process that was there all the time: MiB after each job, by its role and number."""

    jobs: int = 0
    mebibytes: dict[str, list[float]] = field(default_factory=dict)

    def look(self, stack: LocalStack) -> None:
        """After a job. A process that was not there from the beginning is a curve of its own."""
        self.jobs += 1
        for name, size in _sizes(stack).items():
            self.mebibytes.setdefault(name, []).append(size)

    def growth(self, since: int) -> dict[str, Slope | None]:
        """MiB per hundred jobs, after so many; None for a process that came later or left."""
        return {
            name: slope(range(since, self.jobs), sizes[since:]) if len(sizes) == self.jobs else None
            for name, sizes in self.mebibytes.items()
        }


def _sizes(stack: LocalStack) -> Mapping[str, float]:
    """MiB that a process has for itself, without what it shares with files; those that are there."""
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
