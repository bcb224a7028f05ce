"""The loop of `cmcl mirror`, with a target in memory."""

import json
from collections.abc import Callable, Iterator

import pytest

from cmcl import Client
from cmcl.cli.errors import Exit
from cmcl.client.concurrency import Clock
from cmcl.mirror import Mirror, MirrorError, Published, TargetUnavailable
from tests.fakes.control_plane import ControlPlane
from tests.fakes.measured import write_measured
from tests.fakes.served_app import served
from tests.unit.client.command_line import Cmcl
from tests.unit.client.either import PROMPT, in_process


class ScriptedTarget:
    """Keeps what is written. `fails` may raise before something is written, and `after` when it was."""

    def __init__(self) -> None:
        self.versions: list[str] = []
        self.live: list[tuple[str, int]] = []
        self.fails: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def last_version(self, model: str) -> int:
        self.fails()
        return len([each for each in self.versions if each.startswith(f"{model}@")])

    def write_version(self, published: Published) -> None:
        self.fails()
        self.versions.append(published.name)
        self.after()

    def write_live(self, model: str, version: int) -> None:
        self.live.append((model, version))


class PassingClock(Clock):
    """Sleeping takes no time; `on_sleep` gets the seconds that have passed."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.on_sleep: Callable[[float], None] = lambda _: None

    def sleep(self, seconds: float) -> None:
        self.passed += seconds
        self.on_sleep(self.passed)


@pytest.fixture
def client(published_plane: ControlPlane) -> Iterator[Client]:
    with in_process("blocking", published_plane.app) as client:
        yield client


@pytest.fixture
def target() -> ScriptedTarget:
    return ScriptedTarget()


@pytest.fixture
def clock() -> PassingClock:
    return PassingClock()


@pytest.fixture
def started(client: Client, target: ScriptedTarget, clock: PassingClock) -> Callable[[], Mirror]:
    """Starts a mirror as after a restart, with only the target."""
    return lambda: Mirror(client, target, None, clock)


def test_a_mirror_goes_on_after_a_restart_and_writes_each_version_once(
    started: Callable[[], Mirror], target: ScriptedTarget, published_plane: ControlPlane
) -> None:
    started().catch_up()
    assert target.versions == ["scenes@1", "scenes@2"]
    assert target.live[-1] == ("scenes", 2)
    started().catch_up()
    published_plane.run_to_end(published_plane.post_dataset("three"))
    started().catch_up()
    assert target.versions == ["scenes@1", "scenes@2", "scenes@3"]


def test_a_target_that_is_down_for_an_hour_misses_nothing(
    started: Callable[[], Mirror], target: ScriptedTarget, clock: PassingClock
) -> None:
    def fails() -> None:
        if clock.passed < 3600:
            raise TargetUnavailable("connection refused")

    target.fails = fails
    started().catch_up()
    assert 3600 <= clock.passed <= 3720, "it is asked again within a minute of its return"
    assert target.versions == ["scenes@1", "scenes@2"]


def test_a_refusal_of_the_target_ends_the_mirror(
    started: Callable[[], Mirror], target: ScriptedTarget, clock: PassingClock
) -> None:
    def fails() -> None:
        raise MirrorError("no permission")

    target.fails = fails
    with pytest.raises(MirrorError, match="no permission"):
        started().catch_up()
    assert clock.passed == 0


def test_new_versions_are_followed(
    target: ScriptedTarget,
    published_plane: ControlPlane,
    clock: PassingClock,
) -> None:
    class Done(Exception):
        pass

    def enough() -> None:
        if len(target.versions) == 3:
            raise Done

    target.after = enough
    # Published after the mirror has looked and before it listens.
    target.write_live = lambda model, version: published(version)  # type: ignore[method-assign]

    def published(version: int) -> None:
        if version == 2:
            published_plane.run_to_end(published_plane.post_dataset("three"))

    with (
        served(published_plane.app) as url,
        Client(url, retries=PROMPT) as client,
        pytest.raises(Done),
    ):
        Mirror(client, target, None, clock).follow()
    assert target.versions == ["scenes@1", "scenes@2", "scenes@3"]


def test_metrics_have_names_of_datasets(client: Client, published_plane: ControlPlane) -> None:
    job = published_plane.post_dataset("three")
    write_measured(
        published_plane, job, {"one": 0.7, "three": 0.9}, {"one": 0.3}, free={"image": 0.5}
    )
    published_plane.run_to_end(job)
    version = client.version("scenes", 3)
    metrics = Published(client.model("scenes"), version).metrics()
    assert (metrics["recall_at_1/one"], metrics["recall_at_1/three"]) == (0.7, 0.9)
    assert metrics["mean_recall_at_1"] == 0.8
    assert metrics["max_drift"] == metrics["drift/one"] == 0.3
    assert metrics["free_share/image"] == 0.5
    assert json.loads(json.dumps(metrics)) == metrics


def test_a_missing_package_is_named(cmcl: Cmcl) -> None:
    error = cmcl("mirror", "--once", code=Exit.FAILED)
    assert "needs the package mlflow-skinny, which is not installed" in error
