"""Invariants that hold after every step of every scenario, and those that hold at its end."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Table, select

from cmcl.contract.api.jobs import FINAL_STATES, JobState
from cmcl.contract.job import submission_id
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.versions import read_blob, read_live, read_version, read_version_file
from service.core.states import IN_FLIGHT, check_move
from service.database import tables
from service.maintenance.gc import sweep_preparations
from tests.faults.world import DEADLINES, World

Row = Mapping[str, Any]

_BEGINS = (JobState.PREPARED, JobState.SUBMITTING)


class InvariantChecker:
    """Checks the invariants after each step, also against the state before."""

    def __init__(self, world: World) -> None:
        self.looks = 0
        self.steps_back = 0
        self.head = 0
        self.ends: Counter[str] = Counter()
        self._world = world
        self.states: dict[str, JobState] = {}
        self._jobs: dict[str, Row] = {}
        self._manifests: dict[tuple[str, int], object] = {}
        self._parsed: dict[tuple[str, int], VersionManifest] = {}
        self._specs: dict[str, bytes] = {}
        self._complete: set[tuple[str, int]] = set()
        self._shown: dict[str, int] = defaultdict(int)
        self._events = 0

    def check(self) -> None:
        """Raises AssertionError that names what is wrong."""
        self.looks += 1
        jobs = self._rows(tables.jobs, tables.jobs.c.sequence)
        versions = self._rows(tables.versions, tables.versions.c.number)
        models = self._rows(tables.models, tables.models.c.name)
        self._check_jobs(jobs)
        self._check_attempts(jobs)
        self._check_events(jobs)
        for model in models:
            chain = [version for version in versions if version["model"] == model["name"]]
            self._check_chain(model, chain)
            self._check_live(model, chain)
        self._check_datasets(jobs, versions)
        self.head = max(model["head"] for model in models)

    def check_at_the_end(self) -> None:
        """Check that in a healthy world every job has ended, and every result is visible."""
        self.check()
        for job in self._rows(tables.jobs, tables.jobs.c.sequence):
            assert job["state"] in FINAL_STATES, (
                f"stuck: {job['id']} {job['state']} {job['message']}"
            )
            self.ends[job["reason"] or job["state"]] += 1
        sweep_preparations(self._world.context(self._world.database))
        assert list(self._world.store.keys(layout.preparations())) == [], "a request is left"
        for version in self._rows(tables.versions, tables.versions.c.number):
            assert version["stored_at"] is not None, f"never stored: {version['number']}"
        for model in self._rows(tables.models, tables.models.c.name):
            pointer = read_live(self._world.store, model["name"])
            shown = None if pointer is None else (pointer.version, pointer.generation)
            decided = (model["live_version"], model["live_generation"])
            assert shown == (decided if model["live_generation"] else None), "live.json is behind"
            assert model["written_revision"] == model["live_revision"]

    def _check_jobs(self, jobs: Sequence[Row]) -> None:
        in_flight: dict[str, list[str]] = defaultdict(list)
        for job in jobs:
            state, before = JobState(job["state"]), self._jobs.get(job["id"])
            has_ended = job["finished_at"] is not None
            assert has_ended == (state in FINAL_STATES), (
                f"{job['id']}: {state}, {job['finished_at']}"
            )
            if state in IN_FLIGHT:
                in_flight[job["model"]].append(job["id"])
            if before is not None:
                self._compare(before, job)
            is_begun = before is not None and (before["state"], state) == _BEGINS
            if is_begun and job["kind"] != "evaluate":
                self._check_turn(job, jobs)
        for model, several in in_flight.items():
            assert len(several) <= 1, f"{model} has two jobs in flight: {several}"
        self._jobs = {job["id"]: job for job in jobs}
        self.states = {name: JobState(job["state"]) for name, job in self._jobs.items()}
        self._world.woken.clear()

    def _compare(self, before: Row, job: Row) -> None:
        name = job["id"]
        assert job["revision"] >= before["revision"], f"{name}: the fence went back"
        assert job["attempt"] >= before["attempt"], f"{name}: an attempt was numbered twice"
        if job["revision"] == before["revision"]:
            assert job["state"] == before["state"], f"{name}: moved, and the fence did not"
        if before["state"] in FINAL_STATES and name not in self._world.woken:
            assert job["state"] == before["state"], f"{name}: was {before['state']} for good"

    def _check_turn(self, job: Row, jobs: Sequence[Row]) -> None:
        """A job is learned after every earlier one of its model, except dry runs and evaluations."""
        for other in jobs:
            before = self._jobs.get(other["id"])
            is_earlier = other["model"] == job["model"] and other["sequence"] < job["sequence"]
            learns_nothing = other["dry_run"] or other["kind"] == "evaluate"
            if not is_earlier or learns_nothing or other["id"] in self._world.woken:
                continue
            was_open = before is not None and before["finished_at"] is None
            assert other["finished_at"] is not None or not was_open, f"{job['id']} did not wait"

    def _check_attempts(self, jobs: Sequence[Row]) -> None:
        """The spec of an attempt never changes: its number was not used before."""
        for job in jobs:
            for attempt in range(1, job["attempt"] + 1):
                key = layout.run_spec(job["id"], attempt)
                path = self._world.store.root / key
                if path.exists():
                    spec = path.read_bytes()
                    assert self._specs.setdefault(key, spec) == spec, f"{key}: another spec"
            if job["id"] in self._world.bad_jobs:
                tried = [one for one in self._world.cluster.ever if one.startswith(job["id"])]
                assert not tried, f"trained from bad rows: {tried}"

    def _check_events(self, jobs: Sequence[Row]) -> None:
        """Each transition has one event, in order; the last is the state of the job."""
        query = select(tables.events).where(tables.events.c.job.is_not(None))
        by_job: dict[str, list[Row]] = defaultdict(list)
        for event in self._read(query.order_by(tables.events.c.sequence)):
            if event["kind"].startswith("job."):
                by_job[event["job"]].append(event)
        for job in jobs:
            events = by_job[job["id"]]
            moves = [event for event in events if event["kind"] != "job.cancel_requested"]
            states = [event["kind"].removeprefix("job.") for event in moves]
            sources = [event["data"]["from"] for event in moves[1:]]
            assert sources == states[:-1], f"{job['id']}: events jump: {states}"
            for source, target in zip(sources, states[1:], strict=True):
                check_move(JobState(source), JobState(target))
            assert states[-1] == job["state"], f"{job['id']}: {states} and {job['state']}"
            assert job["revision"] == len(events) - 1, f"{job['id']}: {states}"
            for move in moves:
                self._check_grace_period(job["id"], move)

    def _check_grace_period(self, job: str, move: Row) -> None:
        """Before it is repeated, an attempt was stopped and had its grace period."""
        if move["kind"] != "job.prepared" or move["data"].get("from") != JobState.RUNNING:
            return
        attempt = submission_id(job, move["data"]["attempt"])
        stopped = self._world.cluster.stopped_at.get(attempt)
        assert stopped is not None, f"{attempt} was repeated, and never stopped"
        waited = (move["created_at"] - stopped).total_seconds()
        grace = DEADLINES["lost_attempt_grace_seconds"] - self._world.skew_seconds
        assert waited > grace, f"{attempt} was repeated after {waited} s"

    def _check_chain(self, model: Row, chain: Sequence[Row]) -> None:
        numbers = [version["number"] for version in chain]
        assert numbers == list(range(1, model["head"] + 1)), f"{model['name']}: {numbers}"
        learned: tuple[Any, ...] = ()
        for version in chain:
            manifest, number = self._manifest(version), version["number"]
            assert manifest.parent == (number - 1 or None), f"version {number}: {manifest.parent}"
            names, before = (
                [line.dataset for line in lines] for lines in (manifest.learned, learned)
            )
            if manifest.unlearned is not None:
                before.remove(manifest.unlearned.dataset)
                assert names == before, f"version {number} has another lineage than its parent"
            else:
                known = manifest.learned[: len(learned)]
                assert known == learned, f"version {number} forgot its parent's lineage"
                assert len(names) > len(before), f"version {number} learned nothing"
            if manifest.new_line is not None:
                assert manifest.new_line.dataset == manifest.dataset
            learned = manifest.learned

    def _manifest(self, version: Row) -> VersionManifest:
        """The manifest, parsed once: a version never changes."""
        key = (version["model"], version["number"])
        before = self._manifests.setdefault(key, version["manifest"])
        assert before == version["manifest"], f"{key} has changed"
        if key not in self._parsed:
            self._parsed[key] = VersionManifest.model_validate(version["manifest"])
        return self._parsed[key]

    def _check_live(self, model: Row, chain: Sequence[Row]) -> None:
        name, store = model["name"], self._world.store
        stored = {version["number"] for version in chain if version["stored_at"] is not None}
        for number in stored:
            self._must_be_complete(name, number)
        assert model["live_version"] in {None, *stored}, f"{name}: an unstored version answers"
        pointer = read_live(store, name)
        if pointer is None:
            return
        assert pointer.version in stored, f"{name}: live.json shows version {pointer.version}"
        promoted = self._promotions(name)
        assert promoted.get(pointer.generation) == pointer.version, f"{name}: {pointer}"
        self.steps_back += pointer.generation < self._shown[name]
        self._shown[name] = pointer.generation

    def _promotions(self, model: str) -> dict[int, int]:
        query = select(tables.promotions).where(tables.promotions.c.model == model)
        rows = self._read(query.order_by(tables.promotions.c.generation))
        generations = [row["generation"] for row in rows]
        assert generations == list(range(1, len(generations) + 1)), generations
        return {row["generation"]: row["version"] for row in rows}

    def _must_be_complete(self, model: str, number: int) -> None:
        """Check every byte, once. Later writes would be found as a change."""
        if (model, number) in self._complete:
            return
        store = self._world.store
        manifest = read_version(store, model, number)
        assert manifest == self._parsed[(model, number)]
        for name in manifest.files:
            read_version_file(store, manifest, name)
        for line in manifest.learned:
            read_blob(store, line.moments)
        self._complete.add((model, number))

    def _check_datasets(self, jobs: Sequence[Row], versions: Sequence[Row]) -> None:
        made: dict[tuple[str, str], int] = {}
        job_of = {job["id"]: job for job in jobs}
        datasets = {row["id"]: row for row in self._rows(tables.datasets, tables.datasets.c.id)}
        for version in versions:
            dataset = self._manifest(version).dataset
            if dataset is not None:
                key = (version["model"], dataset)
                assert key not in made, f"{dataset} was learned twice"
                made[key] = version["number"]
                assert datasets[dataset]["manifest"] is not None, f"{dataset} was not prepared"
                assert datasets[dataset]["quarantine_reason"] is None, f"{dataset} is quarantined"
            if version["job"] is not None:
                job = job_of[version["job"]]
                assert job["state"] == JobState.PUBLISHED, f"{job['id']} has a version"
                assert version["attempt"] == job["attempt"], f"{job['id']}: a zombie's candidate"
        published = [job for job in jobs if job["state"] == JobState.PUBLISHED]
        own = [version for version in versions if version["job"] is not None]
        assert len(published) == len(own), "a published job without a version"

    def _rows(self, table: Table, order: Any) -> list[Row]:
        return self._read(select(table).order_by(order))

    def _read(self, query: Any) -> list[Row]:
        with self._world.database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]
