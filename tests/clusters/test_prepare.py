"""Preparation on Ray: small datasets start at once, and killing any process loses at most units in work."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.faults.nodes import Nodes
from benchmarks.processes import family
from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PrepareProgress
from cmcl.storage import layout
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.local import LocalStore
from tests.conftest import EXAMPLE_STREAM
from tests.fakes.preparation import Ground
from tests.ray.attempts import SECONDS, STREAM, ended, title, wait_until

PLACES = {"name": "places", "kind": "synthetic", "takes": "numbers", "width": 4, "max_batch": 8}
WORDS = {"name": "words", "kind": "synthetic", "takes": "text", "width": 512, "max_batch": 8}
RAW = ModelSpec.model_validate(
    {
        "width": 8,
        "modalities": {
            "image": {"width": 4, "encoder": "places"},
            "text": {"width": 512, "encoder": "words"},
        },
        "training": {"batch_size": 8},
    }
)


class Driver:
    """A driver on a Ray of these tests."""

    def __init__(self, nodes: Nodes, ground: Ground, *options: str, **settings: int) -> None:
        self.ground = ground
        given = [f"CMCL_PREPARE_{name.upper()}={value}" for name, value in settings.items()]
        program = [sys.executable, "-m", "workers.driver", "--store", ground.store.uri, *options]
        command = ["env", *given, *program]
        self.process: subprocess.Popen[bytes] = nodes.start_driver(command, "driver")

    def manifest(self, dataset: str) -> DatasetManifest:
        """Wait for the manifest, and return it."""
        wait_until(lambda: read_dataset_manifest(self.ground.store, dataset))
        found = read_dataset_manifest(self.ground.store, dataset)
        assert found is not None
        return found

    def progress(self, dataset: str) -> PrepareProgress | None:
        """The progress; None before the first."""
        try:
            text = self.ground.store.read(layout.preparation_file(dataset, "progress"))
        except ObjectNotFound:
            return None
        return PrepareProgress.model_validate_json(text)

    def end(self) -> int:
        """End it as Ray does, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return ended(self.process)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """One node with 80 MB for objects. The session's stack has a driver of its own."""
    with Nodes(tmp_path_factory.mktemp("ray"), {}, cpus_of_head=6, others=()) as running:
        yield running


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(LocalStore(tmp_path / "store"), tmp_path / "theirs", RAW)


@pytest.fixture
def start(nodes: Nodes, ground: Ground) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def started(*options: str, **settings: int) -> Driver:
        drivers.append(Driver(nodes, ground, *options, **settings))
        return drivers[-1]

    yield started
    for driver in drivers:
        driver.process.kill()
        driver.process.wait()


def write_rows(ground: Ground, rows: int) -> None:
    lines = [
        json.dumps(
            {"id": f"r{row}", "image": [row, 0.5], "text": f"caption {row} " * (row % 7 + 1)}
        )
        for row in range(rows)
    ]
    (ground.folder / "raw.jsonl").write_text("\n".join(lines) + "\n")


def ask_raw(ground: Ground, dataset: str, **fields: Any) -> None:
    encoders = {"image": PLACES, "text": WORDS}
    ground.request("raw.jsonl", dataset=dataset, encoders=encoders, **fields)


def stored(ground: Ground, manifest: DatasetManifest) -> dict[str, bytes]:
    shards = (*manifest.shards, *manifest.evaluation_shards)
    uri = f"{ground.store.uri}/"
    return {
        key: ground.store.read(key) for key in (shard.uri.removeprefix(uri) for shard in shards)
    }


@pytest.mark.ray
def test_datasets_of_features_are_prepared_and_the_driver_ends_when_idle(
    ground: Ground, start: Callable[..., Driver]
) -> None:
    driver = start("--idle-seconds", "3")
    spec = ModelSpec.model_validate({"width": 8, "modalities": STREAM.modalities})
    seconds = []
    for number, chosen in enumerate(STREAM.datasets):
        began = time.monotonic()
        ground.request(
            dataset=f"ds-{number}",
            spec=spec,
            pair=chosen.pair,
            shards=tuple(chosen.shards),
            evaluation_shards=tuple(chosen.evaluation_shards),
            allowed_prefixes=(EXAMPLE_STREAM.as_uri(),),
        )
        manifest = driver.manifest(f"ds-{number}")
        seconds.append(round(time.monotonic() - began, 3))
        assert manifest.rows > 0
        assert len(manifest.evaluation_shards) == 1
    print(f"from the request to the manifest: {seconds} s")
    for key in list(ground.store.keys(layout.preparations())):
        ground.store.delete(key)
    assert ended(driver.process) == 0


def processes(nodes: Nodes, name: str) -> list[psutil.Process]:
    """Processes of Ray by the name that it gives them."""
    (node,) = nodes.processes.values()
    return [process for process in family(node.pid) if name in title(process)]


def units(nodes: Nodes) -> list[psutil.Process]:
    """Worker processes that carry out a unit now."""
    return processes(nodes, "ray::_results")


def children_of_units(nodes: Nodes) -> list[psutil.Process]:
    """Processes that parse users' bytes now: of workers that carry out a unit."""
    busy = units(nodes)
    return [
        child
        for worker in busy
        for child in worker.children()
        if "workers.sandbox.child_process" in title(child)
    ]


KILLED: dict[str, Callable[[Nodes], list[psutil.Process]]] = {
    "worker": units,
    "child": children_of_units,
    "encoder": lambda nodes: processes(nodes, "ray::EncoderProcess"),
}


@pytest.mark.ray
def test_killing_any_process_changes_nothing(
    nodes: Nodes, ground: Ground, tmp_path: Path, start: Callable[..., Driver]
) -> None:
    write_rows(ground, 9000)
    undisturbed = Ground(LocalStore(tmp_path / "other"), ground.folder, RAW)
    request = undisturbed.request(
        "raw.jsonl",
        dataset="ds-1",
        encoders={"image": PLACES, "text": WORDS},
        evaluation_share=0.2,
    )
    expected = stored(undisturbed, undisturbed.prepare(request))
    driver = start()
    ask_raw(ground, "ds-1", evaluation_share=0.2)
    for find in KILLED.values():
        wait_until(lambda: find(nodes) or is_done(ground))  # noqa: B023 - called in this round
        for process in find(nodes)[:1]:
            process.kill()
        time.sleep(0.3)
    assert not is_done(ground), "the kills came too late"
    driver.process.kill()
    driver.process.wait()
    start()
    assert stored(ground, driver.manifest("ds-1")) == expected


@pytest.mark.ray
def test_no_more_units_are_in_work_than_the_memory_of_their_node_permits(
    nodes: Nodes, ground: Ground, start: Callable[..., Driver]
) -> None:
    """Units wait for their encoder without a CPU, so CPUs do not bound them."""
    write_rows(ground, 3000)
    start(file_memory=psutil.virtual_memory().total)
    slow = {**PLACES, "kind": "tests.fakes.encoders:SlowEncoder", "max_batch": 512}
    ground.request("raw.jsonl", dataset="ds-1", encoders={"image": slow, "text": WORDS})
    at_once = []
    while not is_done(ground):
        at_once.append(len(processes(nodes, "ray::_results")))
        time.sleep(0.1)
    assert max(at_once) == 1


@pytest.mark.ray
def test_a_single_unit_shows_the_rows_that_it_has_encoded(
    ground: Ground, start: Callable[..., Driver]
) -> None:
    write_rows(ground, 160)
    slow = {**PLACES, "kind": "tests.fakes.encoders:SlowEncoder"}
    driver = start()
    ground.request("raw.jsonl", dataset="ds-1", encoders={"image": slow, "text": WORDS})
    shown: list[PrepareProgress] = []
    while not is_done(ground):
        found = driver.progress("ds-1")
        if found is not None and found not in shown:
            shown.append(found)
        time.sleep(0.1)
    between = [each for each in shown if 0 < each.rows_done < 160]
    assert len({each.rows_done for each in between}) > 3
    assert [each.rows_done for each in between] == sorted(each.rows_done for each in between)
    for each in between:
        assert (each.phase, each.rows_total) == ("encoding", 160)
        assert each.rows_per_second
        assert each.eta_seconds


def is_done(ground: Ground) -> bool:
    return read_dataset_manifest(ground.store, "ds-1") is not None


@pytest.mark.ray
def test_a_request_that_disappears_ends_its_tasks(
    nodes: Nodes, ground: Ground, start: Callable[..., Driver]
) -> None:
    write_rows(ground, 20_000)
    driver = start()
    ask_raw(ground, "ds-1")
    wait_until(lambda: (found := driver.progress("ds-1")) and found.rows_done > 0)
    ground.store.delete(layout.preparation_request("ds-1"))
    began = time.monotonic()
    wait_until(lambda: not KILLED["worker"](nodes))
    assert time.monotonic() - began < min(60, SECONDS)
    assert not is_done(ground)
    assert driver.end() == 0


@pytest.mark.ray
def test_a_driver_ends_when_its_supervisor_has_died(nodes: Nodes, ground: Ground) -> None:
    """Like a job of Ray whose head was killed: the supervisor that started it has ended."""
    driver = f"{sys.executable} -m workers.driver --store {ground.store.uri}"
    supervisor = nodes.start_driver(["sh", "-c", f"{driver} & wait"], "supervised")
    children = psutil.Process(supervisor.pid).children
    wait_until(children)
    (child,) = children()
    spec = ModelSpec.model_validate({"width": 8, "modalities": STREAM.modalities})
    chosen = STREAM.datasets[0]
    ground.request(
        dataset="ds-1",
        spec=spec,
        pair=chosen.pair,
        shards=tuple(chosen.shards),
        evaluation_shards=tuple(chosen.evaluation_shards),
        allowed_prefixes=(EXAMPLE_STREAM.as_uri(),),
    )
    wait_until(lambda: read_dataset_manifest(ground.store, "ds-1"))
    supervisor.kill()
    supervisor.wait()
    child.wait(SECONDS)
