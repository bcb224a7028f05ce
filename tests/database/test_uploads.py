"""Uploads and the sweeper, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import delete, insert, select

from cmcl.contract.api.jobs import JobState
from cmcl.storage import layout
from cmcl.storage.versions import write_blob
from service.database.engine import Database
from service.database.queries import instances, maintenance, uploads
from service.database.tables import leases as lease_rows
from service.database.tables import responses
from service.maintenance.gc import GC_TASKS, RARE_GC_TASKS, GarbageCollector
from tests.fakes.control_plane import ControlPlane
from tests.fakes.uploads import announce, send, upload_whole
from tests.unit.service.uploads.test_sending import parquet

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_an_upload_is_learned_and_swept(tmp_path: Path, database_url: str) -> None:
    plane = ControlPlane(tmp_path, database_url=database_url, upload_bytes_per_owner_max=2**30)
    plane.create_model()
    uri = upload_whole(plane, parquet())
    send(plane, announce(plane, 3), b"abc")
    headers = {"Idempotency-Key": "key-1"}
    body = plane.dataset_body("one", shards=[{"uri": uri}], evaluation_share=0.3)
    job = plane.client.post("/v1/datasets", json=body, headers=headers).json()["job"]["id"]
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    branch = {"name": "branch", "version": 1}
    assert plane.client.post("/v1/models/scenes/branch", json=branch).status_code == 201
    plane.tick(3)
    assert plane.client.request("DELETE", "/v1/models/scenes").status_code == 204
    plane.store.put("datasets/ds-000000000000/x", b"x")
    write_blob(plane.store, b"of an attempt that died")
    for days in (0, 2, 98):
        plane.clock.advance(days * 24 * 3600)
        # Each by itself: the sweeper would only log what a database does not take.
        for duty in (*GC_TASKS, *RARE_GC_TASKS):
            duty(plane.context)
    folders = {root: plane.store.folders(root) for root in ("datasets/", "models/", "runs/")}
    dataset = plane.job(job).dataset
    assert folders == {"datasets/": [dataset], "models/": ["branch"], "runs/": []}
    assert plane.store.folders("uploads/") == []
    # The branch names what its source had.
    (version,) = plane.versions("branch")
    named = [layout.blob(sha256) for sha256 in sorted(version.manifest.blobs)]
    assert list(plane.store.keys(layout.blobs())) == named
    plane.close()


def test_one_of_many_gets_the_lease(database: Database) -> None:
    def claim(name: str) -> bool:
        return database.settle(
            lambda connection: instances.claim_lease(
                connection, "gc", name, NOW, NOW + timedelta(minutes=5)
            )
        )

    for _ in range(3):
        with ThreadPoolExecutor(4) as threads:
            assert sum(threads.map(claim, "abcd")) == 1
        with database.write() as connection:
            connection.execute(delete(lease_rows))


def test_one_that_is_named_now_is_not_given_up(tmp_path: Path, database_url: str) -> None:
    """A dataset names it while the sweeper waits to give it up."""
    plane = ControlPlane(tmp_path, database_url=database_url)
    plane.create_model()
    uri = upload_whole(plane, parquet())
    plane.clock.advance(25 * 3600)
    body = plane.dataset_body("one", shards=[{"uri": uri}])
    with ThreadPoolExecutor(1) as threads:
        with plane.context.database.write() as connection:
            # Like the transaction of a POST that is still open.
            uploads.lock_shared(connection, [uri.removeprefix("upload:")])
            sweep = threads.submit(GarbageCollector(plane.context).sweep)
            if connection.dialect.name == "postgresql":
                _name_in_a_dataset(plane, body)
        if connection.dialect.name == "sqlite":
            # SQLite has one writer at a time; here the sweeper came first.
            sweep.result()
            assert plane.client.post("/v1/datasets", json=body).status_code == 422
            plane.close()
            return
        sweep.result()
    (job,) = plane.client.get("/v1/jobs").json()["items"]
    assert plane.run_to_end(job["id"]).state == JobState.PUBLISHED
    plane.close()


def test_old_answers_go_in_batches(database: Database) -> None:
    values = {"owner": "default", "route": "POST /", "fingerprint": "0" * 64, "status": 200}
    with database.write() as connection:
        for number in range(15):
            row = {"key": f"key-{number}", "created_at": NOW - timedelta(minutes=number)}
            connection.execute(insert(responses).values(**values, **row, body={}))
        counted = [maintenance.forget_responses(connection, NOW, 10) for _ in range(3)]
        assert counted == [10, 4, 0]
        # The newest is not older than that moment.
        assert list(connection.scalars(select(responses.c.key))) == ["key-0"]


def _name_in_a_dataset(plane: ControlPlane, body: dict[str, object]) -> None:
    assert plane.client.post("/v1/datasets", json=body).status_code == 202
