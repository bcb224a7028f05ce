"""All running attempts are watched by one listing and one list: what each look costs, and what it finds."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import Progress
from cmcl.storage import layout
from cmcl.storage.running import read_running
from cmcl.storage.versions import write_blob, write_candidate
from service.context import Context
from service.core.errors import DatabaseUnavailable
from service.jobs.attempts import watch
from service.jobs.monitor import AttemptMonitor
from service.jobs.reconciler import Reconciler
from service.jobs.workqueue import Key, WorkQueue
from service.launchers.port import LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crashes import Contact, CrashingDatabase, FaultAtMoment
from tests.fakes.trainer import report_progress, train

MODELS = ("one", "two", "three")


@pytest.fixture
def running(plane: ControlPlane) -> dict[str, str]:
    """Jobs of three models that run, and have been looked at."""
    for model in MODELS:
        plane.create_model(model)
    jobs = {model: plane.post_dataset("data", model) for model in MODELS}
    for job in jobs.values():
        plane.tick_to(job, JobState.RUNNING)
        report_progress(plane.store, job, 1, "training", 1)
    plane.tick(2)
    return jobs


def test_a_look_costs_the_same_however_many_attempts_run(
    plane: ControlPlane, running: dict[str, str]
) -> None:
    plane.store.calls.clear()
    for updates in range(2, 6):
        for job in running.values():
            report_progress(plane.store, job, 1, "training", updates)
        plane.store.calls.clear()
        plane.tick()
        assert plane.store.calls == [layout.running()]
    assert {plane.job(job).progress.updates_done for job in running.values()} == {5}  # type: ignore[union-attr]


def test_without_running_attempts_nothing_is_listed(plane: ControlPlane) -> None:
    plane.tick()
    plane.store.calls.clear()
    plane.tick(3)
    assert plane.store.calls == []


class Watched:
    """A monitor with a queue of its own."""

    def __init__(self, plane: ControlPlane, context: Context | None = None) -> None:
        self._plane = plane
        self._queue = WorkQueue(lambda: 0.0, {}, 8)
        self.monitor = AttemptMonitor(
            context or plane.context, plane.reconciler.instance, self._queue
        )
        # Each attempt is seen for the first time.
        self.woken()

    def woken(self) -> list[str]:
        """The models that a look wakes, in their order."""
        self._plane.reconciler.leases.renew()
        self.monitor.look()
        models = []
        while (key := self._queue.get(0)) is not None:
            models.append(key.model)
            self._queue.done(key)
        return models


def test_one_candidate_wakes_its_model_alone(plane: ControlPlane, running: dict[str, str]) -> None:
    watched = Watched(plane)
    train(plane.store, running["two"], 1)
    assert watched.woken() == ["two"]
    assert watched.woken() == []
    plane.launcher.end(f"{running['one']}-a1", LaunchState.FAILED)
    plane.clock.advance(1)
    assert watched.woken() == ["one"]


def test_a_candidate_wakes_its_model_before_the_progress_of_others_is_read(
    plane: ControlPlane, running: dict[str, str]
) -> None:
    watched = Watched(plane)
    report_progress(plane.store, running["one"], 1, "waiting", figures={"note": "no GPU is free"})
    train(plane.store, running["two"], 1)
    plane.store.broken = layout.running_file(f"{running['one']}-a1", "")
    plane.launcher.is_down = True
    assert watched.woken() == ["two"]
    assert watched.monitor.shows_end(f"{running['two']}-a1")
    plane.store.broken, plane.launcher.is_down = None, False
    plane.tick()
    assert plane.job(running["two"]).state == JobState.GATING
    assert plane.job(running["one"]).message == "no GPU is free"


def _failing_once(context: Context) -> Context:
    """The context with a database whose first transaction that writes fails."""
    fault = FaultAtMoment(1, deadly=False)
    return replace(context, database=CrashingDatabase(context.database, fault))


@pytest.mark.parametrize("context", [lambda same: same, _failing_once], ids=["", "failed once"])
def test_the_last_progress_is_stored_before_the_job_moves_on(
    plane: ControlPlane, running: dict[str, str], context: Callable[[Context], Context]
) -> None:
    class Queue(WorkQueue):
        """A queue whose worker is faster than the monitor: it takes each key as it is added."""

        def add(self, key: Key) -> None:
            watch(plane.context, plane.job(running[key.model]), shows_end=True)

    plane.reconciler.leases.renew()
    queue = Queue(lambda: 0.0, {}, 8)
    monitor = AttemptMonitor(context(plane.context), plane.reconciler.instance, queue)
    last = report_progress(plane.store, running["two"], 1, "training", 9)
    train(plane.store, running["two"], 1)
    with suppress(DatabaseUnavailable):
        monitor.look()
    monitor.look()
    job = plane.job(running["two"])
    assert (job.state, job.progress) == (JobState.GATING, last)


class Bug(FaultAtMoment):
    """Fails the first transaction that writes with an error that nothing expects."""

    def before(self, contact: Contact) -> None:
        if contact.has_effect and not self.struck:
            self.struck = contact.method
            raise ValueError("a bug, on purpose")


def test_progress_that_cannot_be_stored_delays_no_candidate(
    plane: ControlPlane, running: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    database = CrashingDatabase(plane.context.database, Bug())
    watched = Watched(plane, replace(plane.context, database=database))
    last = report_progress(plane.store, running["one"], 1, "training", 9)
    train(plane.store, running["one"], 1)
    assert watched.woken() == ["one"]
    assert watched.monitor.shows_end(f"{running['one']}-a1")
    assert "the last progress of ended attempts was not stored" in caplog.text
    assert plane.job(running["one"]).progress == last


def test_progress_that_cannot_be_read_delays_no_candidate(
    plane: ControlPlane, running: dict[str, str]
) -> None:
    watched = Watched(plane)
    report_progress(plane.store, running["one"], 1, "waiting", figures={"note": "no GPU is free"})
    for model in ("one", "two"):
        train(plane.store, running[model], 1)
    plane.store.broken = layout.running_file(f"{running['one']}-a1", "")
    assert watched.woken() == ["one", "two"]
    assert watched.monitor.shows_end(f"{running['two']}-a1")


@pytest.mark.parametrize("is_damaged", [False, True], ids=["no response", "damaged"])
def test_a_note_that_cannot_be_read_delays_the_progress_of_no_other_attempt(
    plane: ControlPlane, running: dict[str, str], caplog: pytest.LogCaptureFixture, is_damaged: bool
) -> None:
    report_progress(plane.store, running["one"], 1, "waiting", figures={"note": "no GPU is free"})
    shown = layout.running_file(f"{running['one']}-a1", "")
    (key,) = plane.store.keys(shown)
    written = plane.store.read(key)
    if is_damaged:
        plane.store.put(key, b"{}")
    else:
        plane.store.broken = shown
    for updates in (2, 3):
        report_progress(plane.store, running["two"], 1, "training", updates)
        plane.tick()
        progress = plane.job(running["two"]).progress
        assert progress is not None
        assert progress.updates_done == updates
    assert caplog.text.count(f"the note of {running['one']}-a1 was not read") == 1
    plane.store.broken = None
    plane.store.put(key, written)
    plane.tick()
    assert plane.job(running["one"]).message == "no GPU is free"


@pytest.mark.parametrize(("seconds", "pause"), [(0.0, 0.2), (0.05, 0.15), (5.0, 0.1)])
def test_attempts_are_looked_at_at_an_even_pace(
    plane: ControlPlane, running: dict[str, str], seconds: float, pause: float
) -> None:
    plane.reconciler.leases.renew()
    plane.launcher.take_time = lambda: plane.clock.advance(seconds)
    found = plane.reconciler.monitor.step(threading.Event())
    assert found == pytest.approx(pause)


def test_without_attempts_it_looks_at_the_pace_of_the_launcher(plane: ControlPlane) -> None:
    plane.reconciler.leases.renew()
    assert plane.reconciler.monitor.step(threading.Event()) == 1.0


def test_a_candidate_that_is_not_shown_is_found_when_its_attempt_has_ended(
    plane: ControlPlane, running: dict[str, str]
) -> None:
    job = running["one"]
    manifest = train(plane.store, job, 1, write=False)
    for name in (*layout.VERSION_FILES, "moments"):
        write_blob(plane.store, f"{job} 1 {name}".encode())
    write_candidate(plane.store, manifest)
    plane.tick(3)
    assert plane.job(job).state == JobState.RUNNING
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "the last write failed")
    plane.tick()
    assert plane.job(job).state == JobState.GATING


def test_what_an_attempt_has_shown_is_removed_with_its_end(
    plane: ControlPlane, running: dict[str, str]
) -> None:
    train(plane.store, running["one"], 1)
    plane.launcher.end(f"{running['two']}-a1", LaunchState.FAILED)
    plane.tick(3)
    assert set(read_running(plane.store)) == {f"{running['three']}-a1"}


def test_a_note_is_read_once(plane: ControlPlane, running: dict[str, str]) -> None:
    job = running["one"]
    for second in range(3):
        report_progress(
            plane.store,
            job,
            1,
            "waiting",
            figures={"note": "no GPU is free", "eta_seconds": second},
        )
        plane.store.calls.clear()
        plane.tick()
        assert len(plane.store.calls) == (2 if second == 0 else 1)
        assert plane.job(job).message == "no GPU is free"
    report_progress(plane.store, job, 1, "training", 2)
    plane.tick()
    assert plane.job(job).message is None


def test_progress_that_another_process_has_stored_is_no_sign_of_life(
    plane: ControlPlane, running: dict[str, str]
) -> None:
    job = running["one"]
    heard_at = plane.job(job).heard_at
    plane.clock.advance(100)
    plane.reconciler = Reconciler(plane.context)
    plane.tick(2)
    assert plane.job(job).heard_at == heard_at
    report_progress(plane.store, job, 1, "training", 7)
    plane.tick()
    heard_again = plane.job(job).heard_at
    assert heard_at is not None
    assert heard_again is not None
    assert heard_again > heard_at


def test_a_listing_that_fails_loses_nothing(plane: ControlPlane, running: dict[str, str]) -> None:
    plane.store.broken = layout.running()
    plane.tick(2)
    plane.store.broken = None
    progress: Progress = report_progress(plane.store, running["two"], 1, "training", 9)
    train(plane.store, running["one"], 1)
    plane.tick()
    assert plane.job(running["one"]).state == JobState.GATING
    assert plane.job(running["two"]).progress == progress


def test_a_listing_that_keeps_failing_makes_the_process_not_ready(
    plane: ControlPlane, running: dict[str, str]
) -> None:
    monitor = plane.reconciler.monitor
    monitor._looked_at -= 121
    plane.app.state.loops = [monitor]
    response = plane.client.get("/readyz")
    assert response.status_code == 503
    assert "not been looked at for 121 s" in response.json()["checks"]["monitor"]
    plane.tick()
    assert plane.client.get("/readyz").status_code == 200
