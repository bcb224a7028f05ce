"""Announcing a file and sending its parts."""

import base64
import hashlib
import io

import pyarrow.parquet as pq
import pytest

from service.core.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table
from tests.fakes.uploads import (
    BYTES,
    MIB,
    announce,
    complete,
    digest_header,
    pattern,
    send,
    stored_keys,
    upload_whole,
)


def parquet(prefix: str = "up") -> bytes:
    buffer = io.BytesIO()
    pq.write_table(feature_table(16, prefix=prefix), buffer)
    return buffer.getvalue()


def test_a_file_in_parts_arrives_as_it_was(plane: ControlPlane) -> None:
    data = pattern(11 * MIB + 7)
    upload = announce(plane, len(data), sha256=hashlib.sha256(data).hexdigest())
    # In any order, and again.
    send(plane, upload, 3, data[10 * MIB :])
    send(plane, upload, 1, data[: 5 * MIB])
    answer = send(plane, upload, 2, data[5 * MIB : 10 * MIB])
    assert answer == {
        "number": 2,
        "bytes": 5 * MIB,
        "sha256": hashlib.sha256(data[5 * MIB : 10 * MIB]).hexdigest(),
    }
    assert send(plane, upload, 2, data[5 * MIB : 10 * MIB]) == answer
    seen = plane.client.get(f"/v1/uploads/{upload}").json()
    assert ([part["number"] for part in seen["parts"]], seen["uri"]) == ([1, 2, 3], None)
    done = complete(plane, upload)
    assert (done["state"], done["uri"]) == ("complete", f"upload:{upload}")
    assert stored_keys(plane, upload) == ["file-1"]
    assert b"".join(plane.store.stream(f"uploads/{upload}/file-1")) == data


def test_completing_again_is_the_same_answer(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    send(plane, upload, 1, b"abc")
    first = complete(plane, upload)
    assert complete(plane, upload) == first
    assert first["sha256"] == hashlib.sha256(b"abc").hexdigest()


def test_a_part_sent_again_replaces_the_first(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    send(plane, upload, 1, b"xyz")
    send(plane, upload, 1, b"abc")
    assert len(stored_keys(plane, upload)) == 1
    complete(plane, upload)
    assert plane.store.read(f"uploads/{upload}/file-1") == b"abc"


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
        ({"direct": True}, "sha256"),
        ({"direct": True, "sha256": "0" * 64}, "direct"),
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
    path = f"/v1/uploads/{upload}/parts/1"
    for headers in ({}, {"Content-Type": "application/json"}):
        response = plane.client.put(path, content=b"abc", headers=headers)
        assert response.status_code == 415
        assert "application/octet-stream" in response.json()["detail"]


@pytest.mark.parametrize("number", ["0", "10001", "x", "-1"])
def test_parts_have_numbers_from_1_to_10000(plane: ControlPlane, number: str) -> None:
    path = f"/v1/uploads/{announce(plane, 3)}/parts/{number}"
    response = plane.client.put(path, content=b"abc", headers=BYTES)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "number")


def test_an_empty_part_is_refused(plane: ControlPlane) -> None:
    path = f"/v1/uploads/{announce(plane, 3)}/parts/1"
    assert plane.client.put(path, content=b"", headers=BYTES).status_code == 422


@pytest.mark.parametrize(
    "header", ["sha-256=:AAAA:", "sha-256=abc", "sha-256=:!:", f"sha-256=:{'A' * 43}=:"]
)
def test_a_part_with_another_digest_leaves_nothing(plane: ControlPlane, header: str) -> None:
    upload = announce(plane, 3)
    response = plane.client.put(
        f"/v1/uploads/{upload}/parts/1", content=b"abc", headers=BYTES | {"Content-Digest": header}
    )
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "Content-Digest")
    assert stored_keys(plane, upload) == []


def test_other_digests_are_passed_over(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    digest = base64.b64encode(hashlib.sha512(b"xyz").digest()).decode()
    both = f"sha-512=:{digest}:, {digest_header(b'abc')['Content-Digest']}"
    response = plane.client.put(
        f"/v1/uploads/{upload}/parts/1", content=b"abc", headers=BYTES | {"Content-Digest": both}
    )
    assert response.status_code == 200


def test_more_bytes_than_announced_are_refused(plane: ControlPlane) -> None:
    upload = announce(plane, 5)
    send(plane, upload, 1, b"abc")
    path = f"/v1/uploads/{upload}/parts/2"
    response = plane.client.put(path, content=b"def", headers=BYTES)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (409, "bytes")
    assert len(stored_keys(plane, upload)) == 1


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
    send(plane, upload, 1, b"abc")
    assert plane.client.request("DELETE", f"/v1/uploads/{upload}").status_code == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/complete")):
        response = plane.client.request(method, f"/v1/uploads/{upload}{path}")
        assert response.status_code == 404


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
    response = plane.client.put(f"/v1/uploads/{upload}/parts/1", content=b"abc", headers=BYTES)
    assert response.status_code == 404
    assert "24 hours" in response.json()["detail"]
