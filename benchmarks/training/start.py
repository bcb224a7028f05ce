"""Time from the submission of a warm job to its first update, on the whole local system.

It is measured outside the job: spec.json appears in the store just before the job is submitted to
Ray, and its progress has the phases and the first update. Both are polled every few milliseconds.
"""

import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from cmcl.client import Client
from cmcl.contract.job import submission_id
from cmcl.contract.model import ModelSpec
from cmcl.demo.stream import Stream, read_stream
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.running import Shown, read_running

_MODEL = "start"
_LOOK_SECONDS = 0.005
_TIMEOUT_SECONDS = 120.0
# For the first datasets the ranks still import modules and compile.
_COLD = 1


@dataclass
class StartTimes:
    """Times at which each phase of an attempt's job was first observed."""

    store: LocalStore
    job: str
    at: dict[str, float] = field(default_factory=dict)

    def watch(self) -> None:
        """Poll until the first update. Raises TimeoutError."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while "first update" not in self.at:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no first update in {_TIMEOUT_SECONDS:g} s: {self.at}")
            self._poll()
            time.sleep(_LOOK_SECONDS)

    def _poll(self) -> None:
        spec = self.store.root / layout.run_spec(self.job, 1)
        if spec.is_file():
            self.at.setdefault("submission", spec.stat().st_mtime)
        reported = read_running(self.store).get(submission_id(self.job, 1), Shown()).progress()
        if reported is None:
            return
        # The job's own time, because it was written before it was observed.
        self.at.setdefault(reported.phase, reported.at.timestamp())
        if reported.phase == "training" and reported.updates_done:
            self.at.setdefault("first update", reported.at.timestamp())

    def parts(self) -> dict[str, float]:
        """Return the seconds between consecutive phases, by the name of the later one, and
        `total`."""
        seen = sorted(self.at.items(), key=lambda one: one[1])
        found = {name: round(at - before, 3) for (_, before), (name, at) in pairwise(seen)}
        return {**found, "total": round(self.at["first update"] - self.at["submission"], 3)}


def measure_start(stream_folder: Path, folder: Path, ranks: int) -> dict[str, Any]:
    """Return the parts of each dataset, and the median of the totals without the first ones."""
    stream = read_stream(stream_folder)
    stack = LocalStack(
        folder, Ports.free(), ranks=ranks, allowed_prefixes=(stream.folder.as_uri(),)
    )
    with stack, Client(stack.service_url, stack.embeddings_url) as client:
        client.create_model(_MODEL, ModelSpec(modalities=stream.modalities, policy="preserve"))
        found = [_one(client, stack, stream, number) for number in range(len(stream.datasets))]
    warm = [one["total"] for one in found[_COLD:]]
    return {
        "ranks": ranks,
        "datasets": found,
        "median_seconds": round(median(warm), 2),
        "slowest_seconds": round(max(warm), 2),
        "cold_seconds": found[0]["total"],
    }


def _one(client: Client, stack: LocalStack, stream: Stream, number: int) -> dict[str, float]:
    dataset = stream.datasets[number]
    accepted = client.add_dataset(_MODEL, dataset.name, dataset.pair, dataset.shards)
    job = str(accepted["job"]["id"])
    sightings = StartTimes(LocalStore(stack.folder / "store"), job)
    sightings.watch()
    client.watch(job, poll_seconds=0.1)
    return sightings.parts()
