"""The control plane opens no file of a user: these are read on the cluster only."""

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.errors import StorageUnavailable
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import open_store
from tests.fakes.preparer import prepare_all, write_manifest
from tests.unit.service.preparation.conftest import Unattended

_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_note)


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Paths of the files that this process opens."""
    global _opened  # noqa: PLW0603
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The object storage of users. It accepts connections and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "us-east-1")
        yield server


def test_no_bucket_of_a_user_is_called_from_the_post_to_the_version(
    tmp_path: Path, bucket: socket.socket
) -> None:
    plane = Unattended(tmp_path, allowed_prefixes=("s3://captures/",))
    shards = [{"uri": f"s3://captures/{name}.parquet"} for name in "ab"]
    job = plane.post_dataset(shards=shards, evaluation_shards=[{"uri": "s3://captures/c.parquet"}])
    request = plane.request_of(job)
    stored = [
        Shard(uri=ref.uri, sha256="0" * 64, bytes=100 << 20, rows=50_000) for ref in request.shards
    ]
    manifest = DatasetManifest(
        dataset=request.dataset,
        model=request.model,
        name=request.name,
        pair=request.pair,
        shards=tuple(stored),
        evaluation_shards=(),
    )
    write_manifest(plane.store, manifest)
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert plane.client.get(f"/v1/datasets/{request.dataset}").json()["rows"] == 100_000
    rejected = plane.client.get(f"/v1/datasets/{request.dataset}/rejected-rows")
    assert rejected.status_code == 200
    plane.tick(3)
    plane.close()
    bucket.settimeout(0.1)
    with pytest.raises(TimeoutError):
        bucket.accept()
    # The store of workers would call it.
    workers = open_store("s3://captures")
    reading = threading.Thread(target=size_of_a, args=(workers,), daemon=True)
    reading.start()
    bucket.settimeout(30)
    bucket.accept()[0].close()


def size_of_a(store: ObjectStore) -> None:
    with contextlib.suppress(StorageUnavailable):
        store.size("a.parquet")


def test_no_file_of_a_user_is_opened_from_the_post_to_the_version(tmp_path: Path) -> None:
    plane = Unattended(tmp_path)
    bodies = [
        plane.dataset_body("learned", evaluation_shards=[plane.shard("held")]),
        plane.dataset_body("tried", dry_run=True),
    ]
    with opened_files() as opened:
        jobs = [plane.client.post("/v1/datasets", json=body).json()["job"]["id"] for body in bodies]
        for job in jobs:
            plane.request_of(job)
    found = [path for path in opened if "shards/" in path or path.endswith(".parquet")]
    prepare_all(plane.store)
    with opened_files() as opened:
        for job, state in zip(jobs, (JobState.PUBLISHED, JobState.REPORTED), strict=True):
            assert plane.run_to_end(job).state == state
            dataset = plane.job(job).dataset
            for path in (dataset, f"{dataset}/rejected-rows"):
                assert plane.client.get(f"/v1/datasets/{path}").status_code == 200
    assert opened, "the hook sees nothing"
    found += [path for path in opened if "shards/" in path or path.endswith(".parquet")]
    assert found == []
    plane.close()
