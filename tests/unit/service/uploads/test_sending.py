"""Announcing a file and sending it."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator

import pyarrow.parquet as pq
import pytest

from cmcl.contract.api.jobs import JobState
from service.datasets.uploads import resolve
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table
from tests.fakes.uploads import BYTES, MIB, announce, pattern, send, stored_keys, upload_whole


def parquet(prefix: str = "up") -> bytes:
    buffer = io.BytesIO()
    pq.write_table(feature_table(16, prefix=prefix), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("is_promised", [True, False])
def test_a_file_arrives_as_it_was(plane: ControlPlane, *, is_promised: bool) -> None:
    data = pattern(3 * MIB + 7)
    sha256 = hashlib.sha256(data).hexdigest()
    upload = announce(plane, len(data), **({"sha256": sha256} if is_promised else {}))
    seen = plane.client.get(f"/v1/uploads/{upload}").json()
    assert (seen["state"], seen["uri"]) == ("open", None)
    done = send(plane, upload, data)
    assert (done["state"], done["uri"], done["sha256"]) == ("complete", f"upload:{upload}", sha256)
    assert plane.client.get(f"/v1/uploads/{upload}").json() == done
    (key,) = stored_keys(plane, upload)
    assert plane.store.read(key) == data


def test_a_file_that_has_arrived_is_not_replaced(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    send(plane, upload, b"abc")
    response = plane.client.put(f"/v1/uploads/{upload}/file", content=b"xyz", headers=BYTES)
    assert response.status_code == 409
    (key,) = stored_keys(plane, upload)
    assert plane.store.read(key) == b"abc"


@pytest.mark.parametrize("later", [b"abc", b"xyz"])
def test_of_two_requests_the_first_that_ends_has_sent_the_file(
    plane: ControlPlane, later: bytes
) -> None:
    """A request whose client gave up may still be under way."""
    upload = announce(plane, 3)
    path = f"/v1/uploads/{upload}/file"

    async def body() -> AsyncIterator[bytes]:
        yield later[:1]
        await asyncio.to_thread(send, plane, upload, b"abc")
        yield later[1:]

    response = plane.client.put(path, content=body(), headers=BYTES)
    assert response.status_code == (200 if later == b"abc" else 409)
    uri = f"upload:{upload}"
    assert plane.store.read(resolve(plane.context, uri).partition(plane.store.uri)[2][1:]) == b"abc"


@pytest.mark.parametrize(
    ("data", "field"), [(b"ab", "bytes"), (b"abcd", "bytes"), (b"xyz", "sha256"), (b"", "bytes")]
)
def test_another_file_than_announced_leaves_nothing(
    plane: ControlPlane, data: bytes, field: str
) -> None:
    upload = announce(plane, 3, sha256=hashlib.sha256(b"abc").hexdigest())
    response = plane.client.put(f"/v1/uploads/{upload}/file", content=data, headers=BYTES)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (409, field)
    assert stored_keys(plane, upload) == []
    assert send(plane, upload, b"abc")["state"] == "complete"


def test_an_outage_of_the_store_leaves_the_upload_open(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    plane.store.broken = "uploads/"
    response = plane.client.put(f"/v1/uploads/{upload}/file", content=b"abc", headers=BYTES)
    assert response.status_code == 503
    plane.store.broken = None
    assert send(plane, upload, b"abc")["state"] == "complete"


def test_a_dataset_learns_from_an_upload(plane: ControlPlane) -> None:
    uri = upload_whole(plane, parquet())
    held_out = upload_whole(plane, parquet("held-out"))
    job = plane.post_dataset(shards=[{"uri": uri}], evaluation_shards=[{"uri": held_out}])
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    dataset = plane.client.get(f"/v1/datasets/{plane.job(job).dataset}").json()
    assert dataset["shards"] == [{"uri": uri, "sha256": None, "name": "pairs.parquet"}]
    assert dataset["manifest"]["shards"][0]["uri"].startswith(f"{plane.store.uri}/uploads/")


def test_bad_rows_are_named_as_the_user_named_them(plane: ControlPlane) -> None:
    uri = upload_whole(plane, b"no rows at all")
    job = plane.post_dataset(shards=[{"uri": uri}])
    failed = plane.tick_to(job, JobState.FAILED)
    assert failed.message is not None
    assert failed.message.startswith("pairs.parquet: ")
    assert "file://" not in failed.message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"filename": "a/b"}, "filename"),
        ({"filename": "a\\b"}, "filename"),
        ({"filename": ".."}, "filename"),
        ({"filename": " a"}, "filename"),
        ({"filename": ""}, "filename"),
        ({"filename": "a\nb"}, "filename"),
        ({"filename": "a\x00b"}, "filename"),
        ({"filename": "a\u202egnp.exe"}, "filename"),
        ({"filename": "x" * 129}, "filename"),
        ({"bytes": 0}, "bytes"),
        ({"bytes": 2**40}, "bytes"),
        ({"sha256": "abc"}, "sha256"),
        ({"colour": 3}, "colour"),
    ],
)
def test_a_bad_announcement_names_its_field(
    plane: ControlPlane, changes: dict[str, object], field: str
) -> None:
    body = {"filename": "pairs.parquet", "bytes": 3, **changes}
    response = plane.client.post("/v1/uploads", json=body)
    assert response.status_code == 422
    assert [problem["field"] for problem in response.json()["errors"]] == [field]


def test_a_filename_may_be_of_any_language(plane: ControlPlane) -> None:
    upload = announce(plane, 3, filename="Bilder \u00fcber M\u00fcnchen \u5199\u771f 1.parquet")
    seen = plane.client.get(f"/v1/uploads/{upload}").json()
    assert seen["filename"] == "Bilder \u00fcber M\u00fcnchen \u5199\u771f 1.parquet"


def test_bytes_must_be_declared_as_bytes(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    path = f"/v1/uploads/{upload}/file"
    for headers in ({}, {"Content-Type": "application/json"}):
        response = plane.client.put(path, content=b"abc", headers=headers)
        assert response.status_code == 415
        assert "application/octet-stream" in response.json()["detail"]


def test_a_dataset_may_name_only_complete_uploads(plane: ControlPlane) -> None:
    uris = [f"upload:{announce(plane, 3)}", "upload:up-0123456789ab", "upload:../x", "upload:\0"]
    body = plane.dataset_body("one", shards=[{"uri": uri} for uri in uris])
    response = plane.client.post("/v1/datasets", json=body)
    assert response.status_code == 422
    fields = [problem["field"] for problem in response.json()["errors"]]
    assert fields == [f"shards[{index}].uri" for index in range(4)]
    assert "complete it first" in response.json()["errors"][0]["message"]


def test_an_upload_can_be_given_up(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    send(plane, upload, b"abc")
    assert plane.client.request("DELETE", f"/v1/uploads/{upload}").status_code == 204
    for method in ("GET", "DELETE"):
        assert plane.client.request(method, f"/v1/uploads/{upload}").status_code == 404


def test_one_that_a_dataset_needs_is_not_given_up(plane: ControlPlane) -> None:
    uri = upload_whole(plane, parquet())
    path = f"/v1/uploads/{uri.removeprefix('upload:')}"
    job = plane.post_dataset(shards=[{"uri": uri}])
    assert plane.client.request("DELETE", path).status_code == 409
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert plane.client.request("DELETE", path).status_code == 204


def test_an_upload_that_is_not_finished_expires(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    plane.clock.advance(24 * 3600)
    response = plane.client.put(f"/v1/uploads/{upload}/file", content=b"abc", headers=BYTES)
    assert response.status_code == 404
    assert "24 hours" in response.json()["detail"]
