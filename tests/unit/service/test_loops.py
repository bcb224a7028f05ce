"""Background loops survive errors, and probes name a stuck one."""

import threading
import time
from collections.abc import Callable

import pytest

from service.core.loops import HUNG_SECONDS, Loop, PeriodicLoop
from service.jobs.reconciler import Workers
from service.jobs.workqueue import Key, Work, WorkQueue
from tests.fakes.control_plane import ControlPlane


class Seconds:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Rounds(PeriodicLoop):
    """Counts its rounds; the first one fails."""

    name = "rounds"
    pause_seconds = 0.001
    stale_seconds = 60.0

    def __init__(self, seconds: Seconds) -> None:
        super().__init__(seconds)
        self.number = 0
        self.reported: list[Exception] = []
        self.has_recovered = threading.Event()

    def step(self, stop: threading.Event) -> float:
        self.number += 1
        if self.number == 1:
            raise ValueError("the first round")
        self.has_recovered.set()
        return self.pause_seconds

    def report(self, error: Exception) -> None:
        self.reported.append(error)


class Unreported(Rounds):
    """Cannot report its failed round."""

    def report(self, error: Exception) -> None:
        super().report(error)
        raise ConnectionError("the log is away")


@pytest.mark.parametrize("kind", [Rounds, Unreported])
def test_a_loop_survives_a_round_that_fails(kind: type[Rounds]) -> None:
    loop, stop = kind(Seconds()), threading.Event()
    thread = threading.Thread(target=loop.run, args=[stop])
    thread.start()
    assert loop.has_recovered.wait(60)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert [str(error) for error in loop.reported] == ["the first round"]


def test_a_loop_without_a_heartbeat_is_stale_and_later_hung() -> None:
    seconds = Seconds()
    loop = Rounds(seconds)
    seconds.now = 61.0
    assert "61 s" in (loop.problem() or "")
    assert loop.hung() is None
    loop.beat()
    assert loop.problem() is None
    seconds.now += HUNG_SECONDS + 1
    assert loop.hung() is not None


@pytest.fixture
def stuck(plane: ControlPlane) -> Rounds:
    """A loop of the app whose thread hangs."""
    seconds = Seconds()
    loop = Rounds(seconds)
    plane.app.state.loops = [plane.reconciler, loop]
    seconds.now = 61.0
    return loop


def test_a_stuck_loop_makes_the_process_not_ready(plane: ControlPlane, stuck: Rounds) -> None:
    response = plane.client.get("/readyz")
    assert response.status_code == 503
    assert "no round has ended for 61 s" in response.json()["checks"]["rounds"]
    assert plane.client.get("/healthz").status_code == 200
    stuck.beat()
    assert plane.client.get("/readyz").status_code == 200


def test_a_hung_loop_fails_the_liveness_probe(plane: ControlPlane, stuck: Rounds) -> None:
    stuck._beat_at = -HUNG_SECONDS
    response = plane.client.get("/healthz")
    assert (response.status_code, response.json()["status"]) == (503, "hung")
    assert list(response.json()["checks"]) == ["rounds"]


def test_every_loop_that_runs_is_checked_and_measured(plane: ControlPlane) -> None:
    with plane.client.running():
        loops: list[Loop] = plane.app.state.loops
        checks = plane.client.get("/readyz").json()["checks"]
        text = plane.client.get("/metrics").text
    names = {loop.name for loop in loops}
    assert {"reconciler", "scheduler", "driver", "webhooks", "gc", "backup"} <= names
    assert names | {"database", "store"} == set(checks)
    assert all(f'cmcl_service_loop_age_seconds{{loop="{name}"}}' in text for name in names)


def test_an_outage_is_logged_once_until_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    away = OSError("away"), OSError("away"), OSError("still away")
    rounds = iter([*away, None, away[2], RuntimeError("a bug")])

    class Flaky(PeriodicLoop):
        name = "flaky"
        pause_seconds = 0.0
        outages = (OSError,)
        outage_message = "it failed"

        def step(self, stop: threading.Event) -> float:
            error = next(rounds, stop)
            if isinstance(error, Exception):
                raise error
            if error is stop:
                stop.set()
            return 0.0

    Flaky().run(threading.Event())
    assert caplog.messages == [
        "it failed: away",
        "it failed: still away",
        "it failed: still away",
        "a round of flaky failed; will retry",
    ]


class Ending(Loop):
    """A loop that returns, or ends by an error."""

    name = "ending"

    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self._error = error

    def run(self, stop: threading.Event) -> None:
        if self._error is not None:
            raise self._error


def process_nothing(key: Key) -> None:
    raise AssertionError("planted")


def one_worker(_: object) -> Workers:
    queue = WorkQueue(time.monotonic, {}, 1)
    queue.add(Key("scenes", Work.JOBS))
    return Workers(queue, process_nothing, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (Ending, AssertionError("planted")),
        (Ending, MemoryError()),
        (Ending, None),
        (one_worker, None),
    ],
)
def test_a_thread_that_ends_is_shown_by_both_probes_at_once(
    plane: ControlPlane, make: Callable[[object], Loop], error: BaseException | None
) -> None:
    loop, stop = make(error), threading.Event()
    thread = threading.Thread(target=loop.work, args=[stop])
    thread.start()
    thread.join()
    plane.app.state.loops = [loop]
    for path in ("/healthz", "/readyz"):
        response = plane.client.get(path)
        assert response.status_code == 503
        assert "a thread has ended" in response.text
