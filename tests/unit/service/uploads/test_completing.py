"""Completing an upload: errors are reported, crashes are recovered, and every wait is bounded."""

import hashlib
from dataclasses import replace

import pytest

from cmcl.contract.errors import StorageUnavailable
from service.api.dependencies import IdempotencyKey
from service.api.idempotency import respond_long
from service.database.rows import ResponseRecord
from service.datasets import upload_completion
from service.maintenance.gc import GarbageCollector
from service.principal import LOCAL
from service.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crashes import Crash, CrashingDatabase, CrashingStore, FaultAtMoment
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
        attempt = upload_completion.uploads.find(connection, upload)
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

    def complete_and_die() -> ResponseRecord:
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
