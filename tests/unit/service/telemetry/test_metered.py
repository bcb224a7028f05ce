"""Instrumented ports behave like the ports, and every call is measured."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmcl.contract.errors import ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from service.launchers.port import (
    Launcher,
    LauncherRefused,
    LauncherUnavailable,
    LaunchState,
    Submission,
    WatchedLauncher,
    status_of,
)
from service.telemetry.instrumented import InstrumentedStore
from service.telemetry.metrics import Metrics
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.launcher import FakeLauncher
from tests.unit.service.telemetry.samples import value


class MeteredParts:
    """Both ports, over fakes that can fail."""

    def __init__(self, folder: Path) -> None:
        self.metrics = Metrics()
        self.flaky = FlakyStore(LocalStore(folder))
        self.store = InstrumentedStore(self.flaky, self.metrics)
        self.fake = FakeLauncher()
        self.launcher = WatchedLauncher(self.fake, 0.0, measure=self.metrics.launcher_call)

    def store_calls(self, operation: str, outcome: str = "ok") -> float:
        labels = {"operation": operation, "outcome": outcome}
        return value(self.metrics.registry, "store_seconds_count", **labels) or 0

    def launcher_calls(self, call: str, outcome: str = "ok") -> float:
        labels = {"call": call, "outcome": outcome}
        return value(self.metrics.registry, "launcher_seconds_count", **labels) or 0


@pytest.fixture
def parts(tmp_path: Path) -> MeteredParts:
    return MeteredParts(tmp_path / "store")


def methods(port: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(port, inspect.isfunction) if name[0] != "_"}


def use_everything(store: ObjectStore, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"abc")
    store.put("a", b"1")
    store.create("b", b"2")
    store.upload(path, "c")
    with store.writer("d/e", 2) as writer:
        writer.write(b"1")
        writer.write(b"2")
    assert store.read("d/e") == b"12"
    assert store.read_range("c", 1, 3) == b"bc"
    assert b"".join(store.stream("c")) == b"abc"
    store.download("c", folder / "other")
    assert store.size("c") == 3
    assert list(store.keys("d/")) == ["d/e"]
    assert store.folders("") == ["d"]
    store.delete("a")


def test_every_method_of_the_store_is_measured(parts: MeteredParts, tmp_path: Path) -> None:
    use_everything(parts.store, tmp_path)
    unmeasured = {name for name in methods(ObjectStore) if parts.store_calls(name) == 0}
    assert unmeasured == set()
    assert parts.store.uri == parts.flaky.uri


def test_every_method_of_the_launcher_is_measured(parts: MeteredParts) -> None:
    parts.launcher.submit(Submission("job-1-a1", ["true"]))
    assert status_of(parts.launcher, "job-1-a1").state == LaunchState.RUNNING
    parts.launcher.log("job-1-a1")
    parts.launcher.stop("job-1-a1")
    parts.launcher.forget("job-1-a1")
    parts.launcher.resources()
    assert {name for name in methods(Launcher) if parts.launcher_calls(name) == 0} == set()
    assert parts.fake.commands == {"job-1-a1": ["true"]}


def test_errors_of_the_store_pass_through_by_their_kind(parts: MeteredParts) -> None:
    with pytest.raises(ObjectNotFound):
        parts.store.read("a")
    with pytest.raises(ObjectNotFound):
        parts.store.stream("a")
    parts.store.create("a", b"")
    with pytest.raises(ObjectExists):
        parts.store.create("a", b"")
    parts.flaky.broken = "a"
    with pytest.raises(StorageUnavailable):
        parts.store.size("a")
    assert parts.store_calls("read", "not_found") == 1
    assert parts.store_calls("open", "not_found") == 1
    assert parts.store_calls("create", "exists") == 1
    assert parts.store_calls("size", "unavailable") == 1


def test_errors_of_the_launcher_pass_through_by_their_kind(parts: MeteredParts) -> None:
    parts.fake.refuses = True
    with pytest.raises(LauncherRefused):
        parts.launcher.submit(Submission("job-1-a1", ["true"]))
    parts.fake.is_down = True
    with pytest.raises(LauncherUnavailable):
        status_of(parts.launcher, "job-1-a1")
    assert parts.launcher_calls("submit", "refused") == 1
    assert parts.launcher_calls("statuses", "unavailable") == 1


class BreakingStore(LocalStore):
    """Breaks off in the middle of a body."""

    def stream(self, key: str) -> Iterator[bytes]:
        yield b"first"
        raise StorageUnavailable("on purpose")


def test_a_body_that_breaks_off_is_counted_as_such(tmp_path: Path) -> None:
    metrics = Metrics()
    chunks = InstrumentedStore(BreakingStore(tmp_path), metrics).stream("a")
    assert next(chunks) == b"first"
    with pytest.raises(StorageUnavailable):
        next(chunks)
    labels = {"operation": "stream", "outcome": "unavailable"}
    assert value(metrics.registry, "store_seconds_count", **labels) == 1


def test_a_reader_that_stops_early_is_no_error(parts: MeteredParts) -> None:
    for name in ("a", "b"):
        parts.store.put(name, b"")
    keys = parts.store.keys("")
    assert next(keys) == "a"
    keys.close()  # type: ignore[attr-defined]
    assert parts.store_calls("keys") == 1
