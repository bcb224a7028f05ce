"""The attempts of the benchmark, in a process of their own: they show progress, and end one after the other."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.fleet.database import job_id, job_spec, model_name
from cmcl.contract.job import JobSpec, Progress
from cmcl.contract.version import Drift, LearnedDataset, VersionManifest, VersionReport
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.running import ProgressWriter, mark_ended
from cmcl.storage.versions import read_version, write_blob, write_candidate


class Attempts:
    """All attempts, driven by one thread.

    Each shows progress every `heartbeat` seconds, spread over that time. `ends_per_second` of them end in the order of
    their numbers. With `as_before`, progress is one object per attempt that is overwritten, and no end is shown.
    """

    def __init__(
        self, store: LocalStore, running: int, heartbeat: float, *, as_before: bool
    ) -> None:
        self._store = store
        self._running = running
        self._heartbeat = heartbeat
        self._as_before = as_before
        self._writers = [ProgressWriter(store, job_id(number), 1) for number in range(running)]
        self._ended = 0
        self.writes = 0

    def run(self, seconds: float, ends_per_second: float) -> Iterator[tuple[str, float]]:
        """Run for so many seconds; yield the model of each candidate, and when it was complete."""
        began = time.monotonic()
        turn = 0
        while (now := time.monotonic() - began) < seconds:
            while self._ended < min(now * ends_per_second, self._running - 1):
                yield self._end(self._ended)
                self._ended += 1
            if turn * self._heartbeat / self._running <= now:
                self._progress(turn % self._running, turn)
                turn += 1
            else:
                time.sleep(0.001)

    def _progress(self, number: int, updates: int) -> None:
        if number < self._ended:
            return
        progress = Progress(
            phase="training",
            updates_done=updates,
            updates_total=10**6,
            loss=1.0 / (1 + updates),
            rows_per_second=1234.5,
            at=datetime.now(UTC),
        )
        if self._as_before:
            key = f"{layout.run_prefix(job_id(number), 1)}/progress.json"
            self._store.put(key, progress.model_dump_json().encode())
        else:
            self._writers[number].write(progress)
        self.writes += 1

    def _end(self, number: int) -> tuple[str, float]:
        write_complete_candidate(self._store, job_spec(number), datetime.now(UTC))
        if not self._as_before:
            mark_ended(self._store, job_id(number), 1)
        return model_name(number), time.time()


def write_complete_candidate(store: ObjectStore, spec: JobSpec, created_at: datetime) -> None:
    """Write a candidate as an attempt that learned a dataset does, with files of a few bytes."""
    names = (*layout.VERSION_FILES, "moments")
    files = {name: write_blob(store, f"{spec.job} {name}".encode()) for name in names}
    moments = files.pop("moments")
    earlier = () if spec.parent is None else read_version(store, spec.model, spec.parent).learned
    dataset = spec.learns
    line = LearnedDataset(
        dataset=dataset.dataset,
        name=dataset.name,
        pair=dataset.pair,
        rows=dataset.rows,
        version=spec.version,
        moments=moments,
        shard_digests=tuple(shard.sha256 for shard in dataset.shards),
    )
    drift = {each.dataset: Drift(since_learned=0.1, against_parent=0.1) for each in earlier}
    manifest = VersionManifest(
        model=spec.model,
        version=spec.version,
        parent=spec.parent,
        job=spec.job,
        attempt=spec.attempt,
        dataset=dataset.dataset,
        spec=spec.spec,
        code_version="benchmark",
        created_at=created_at,
        files=files,
        learned=(*earlier, line),
        report=VersionReport(final_loss=1.0, updates=3, ranks=1, drift=drift),
    )
    write_candidate(store, manifest)


def write_specs(store: LocalStore, running: int) -> None:
    """Write what each attempt reads."""
    for number in range(running):
        spec = job_spec(number)
        store.put(layout.run_spec(spec.job, 1), spec.model_dump_json().encode())


def main() -> None:
    """Read the options as JSON from the command line; print a line of JSON for each candidate, then the writes."""
    options = json.loads(sys.argv[1])
    store = LocalStore(Path(options["root"]))
    attempts = Attempts(
        store, options["running"], options["heartbeat"], as_before=options["as_before"]
    )
    for model, at in attempts.run(options["seconds"], options["ends_per_second"]):
        print(json.dumps({"model": model, "at": at}), flush=True)
    print(json.dumps({"writes": attempts.writes}), flush=True)


if __name__ == "__main__":
    main()
