"""Preparation on Ray: small datasets start at once, and killing any process loses at most units in work."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PrepareProgress
from cmcl.stack import LocalStack
from cmcl.storage import layout
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.local import LocalStore
from tests.conftest import EXAMPLE_STREAM
from tests.fakes.preparation import Ground
from tests.ray.attempts import SECONDS, STREAM, ended, ray_processes, title, wait_until

pytestmark = pytest.mark.ray

PLACES = {"name": "places", "kind": "synthetic", "takes": "numbers", "width": 4, "max_batch": 8}
WORDS = {"name": "words", "kind": "synthetic", "takes": "text", "width": 512, "max_batch": 8}
SLOW_PLACES = {**PLACES, "kind": "tests.fakes.encoders:SlowEncoder"}
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


def start_driver(stack: LocalStack, ground: Ground, *options: str) -> subprocess.Popen[bytes]:
    """Start a driver of that store on the stack's Ray, which has a driver of its own."""
    program = [sys.executable, "-m", "workers.driver", "--store", ground.store.uri, *options]
    return stack.start_driver(program)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("prepare")
    return Ground(LocalStore(folder / "store"), folder / "theirs", RAW)


@pytest.fixture(scope="module")
def driver(stack: LocalStack, ground: Ground) -> Iterator[subprocess.Popen[bytes]]:
    """The driver of most tests; the last of these kills it."""
    process = start_driver(stack, ground)
    yield process
    process.kill()
    process.wait()


def manifest(ground: Ground, dataset: str) -> DatasetManifest:
    """Wait for the manifest, and return it."""
    wait_until(lambda: read_dataset_manifest(ground.store, dataset))
    found = read_dataset_manifest(ground.store, dataset)
    assert found is not None
    return found


def progress_of(ground: Ground, dataset: str) -> PrepareProgress | None:
    """The progress; None before the first."""
    try:
        text = ground.store.read(layout.preparation_file(dataset, "progress"))
    except ObjectNotFound:
        return None
    return PrepareProgress.model_validate_json(text)


def is_done(ground: Ground, dataset: str) -> bool:
    return read_dataset_manifest(ground.store, dataset) is not None


def write_rows(ground: Ground, rows: int) -> str:
    """Write a file of raw rows, and return its name."""
    lines = [
        json.dumps(
            {"id": f"r{row}", "image": [row, 0.5], "text": f"caption {row} " * (row % 7 + 1)}
        )
        for row in range(rows)
    ]
    name = f"raw-{rows}.jsonl"
    (ground.folder / name).write_text("\n".join(lines) + "\n")
    return name


def ask_raw(
    ground: Ground,
    rows: int,
    dataset: str,
    places: dict[str, Any] = PLACES,
    **fields: Any,
) -> None:
    encoders = {"image": places, "text": WORDS}
    ground.request(write_rows(ground, rows), dataset=dataset, encoders=encoders, **fields)


def ask_features(ground: Ground, dataset: str, number: int) -> None:
    chosen = STREAM.datasets[number]
    ground.request(
        dataset=dataset,
        spec=ModelSpec.model_validate({"width": 8, "modalities": STREAM.modalities}),
        pair=chosen.pair,
        shards=tuple(chosen.shards),
        evaluation_shards=tuple(chosen.evaluation_shards),
        allowed_prefixes=(EXAMPLE_STREAM.as_uri(),),
    )


def stored(ground: Ground, manifest: DatasetManifest) -> dict[str, bytes]:
    shards = (*manifest.shards, *manifest.evaluation_shards)
    uri = f"{ground.store.uri}/"
    return {
        key: ground.store.read(key) for key in (shard.uri.removeprefix(uri) for shard in shards)
    }


@pytest.mark.usefixtures("driver")
def test_a_unit_shows_the_rows_that_it_has_encoded_and_ends_when_its_request_disappears(
    stack: LocalStack, ground: Ground
) -> None:
    ask_raw(ground, 960, "withdrawn", SLOW_PLACES)
    shown: list[PrepareProgress] = []
    while len({each.rows_done for each in shown}) < 4:
        found = progress_of(ground, "withdrawn")
        if found is not None and found.rows_done and found not in shown:
            shown.append(found)
        time.sleep(0.1)
    assert [each.rows_done for each in shown] == sorted(each.rows_done for each in shown)
    for each in shown:
        assert (each.phase, each.rows_total) == ("encoding", 960)
        assert each.rows_done < 960
        assert each.rows_per_second
        assert each.eta_seconds
    ground.store.delete(layout.preparation_request("withdrawn"))
    began = time.monotonic()
    wait_until(lambda: not ray_processes(stack, "ray::_results"))
    assert time.monotonic() - began < min(60, SECONDS)
    assert not is_done(ground, "withdrawn")


def children_of_units(stack: LocalStack) -> list[psutil.Process]:
    """Processes that parse users' bytes now: of workers that carry out a unit."""
    return [
        child
        for worker in ray_processes(stack, "ray::_results")
        for child in worker.children()
        if "workers.sandbox.child_process" in title(child)
    ]


KILLED: dict[str, Callable[[LocalStack], list[psutil.Process]]] = {
    "worker": lambda stack: ray_processes(stack, "ray::_results"),
    "child": children_of_units,
    "encoder": lambda stack: ray_processes(stack, "ray::EncoderProcess"),
}


def test_killing_any_process_changes_nothing_and_an_idle_driver_ends(
    stack: LocalStack, ground: Ground, tmp_path: Path, driver: subprocess.Popen[bytes]
) -> None:
    rows = 6000
    undisturbed = Ground(LocalStore(tmp_path / "other"), ground.folder, RAW)
    request = undisturbed.request(
        write_rows(ground, rows),
        dataset="killed",
        evaluation_share=0.2,
        encoders={"image": PLACES, "text": WORDS},
    )
    expected = stored(undisturbed, undisturbed.prepare(request))
    ask_raw(ground, rows, "killed", evaluation_share=0.2)
    for find in KILLED.values():
        wait_until(lambda: find(stack) or is_done(ground, "killed"))  # noqa: B023 - called in this round
        # The newest: the stack's own driver may have left an encoder.
        for process in sorted(find(stack), key=psutil.Process.create_time)[-1:]:
            process.kill()
        time.sleep(0.3)
    assert not is_done(ground, "killed"), "the kills came too late"
    driver.kill()
    driver.wait()
    following = start_driver(stack, ground, "--idle-seconds", "3")
    assert stored(ground, manifest(ground, "killed")) == expected
    ask_features(ground, "features", 0)
    assert manifest(ground, "features").rows > 0
    assert len(manifest(ground, "features").evaluation_shards) == 1
    for key in list(ground.store.keys(layout.preparations())):
        ground.store.delete(key)
    assert ended(following) == 0


def test_a_driver_bounds_units_by_memory_and_ends_when_its_supervisor_has_died(
    stack: LocalStack, ground: Ground
) -> None:
    """Units wait for their encoder without a CPU, so CPUs do not bound them.

    The supervisor ends like a job of Ray whose head was killed.
    """
    memory = f"CMCL_PREPARE_FILE_MEMORY={psutil.virtual_memory().total}"
    driver = f"{memory} {sys.executable} -m workers.driver --store {ground.store.uri}"
    supervisor = stack.start_driver(["sh", "-c", f"{driver} & wait"])
    children = psutil.Process(supervisor.pid).children
    wait_until(children)
    (child,) = children()
    ask_raw(ground, 3000, "bounded", {**SLOW_PLACES, "max_batch": 512})
    at_once = []
    while not is_done(ground, "bounded"):
        at_once.append(len(ray_processes(stack, "ray::_results")))
        time.sleep(0.1)
    assert max(at_once) == 1
    supervisor.kill()
    supervisor.wait()
    child.wait(SECONDS)
