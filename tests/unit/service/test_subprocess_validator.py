"""Validation in a child process: a crash there does not reach this process, and nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmcl.contract.dataset import DatasetManifest, ShardRef
from cmcl.contract.errors import InvalidDataset, StorageUnavailable
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from service.app import Parts, create_app
from service.datasets.subprocess_validator import SubprocessValidator, share_of_memory
from service.datasets.verify import CancelToken, ValidationTask
from service.jobs.reconciler import Reconciler
from service.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from workers.storage.local import LocalStore

SPEC = ModelSpec.model_validate(
    {"width": 8, "modalities": {"image": 4, "text": 3}, "training": {"batch_size": 8}}
)
PATIENT = SubprocessValidator(seconds=60, memory=512 << 20)


class Ground:
    """A store, a permitted folder, and files in it."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalStore(folder / "store")
        self.shards = folder / "shards"
        self.shards.mkdir()

    def task(self, *uris: str) -> ValidationTask:
        return ValidationTask(
            dataset="ds-0123456789ab",
            model="scenes",
            name="one",
            pair=ModalityPair(first="image", second="text"),
            shards=tuple(ShardRef(uri=uri) for uri in uris),
            spec=SPEC,
            allowed=(self.shards.resolve().as_uri(), "s3://silent"),
        )

    def shard(self, name: str = "a") -> str:
        return write_shard(self.shards / f"{name}.parquet", feature_table(16, prefix=name)).uri

    def validate(
        self, task: ValidationTask, validator: SubprocessValidator = PATIENT
    ) -> DatasetManifest:
        return validator.validate(self.store, task, CancelToken())


class SilentBucket:
    """Accepts connections and never answers: a read hangs until the connection ends."""

    address = "s3://silent/pairs.parquet"

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.connections: list[socket.socket] = []

    def wait_for_reader(self, parent: int | None = None) -> int:
        """The process that has begun to read from it."""
        self.connections.append(self._server.accept()[0])
        (found,) = children(parent)
        return found


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentBucket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        port = server.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.setenv(f"AWS_{name}", "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        bucket = SilentBucket(server)
        yield bucket
        for connection in bucket.connections:
            connection.close()


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    yield Ground(tmp_path)
    assert list(scratch.iterdir()) == []


def children(parent: int | None = None) -> list[int]:
    """Processes that validate, and whose parent is this one, or the one named."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, status = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:
            continue
        is_ours = int(status.rpartition(")")[2].split()[1]) == (parent or os.getpid())
        if is_ours and b"service.datasets.subprocess_validator" in words:
            found.append(int(folder.name))
    return found


def is_alive(process: int) -> bool:
    """Neither gone nor a zombie of its new parent."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def wait_for_child() -> int:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := children():
            return found[0]
        time.sleep(0.01)
    raise AssertionError("no process was started")


class Read(threading.Thread):
    """A validation in a thread, as the service has them."""

    def __init__(self, ground: Ground, task: ValidationTask) -> None:
        super().__init__(daemon=True)
        self.cancel_token = CancelToken()
        self.error: Exception | None = None
        self._work = ground, task
        self.start()

    def run(self) -> None:
        ground, task = self._work
        try:
            PATIENT.validate(ground.store, task, self.cancel_token)
        except Exception as error:  # noqa: BLE001
            self.error = error

    def ended(self) -> Exception | None:
        self.join(120)
        assert not self.is_alive()
        return self.error


def test_a_good_dataset_is_verified_and_written(ground: Ground) -> None:
    manifest = ground.validate(ground.task(ground.shard()))
    assert manifest.rows == 16
    written = ground.store.read("datasets/ds-0123456789ab/manifest.json")
    assert DatasetManifest.model_validate_json(written) == manifest


def test_a_bad_file_is_refused_with_the_same_message(ground: Ground) -> None:
    path = ground.shards / "bad.parquet"
    path.write_bytes(b"nothing of ours")
    with pytest.raises(InvalidDataset, match=r"bad\.parquet: by its first bytes it is neither"):
        ground.validate(ground.task(path.resolve().as_uri()))


def test_a_file_that_crashes_its_reader_twice_is_refused(
    ground: Ground, silent: SilentBucket
) -> None:
    read = Read(ground, ground.task(ground.shard(), silent.address))
    for _ in range(2):
        os.kill(silent.wait_for_reader(), signal.SIGSEGV)
    error = read.ended()
    assert isinstance(error, InvalidDataset)
    assert str(error).startswith(f"reading {silent.address} ended with SIGSEGV, twice")
    assert children() == []


def test_a_single_crash_is_forgiven(ground: Ground) -> None:
    read = Read(ground, ground.task(ground.shard()))
    os.kill(wait_for_child(), signal.SIGKILL)
    assert read.ended() is None


def test_a_validation_past_its_deadline_is_killed(ground: Ground, silent: SilentBucket) -> None:
    task = ground.task(ground.shard(), silent.address)
    with pytest.raises(InvalidDataset, match=r"^reading .*did not finish within 1 s"):
        ground.validate(task, SubprocessValidator(seconds=1, memory=512 << 20))
    assert children() == []


def test_a_file_that_needs_more_memory_than_permitted_is_refused(ground: Ground) -> None:
    narrow = SubprocessValidator(seconds=60, memory=16 << 20)
    with pytest.raises(InvalidDataset, match=r"(16 MiB of memory|ended with SIG\w+), twice"):
        ground.validate(ground.task(ground.shard()), narrow)


def test_cancelling_kills_the_process(ground: Ground, silent: SilentBucket) -> None:
    read = Read(ground, ground.task(silent.address))
    silent.wait_for_reader()
    read.cancel_token.cancel()
    assert isinstance(read.ended(), StorageUnavailable)
    assert children() == []


def test_a_validation_that_was_cancelled_before_it_began_ends_at_once(ground: Ground) -> None:
    cancelled = CancelToken()
    cancelled.cancel()
    with pytest.raises(StorageUnavailable, match="was cancelled"):
        PATIENT.validate(ground.store, ground.task(ground.shard()), cancelled)


def test_the_process_ends_with_the_one_that_started_it(
    ground: Ground, silent: SilentBucket
) -> None:
    task = ground.task(silent.address)
    program = (
        "import sys; from service.datasets.subprocess_validator import SubprocessValidator\n"
        "from service.datasets.verify import CancelToken, ValidationTask\n"
        "from workers.storage.uris import open_store\n"
        "task = ValidationTask.model_validate_json(sys.argv[2])\n"
        "SubprocessValidator(60, 512 << 20).validate(open_store(sys.argv[1]), task, CancelToken())"
    )
    words = [sys.executable, "-c", program, ground.store.uri, task.model_dump_json()]
    with subprocess.Popen(words, env={**os.environ, "TMPDIR": str(ground.store.root)}) as service:
        child = silent.wait_for_reader(service.pid)
        service.kill()
    deadline = time.monotonic() + 120
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(child)


def test_files_of_users_are_read_without_the_keys_of_the_service(
    ground: Ground, silent: SilentBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMCL_ADMIN_KEY", "k" * 40)
    read = Read(ground, ground.task(silent.address))
    environment = Path(f"/proc/{silent.wait_for_reader()}/environ").read_bytes()
    read.cancel_token.cancel()
    read.ended()
    assert b"AWS_ENDPOINT_URL=" in environment
    assert b"CMCL_ADMIN_KEY" not in environment


def test_the_process_loads_neither_server_nor_database() -> None:
    program = "import json, sys, service.datasets.subprocess_validator; print(json.dumps(list(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    heavy = {"fastapi", "sqlalchemy", "boto3", "torch", "httpx", "service.settings"}
    assert heavy.isdisjoint(json.loads(answer.stdout))


def test_the_service_validates_in_a_child_process_by_default(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model()
    job = plane.post_dataset()
    app = create_app(plane.context.settings, Parts(launcher=plane.launcher))
    pause = threading.Event()
    reconciler, deadline = Reconciler(app.state.context), time.monotonic() + 120
    seen = []
    while plane.job(job).state != JobState.SUBMITTING and time.monotonic() < deadline:
        reconciler.tick()
        seen += children()
        pause.wait(0.05)
    assert plane.job(job).state == JobState.SUBMITTING
    assert len(set(seen)) == 1
    app.state.context.close()
    plane.close()


def test_a_share_of_memory_is_bounded_on_both_sides() -> None:
    assert 512 << 20 <= share_of_memory() <= 8192 << 20
