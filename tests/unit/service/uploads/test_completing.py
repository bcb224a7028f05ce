"""Completing an upload: errors are reported, crashes are recovered, and every wait is bounded."""

import asyncio
import hashlib
import threading
from dataclasses import replace

import httpx
import pytest

from cmcl.contract.errors import StorageUnavailable
from service.api.dependencies import IdempotencyKey
from service.api.idempotency import respond_long
from service.api.uploads import COMPLETED_AT_ONCE
from service.core.principal import LOCAL
from service.core.states import JobState
from service.database.queries import uploads
from service.database.rows import ResponseRow
from service.datasets import upload_completion
from service.maintenance.gc import GarbageCollector
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crashes import Crash, CrashingDatabase, CrashingStore, FaultAtMoment
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.uploads import MIB, announce, complete, pattern, send, stored_keys
from tests.unit.service.uploads.test_sending import parquet


def refused(plane: ControlPlane, upload: str) -> tuple[str, str]:
    """Field and message of the refusal."""
    response = plane.client.post(f"/v1/uploads/{upload}/complete")
    assert response.status_code == 409, response.text
    (problem,) = response.json()["errors"]
    return problem["field"], problem["message"]


def test_missing_parts_are_named(plane: ControlPlane) -> None:
    upload = announce(plane, 9)
    send(plane, upload, 2, b"abc")
    send(plane, upload, 4, b"abc")
    assert refused(plane, upload) == ("parts", "missing: part 1, 3")


def test_too_few_bytes_are_refused(plane: ControlPlane) -> None:
    upload = announce(plane, 9)
    assert refused(plane, upload)[0] == "bytes"
    send(plane, upload, 1, b"abc")
    assert "3 bytes; the upload was created with 9" in refused(plane, upload)[1]


def test_small_parts_come_last(plane: ControlPlane) -> None:
    upload = announce(plane, 6)
    send(plane, upload, 1, b"abc")
    send(plane, upload, 2, b"def")
    field, message = refused(plane, upload)
    assert field == "parts"
    assert message.endswith("smaller: part 1")


def test_another_file_than_announced_is_refused(plane: ControlPlane) -> None:
    upload = announce(plane, 3, sha256="0" * 64)
    send(plane, upload, 1, b"abc")
    assert refused(plane, upload)[0] == "sha256"
    seen = plane.client.get(f"/v1/uploads/{upload}").json()
    assert (seen["state"], len(seen["parts"])) == ("open", 1)
    assert len(stored_keys(plane, upload)) == 1


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_a_part_that_the_store_spoiled_is_sent_again(plane: ControlPlane, damage: str) -> None:
    data = pattern(5 * MIB + 3)
    upload = announce(plane, len(data))
    send(plane, upload, 1, data[: 5 * MIB])
    send(plane, upload, 2, data[5 * MIB :])
    (key,) = plane.store.keys(f"uploads/{upload}/parts/2-")
    if damage == "lost":
        plane.store.delete(key)
    else:
        plane.store.put(key, b"xyz")
    assert refused(plane, upload) == ("parts", f"{damage} in object storage, send again: part 2")
    assert [part["number"] for part in _parts(plane, upload)] == [1]
    send(plane, upload, 2, data[5 * MIB :])
    complete(plane, upload)


def test_an_outage_gives_the_upload_back(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    send(plane, upload, 1, b"abc")
    plane.store.broken = "file-"
    assert plane.client.post(f"/v1/uploads/{upload}/complete").status_code == 503
    plane.store.broken = None
    assert complete(plane, upload)["state"] == "complete"


def test_a_concurrent_completion_is_rejected(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    send(plane, upload, 1, b"abc")
    _die_while_completing(plane, upload, dies_at=4)
    path = f"/v1/uploads/{upload}"
    assert plane.client.get(path).json()["state"] == "completing"
    again = plane.client.post(f"{path}/complete")
    assert (again.status_code, "being completed" in again.json()["detail"]) == (409, True)
    part = plane.client.put(
        f"{path}/parts/1", content=b"xyz", headers={"Content-Type": "application/octet-stream"}
    )
    assert part.status_code == 409


# Claim, write the file, say so, remove a part; a test below counts them.
MOMENTS = 10


@pytest.mark.parametrize("dies_at", range(1, MOMENTS + 1))
def test_a_death_at_any_moment_can_be_followed(plane: ControlPlane, dies_at: int) -> None:
    upload = announce(plane, 3)
    send(plane, upload, 1, b"abc")
    _die_while_completing(plane, upload, dies_at)
    plane.clock.advance(upload_completion.CLAIM.total_seconds() + 1)
    uri = complete(plane, upload)["uri"]
    assert uri == f"upload:{upload}"
    with plane.context.database.read() as connection:
        attempt = uploads.find(connection, upload)
    assert attempt is not None
    assert plane.store.read(f"uploads/{upload}/file-{attempt.attempt}") == b"abc"


def test_every_moment_of_completing_was_tried(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    send(plane, upload, 1, b"abc")
    lifeline = FaultAtMoment()
    _complete_with(plane, upload, lifeline)
    assert lifeline.moments == MOMENTS


def test_a_process_that_was_presumed_dead_changes_nothing(plane: ControlPlane) -> None:
    """The slow one has claimed; while it writes, its claim runs out and another one completes."""
    upload = announce(plane, 3)
    send(plane, upload, 1, b"abc")

    class SlowStore(CrashingStore):
        def compose(self, parts: object, target: str) -> None:
            plane.clock.advance(upload_completion.CLAIM.total_seconds() + 1)
            complete(plane, upload)
            plane.store.put(target, b"late")

    slow = replace(plane.context, store=SlowStore(plane.store, FaultAtMoment()))
    with pytest.raises(StorageUnavailable, match="has 4 bytes"):
        upload_completion.complete(slow, upload, LOCAL)
    seen = plane.client.get(f"/v1/uploads/{upload}").json()
    assert seen["state"] == "complete"
    assert stored_keys(plane, upload) == ["file-2"]
    assert plane.store.read(f"uploads/{upload}/file-2") == b"abc"


def test_a_lost_response_is_repeated_on_every_retry(plane: ControlPlane) -> None:
    """After a crash behind the work, and after a dataset was learned from the file; key or no key."""
    data = parquet()
    upload = announce(plane, len(data))
    send(plane, upload, 1, data)
    path, headers = f"/v1/uploads/{upload}/complete", {"Idempotency-Key": "key-1"}
    key = IdempotencyKey("*", "key-1", f"POST {path}", hashlib.sha256().hexdigest())

    def complete_and_die() -> ResponseRow:
        upload_completion.complete(plane.context, upload, LOCAL)
        raise Crash

    with pytest.raises(Crash):
        respond_long(plane.context, key, complete_and_die)
    first = plane.client.post(path, headers=headers)
    assert (first.status_code, first.json()["state"]) == (200, "complete")
    shards = [{"uri": first.json()["uri"]}]
    job = plane.post_dataset("one", shards=shards)
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    GarbageCollector(plane.context).sweep()
    for again in (plane.client.post(path, headers=headers), plane.client.post(path)):
        assert (again.status_code, again.json()) == (200, first.json())


def _die_while_completing(plane: ControlPlane, upload: str, dies_at: int) -> None:
    with pytest.raises(Crash):
        _complete_with(plane, upload, FaultAtMoment(dies_at))


def _complete_with(plane: ControlPlane, upload: str, lifeline: FaultAtMoment) -> None:
    mortal = replace(
        plane.context,
        database=CrashingDatabase(plane.context.database, lifeline),
        store=CrashingStore(plane.store, lifeline),
    )
    upload_completion.complete(mortal, upload, LOCAL)


def _parts(plane: ControlPlane, upload: str) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = plane.client.get(f"/v1/uploads/{upload}").json()["parts"]
    return parts


class SlowStore(FlakyStore):
    """Nothing is composed before `go`; `inside` of the calls wait, `most` ever did at a time."""

    def __init__(self, store: FlakyStore) -> None:
        super().__init__(store)
        self.go = threading.Event()
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def compose(self, parts: object, target: str) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.go.wait(60)
        with self._lock:
            self.inside -= 1
        super().compose(parts, target)  # type: ignore[arg-type]


async def complete_all(
    plane: ControlPlane, uploads: list[str], slow: SlowStore
) -> list[httpx.Response]:
    """All of them at once, with a request to another route in between."""
    transport = httpx.ASGITransport(plane.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        completing = [
            asyncio.create_task(client.post(f"/v1/uploads/{upload}/complete")) for upload in uploads
        ]
        async with asyncio.timeout(60):
            while slow.inside < COMPLETED_AT_ONCE:
                await asyncio.sleep(0.01)
        for upload in uploads:
            assert (await client.get(f"/v1/uploads/{upload}")).status_code == 200
        slow.go.set()
        return await asyncio.gather(*completing)


def test_completing_uses_a_bounded_number_of_threads(plane: ControlPlane) -> None:
    uploads = [announce(plane, 3) for _ in range(50)]
    for upload in uploads:
        send(plane, upload, 1, b"abc")
    slow = SlowStore(plane.store)
    plane.app.state.context = replace(plane.context, store=slow)
    answers = asyncio.run(complete_all(plane, uploads, slow))
    assert [answer.status_code for answer in answers] == [200] * len(uploads)
    assert slow.most == COMPLETED_AT_ONCE
