"""Who of a local system is who, and what each has in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from benchmarks.swaps.memory import Slope, slope
from cmcl.stack import LocalStack

# By words of its title. The driver of an attempt comes and goes with it, and is none of these.
_ROLES = {
    "rank": "RayTrainWorker",
    "resident": "Resident",
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
    """MiB that a process has for itself and shares with nobody's file."""
    found = {"service": _own(psutil.Process(stack.processes["service"].pid))}
    family = psutil.Process(stack.processes["ray"].pid).children(recursive=True)
    for each in sorted(family, key=lambda one: one.pid):
        for role, words in _ROLES.items():
            if words in _title(each):
                found[f"{role} {each.pid}"] = _own(each)
    return found


def _own(process: psutil.Process) -> float:
    try:
        info = process.memory_info()
    except psutil.NoSuchProcess:
        return 0.0
    return float(info.rss - info.shared) / 2**20


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
