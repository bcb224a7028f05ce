"""Direct uploads: from the client to the bucket, and judged once they are there."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from cmcl.storage.uris import open_store
from service.database.tables import responses
from tests.fakes.control_plane import ControlPlane
from tests.fakes.s3_server import s3_server, use_bucket
from tests.fakes.uploads import BYTES, announce, complete

DATA = b"not many bytes"
BUCKET = "direct-uploads"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A bucket that accepts any body, like some S3 implementations."""
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(plane: ControlPlane, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> ControlPlane:
    """The control plane on a bucket."""
    use_bucket(endpoint, BUCKET, monkeypatch)
    plane.context = replace(plane.context, store=open_store(f"s3://{BUCKET}"))
    plane.app.state.context = plane.context
    return plane


def begin(plane: ControlPlane, **headers: str) -> dict[str, Any]:
    body = {
        "filename": "pairs.parquet",
        "bytes": len(DATA),
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "direct": True,
    }
    response = plane.client.post("/v1/uploads", json=body, headers=headers)
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


def put(link: dict[str, Any], data: bytes) -> None:
    headers = dict(link["headers"]) | {"content-length": str(len(data))}
    assert httpx.put(str(link["url"]), content=data, headers=headers).status_code == 200


def test_a_direct_upload_is_completed_from_the_bucket(bucket: ControlPlane) -> None:
    upload = begin(bucket)
    put(upload["presigned"], DATA)
    done = complete(bucket, str(upload["id"]))
    assert (done["state"], done["presigned"]) == ("complete", None)
    assert list(bucket.context.store.keys(f"uploads/{upload['id']}/")) == [
        f"uploads/{upload['id']}/file-1"
    ]


@pytest.mark.parametrize(("data", "field"), [(DATA[:-1], "bytes"), (DATA[::-1], "sha256")])
def test_other_bytes_than_announced_are_refused(
    bucket: ControlPlane, data: bytes, field: str
) -> None:
    upload = begin(bucket)
    path = f"/v1/uploads/{upload['id']}"
    put(upload["presigned"], data)
    response = bucket.client.post(f"{path}/complete")
    assert response.status_code == 409
    assert response.json()["errors"][0]["field"] == field
    put(upload["presigned"], DATA)
    assert bucket.client.post(f"{path}/complete").status_code == 200


def test_nothing_sent_yet_is_reported(bucket: ControlPlane) -> None:
    response = bucket.client.post(f"/v1/uploads/{begin(bucket)['id']}/complete")
    assert (response.status_code, "signed URL" in response.json()["detail"]) == (409, True)


def test_what_is_sent_late_changes_nothing(bucket: ControlPlane) -> None:
    upload = begin(bucket)
    put(upload["presigned"], DATA)
    complete(bucket, str(upload["id"]))
    put(upload["presigned"], DATA[::-1])
    assert bucket.context.store.read(f"uploads/{upload['id']}/file-1") == DATA


def test_a_link_is_signed_for_each_request_and_never_stored(bucket: ControlPlane) -> None:
    first = begin(bucket, **{"Idempotency-Key": "one"})
    bucket.clock.advance(600)
    again = begin(bucket, **{"Idempotency-Key": "one"})
    assert (again["id"], again["presigned"] is not None) == (first["id"], True)
    path = f"/v1/uploads/{first['id']}"
    second = bucket.client.post(f"{path}/presign", headers={"Idempotency-Key": "two"})
    assert second.json()["presigned"]["url"]
    assert bucket.client.get(path).json()["presigned"] is None
    with bucket.context.database.read() as connection:
        kept = connection.scalars(select(responses.c.body)).all()
    assert len(kept) == 2
    assert "X-Amz" not in str(kept)


def test_a_direct_upload_takes_no_parts(bucket: ControlPlane) -> None:
    path = f"/v1/uploads/{begin(bucket)['id']}/parts/1"
    assert bucket.client.put(path, content=DATA, headers=BYTES).status_code == 409


def test_an_upload_in_parts_has_no_link(bucket: ControlPlane) -> None:
    response = bucket.client.post(f"/v1/uploads/{announce(bucket, 3)}/presign")
    assert response.status_code == 409
