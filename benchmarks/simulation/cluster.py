"""What runs on the cluster of the simulation: attempts and preparations, which only take time and write their results."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from benchmarks.fleet.attempts import write_complete_candidate
from benchmarks.simulation.memory import MemoryStore
from benchmarks.simulation.virtual_time import VirtualTime
from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.job import JobSpec, Progress, submission_id
from cmcl.contract.prepare import PrepareRequest
from cmcl.storage import layout
from cmcl.storage.running import ProgressWriter, mark_ended
from service.launchers.port import ClusterResources, LaunchState, LaunchStatus, Submission

_UNKNOWN = LaunchStatus(LaunchState.UNKNOWN)


@dataclass(frozen=True)
class Durations:
    """Seconds of what runs on the cluster: of an attempt and of a preparation on average, and between two reports.

    An attempt and a preparation take from half to one and a half of them. `failing_share` of the attempts end without a
    candidate.
    """

    attempt: float = 300.0
    start: float = 3.0
    heartbeat: float = 3.0
    prepare: float = 5.0
    failing_share: float = 0.01


@dataclass
class _Attempt:
    """An attempt that runs. `writer` shows its progress, `done` counts the reports."""

    job: str
    number: int
    ends_at: float
    fails: bool
    writer: ProgressWriter
    done: int = 0


class Cluster:
    """A launcher whose submissions take virtual time. `candidates`: when that of a model's version was complete."""

    def __init__(
        self, time: VirtualTime, store: MemoryStore, durations: Durations, seed: int
    ) -> None:
        self._time = time
        self._store = store
        self._durations = durations
        self._seed = seed
        self._states: dict[str, LaunchStatus] = {}
        self._preparing: set[str] = set()
        self.candidates: dict[tuple[str, int], float] = {}
        self._submitted = Counter[str]()
        time.after(1.0, self._prepare)

    def begin_earlier(self, spec: JobSpec) -> None:
        """Let an attempt run that began before the simulation, somewhere in the middle of it."""
        self._store.put(layout.run_spec(spec.job, spec.attempt), spec.model_dump_json().encode())
        drawn = self._random("earlier", spec.model)
        left = self._durations.attempt * drawn.uniform(0.0, 1.5)
        phase = drawn.uniform(0.0, 1.0)
        self._begin(submission_id(spec.job, spec.attempt), left, phase, self._fails(drawn))

    def submit(self, submission: Submission) -> None:
        """See the port."""
        if submission.id in self._states:
            return
        if submission.ranks == 0:
            # The driver: `_prepare` is always there.
            self._states[submission.id] = LaunchStatus(LaunchState.RUNNING)
            return
        self._states[submission.id] = LaunchStatus(LaunchState.PENDING)
        # Ids are random.
        model = submission.labels["cmcl/model"]
        self._submitted[model] += 1
        drawn = self._random("attempt", model, str(self._submitted[model]))
        seconds = self._durations.attempt * drawn.uniform(0.5, 1.5)
        begin = partial(self._begin, submission.id, seconds, 0.0, self._fails(drawn))
        self._time.after(self._durations.start, begin)

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        """See the port."""
        return {name: self._states.get(name, _UNKNOWN) for name in submission_ids}

    def stop(self, submission_id: str) -> None:
        """See the port."""
        state = self._states.get(submission_id)
        if state is not None and not state.has_ended:
            self._states[submission_id] = LaunchStatus(LaunchState.STOPPED)

    def forget(self, submission_id: str) -> None:
        """See the port."""
        self._states.pop(submission_id, None)

    def log(self, submission_id: str) -> str:
        """See the port."""
        return f"{submission_id}: a log"

    def resources(self) -> ClusterResources | None:
        """See the port."""
        return None

    def _fails(self, drawn: random.Random) -> bool:
        return drawn.random() < self._durations.failing_share

    def _begin(self, attempt: str, seconds: float, phase: float, fails: bool) -> None:
        """Run an attempt for so many seconds. `phase`: share of a heartbeat until its first report."""
        if self.statuses([attempt])[attempt].state == LaunchState.STOPPED:
            return
        job, _, number = attempt.rpartition("-a")
        self._states[attempt] = LaunchStatus(LaunchState.RUNNING)
        writer = ProgressWriter(self._store, job, int(number))
        begun = _Attempt(job, int(number), self._time.seconds() + seconds, fails, writer)
        self._time.after(phase * self._durations.heartbeat, partial(self._go_on, attempt, begun))

    def _go_on(self, attempt: str, begun: _Attempt) -> None:
        """Report progress, or end."""
        if self._states[attempt].state != LaunchState.RUNNING:
            return
        if self._time.seconds() >= begun.ends_at:
            self._end(attempt, begun)
            return
        begun.done += 1
        progress = Progress(
            phase="training",
            updates_done=begun.done,
            updates_total=10**6,
            loss=1.0 / begun.done,
            rows_per_second=1234.5,
            at=self._time(),
        )
        begun.writer.write(progress)
        left = begun.ends_at - self._time.seconds()
        pause = min(self._durations.heartbeat, left)
        self._time.after(pause, partial(self._go_on, attempt, begun))

    def _end(self, attempt: str, begun: _Attempt) -> None:
        if begun.fails:
            self._states[attempt] = LaunchStatus(LaunchState.FAILED, "killed (on purpose)")
            return
        key = layout.run_spec(begun.job, begun.number)
        spec = JobSpec.model_validate_json(self._store.read(key))
        write_complete_candidate(self._store, spec, self._time())
        mark_ended(self._store, begun.job, begun.number)
        self._states[attempt] = LaunchStatus(LaunchState.SUCCEEDED)
        self.candidates[spec.model, spec.version] = self._time.seconds()

    def _prepare(self) -> None:
        """Begin what is asked for, once a second, as the driver does."""
        keys = list(self._store.keys(layout.preparations()))
        self._preparing &= set(keys)
        for key in keys:
            if key not in self._preparing:
                self._preparing.add(key)
                request = PrepareRequest.model_validate_json(self._store.read(key))
                drawn = self._random("prepare", request.name)
                seconds = self._durations.prepare * drawn.uniform(0.5, 1.5)
                self._time.after(seconds, partial(self._end_preparation, request))
        self._time.after(1.0, self._prepare)

    def _end_preparation(self, request: PrepareRequest) -> None:
        manifest = DatasetManifest(
            dataset=request.dataset,
            model=request.model,
            name=request.name,
            pair=request.pair,
            shards=tuple(
                Shard(uri=each.uri, sha256="0" * 64, bytes=1, rows=1) for each in request.shards
            ),
        )
        key = layout.dataset_manifest(request.dataset)
        self._store.put(key, manifest.model_dump_json().encode())

    def _random(self, *about: str) -> random.Random:
        """Return a generator that depends on the seed and `about` alone, not on other draws."""
        return random.Random(f"{self._seed} {' '.join(about)}")  # noqa: S311 - durations
