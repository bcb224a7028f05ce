"""After any events in any order, no sweep removes anything that can still be requested."""

import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cmcl.contract.api.jobs import FINAL_STATES, JobState
from cmcl.storage import layout
from cmcl.storage.versions import read_blob, read_version, read_version_file
from service.database.queries import datasets
from service.launchers.port import LaunchState, status_of
from service.maintenance.gc import GC_TASKS, RARE_GC_TASKS
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train
from tests.fakes.uploads import upload_whole
from tests.unit.service.maintenance.test_sweeping import DAY, fail, keys, sweep
from tests.unit.service.uploads.test_sending import parquet

# More of them for a longer search.
EXAMPLES = int(os.environ.get("CMCL_FAULT_EXAMPLES", "1"))
HOURS = (0.1, 2, 25, 8 * 24, 31 * 24)

Event = tuple[str, int]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            (
                *("post", "upload", "step", "learn", "learn", "fail", "reject", "cancel"),
                *("branch", "delete_model", "delete_dataset", "retry", "wait", "wait"),
            )
        ),
        st.integers(0, 4),
    ),
    min_size=4,
    max_size=14,
)


class World:
    """A control plane with some models, and random operations on it."""

    def __init__(self, folder: Path) -> None:
        self.plane = ControlPlane(folder, max_attempts=1, lost_attempt_grace_seconds=0)
        self.plane.create_model("scenes")
        self.posted = 0

    def happen(self, event: Event) -> None:
        """Do one of EVENTS; the number selects the object."""
        name, number = event
        getattr(self, f"_{name}")(number)

    def sweep(self) -> None:
        """Run all tasks, the rare ones too."""
        for duty in (*GC_TASKS, *RARE_GC_TASKS):
            duty(self.plane.context)

    def models(self) -> list[str]:
        """Names of those that are there."""
        return [item["name"] for item in self.plane.client.get("/v1/models").json()["items"]]

    def jobs(self, *states: JobState) -> list[str]:
        """Ids of jobs in one of these states."""
        items = self.plane.client.get("/v1/jobs?limit=200").json()["items"]
        return [item["id"] for item in items if item["state"] in states]

    def finish(self, job: str) -> None:
        """Let the attempt of a job come to its end, as the cluster would."""
        for _ in range(12):
            found = self.plane.job(job)
            if found.state in FINAL_STATES:
                break
            if found.state == JobState.RUNNING and not self.plane.has_candidate(found):
                train(self.plane.store, job, found.attempt)
            self.plane.tick()
        self.plane.tick(3)

    def _post(self, number: int, shards: list[dict[str, str]] | None = None) -> None:
        models = self.models()
        if not models:
            return
        self.posted += 1
        more: dict[str, object] = {"evaluation_share": 0.3} if number % 2 else {}
        if shards is not None:
            more["shards"] = shards
        model = models[number % len(models)]
        self.plane.post_dataset(f"d{self.posted}", model, **more)

    def _upload(self, number: int) -> None:
        uri = upload_whole(self.plane, parquet(f"u{self.posted}"))
        if number:
            self._post(number, [{"uri": uri}])

    def _step(self, number: int) -> None:
        self.plane.tick(number)

    def _learn(self, _: int) -> None:
        for job in self._next():
            self.finish(job)

    def _fail(self, _: int) -> None:
        for job in self._next():
            found = self.plane.job(job)
            for _ in range(6):
                if found.state in FINAL_STATES:
                    break
                if found.state == JobState.RUNNING:
                    attempt = f"{job}-a{found.attempt}"
                    self.plane.launcher.end(attempt, LaunchState.FAILED, "killed")
                self.plane.tick()
                found = self.plane.job(job)

    def _reject(self, number: int) -> None:
        for model in self.models():
            self._ask("PUT", f"/v1/models/{model}/gate", {"manual_approval": True})
        self._learn(number)
        for job in self.jobs(JobState.HELD):
            self._ask("POST", f"/v1/jobs/{job}/reject", {"reason": "no"})
        for model in self.models():
            self._ask("PUT", f"/v1/models/{model}/gate", {})

    def _cancel(self, _: int) -> None:
        for job in self._next():
            self._ask("POST", f"/v1/jobs/{job}/cancel")
        self.plane.tick(3)

    def _branch(self, number: int) -> None:
        for model in self.models():
            if self.plane.versions(model):
                body = {"name": f"branch-{self.posted}-{number}", "version": 1}
                self._ask("POST", f"/v1/models/{model}/branch", body)
                break
        self.plane.tick(number)

    def _delete_model(self, number: int) -> None:
        for model in self.models()[number : number + 1]:
            self._ask("DELETE", f"/v1/models/{model}")

    def _delete_dataset(self, number: int) -> None:
        items = self.plane.client.get("/v1/datasets?limit=200").json()["items"]
        for item in items[number : number + 1]:
            self._ask("DELETE", f"/v1/datasets/{item['id']}")

    def _retry(self, _: int) -> None:
        for job in self.jobs(JobState.FAILED, JobState.REJECTED)[:1]:
            self._ask("POST", f"/v1/jobs/{job}/retry")

    def _wait(self, number: int) -> None:
        self.plane.clock.advance(timedelta(hours=HOURS[number]).total_seconds())

    def _next(self) -> list[str]:
        open_states = [state for state in JobState if state not in FINAL_STATES]
        return self.jobs(*open_states)[:1]

    def _ask(self, method: str, path: str, body: object = None) -> None:
        """Send a request; any status below 500 is accepted."""
        assert self.plane.client.request(method, path, json=body).status_code < 500, path


def check_versions(world: World) -> None:
    """Every stored version of every model that is there, with what later ones need of it."""
    store = world.plane.store
    for model in world.models():
        for version in world.plane.versions(model):
            if version.stored_at is None:
                continue
            manifest = read_version(store, model, version.number)
            for name in manifest.files:
                read_version_file(store, manifest, name)
            for line in manifest.learned:
                read_blob(store, line.moments)
                check_held_out(world, line.dataset)


def check_held_out(world: World, dataset: str) -> None:
    with world.plane.context.database.read() as connection:
        found = datasets.find(connection, dataset)
    assert found is not None
    assert found.manifest is not None
    assert world.plane.store.read(layout.dataset_manifest(dataset))
    for shard in found.manifest.evaluation_shards:
        key = shard.uri.removeprefix(f"{world.plane.store.uri}/")
        assert world.plane.store.size(key) == shard.bytes


def check_jobs_go_on(world: World) -> None:
    """Open jobs reach a version. So do failed and rejected ones, or the request reports that it is too late."""
    for job in asked_again(world):
        world.finish(job)
        found = world.plane.job(job)
        assert found.state == JobState.PUBLISHED, found
    check_versions(world)


def asked_again(world: World) -> Iterator[str]:
    """Yield the open jobs, and then those that were retried."""
    open_states = [state for state in JobState if state not in FINAL_STATES]
    yield from world.jobs(*open_states)
    for job in world.jobs(JobState.FAILED, JobState.REJECTED):
        answer = world.plane.client.post(f"/v1/jobs/{job}/retry")
        assert answer.status_code in (202, 404, 409)
        if answer.status_code == 202:
            yield job


def check_shards_are_there(world: World) -> None:
    """Shards in our own store that a job still has to read."""
    open_states = [state for state in JobState if state not in FINAL_STATES]
    for job in world.jobs(*open_states):
        manifest = world.plane.dataset_of(job).manifest
        for shard in manifest.shards if manifest else ():
            if shard.uri.startswith(world.plane.store.uri):
                key = shard.uri.removeprefix(f"{world.plane.store.uri}/")
                assert world.plane.store.size(key) == shard.bytes


@settings(max_examples=EXAMPLES)
@given(EVENTS)
@example([("post", 1), ("step", 4), ("wait", 4), ("learn", 0)])
@example([("upload", 1), ("wait", 2), ("learn", 0)])
@example([("upload", 1), ("fail", 0), ("wait", 2), ("retry", 0), ("learn", 0)])
@example([("post", 1), ("fail", 0), ("wait", 3), ("retry", 0), ("learn", 0)])
@example([("post", 1), ("reject", 0), ("wait", 2), ("retry", 0), ("learn", 0)])
@example([("post", 1), ("learn", 0), ("branch", 0), ("delete_model", 1), ("wait", 1), ("step", 4)])
@example([("post", 1), ("learn", 0), ("branch", 4), ("delete_model", 1), ("wait", 1), ("post", 0)])
def test_no_sweep_takes_what_is_still_needed(happenings: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for event in happenings:
            world.happen(event)
            world.sweep()
            check_versions(world)
            check_shards_are_there(world)
        check_jobs_go_on(world)
        world.plane.close()


def test_attempts_are_deleted_from_the_cluster_with_their_files(plane: ControlPlane) -> None:
    job = fail(plane)
    attempts = [f"{job}-a{attempt}" for attempt in range(1, 4)]
    plane.clock.advance(6 * DAY)
    sweep(plane)
    assert {status_of(plane.launcher, name).state for name in attempts} == {LaunchState.FAILED}
    plane.clock.advance(2 * DAY)
    sweep(plane)
    assert {status_of(plane.launcher, name).state for name in attempts} == {LaunchState.UNKNOWN}
    assert keys(plane, f"runs/{job}/") == []


def test_a_failed_deletion_on_the_cluster_is_retried_later(plane: ControlPlane) -> None:
    job = fail(plane)
    plane.clock.advance(8 * DAY)
    plane.launcher.is_down = True
    sweep(plane)
    plane.launcher.is_down = False
    assert status_of(plane.launcher, f"{job}-a3").state == LaunchState.FAILED
    sweep(plane)
    assert status_of(plane.launcher, f"{job}-a3").state == LaunchState.UNKNOWN
