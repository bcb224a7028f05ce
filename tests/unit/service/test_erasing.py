"""A row is erased from a dataset: the request, the job, the receipt, and what happens to older versions."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import closing
from pathlib import Path
from typing import Any

import jwt
import pytest

from cmcl.contract.api.access import RECEIPT_TYPE
from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.encoder import WIDEST_FEATURE
from cmcl.storage import layout
from cmcl.storage.versions import read_version
from service.auth.signing import make_pair
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train
from tests.unit.service.test_unlearning import are_stored, delete, learn, names, sweep_for_days

ROW = {"image": [0.1, 2.0, 3.0, 4.0], "text": [1.0, 2.0, 3.0]}


def erase(plane: ControlPlane, dataset: str, features: object = ROW, **more: Any) -> Any:
    body = {"features": features, **more}
    return plane.client.post(f"/v1/datasets/{dataset}/erase", json=body)


def erasable(plane: ControlPlane, *learned: str) -> list[str]:
    plane.create_model("erasable", erasable=True)
    return learn(plane, *learned, model="erasable")


def test_a_row_is_erased_once_and_its_receipt_is_kept(plane: ControlPlane) -> None:
    first, _ = erasable(plane, "one", "two")
    response = erase(plane, first, dict(reversed(ROW.items())))
    job = response.json()
    assert (response.status_code, job["kind"], job["dataset"]) == (202, "erase", first)
    assert response.headers["Location"] == f"/v1/jobs/{job['id']}"
    # Float32 is what was learned: 0.1 and the nearest float32 are the same row.
    near = {**ROW, "image": [0.10000000149011612, 2.0, 3.0, 4.0]}
    again = erase(plane, first, near)
    assert (again.status_code, again.json()["id"]) == (200, job["id"])
    # Sides in the order of the pair, whatever the order in which they were posted.
    asked = plane.tick_to(job["id"], JobState.RUNNING).erases
    assert asked is not None
    assert (asked.first[1:], asked.second) == ((2.0, 3.0, 4.0), (1.0, 2.0, 3.0))
    found = plane.run_to_end(job["id"])
    assert (found.state, found.version) == (JobState.PUBLISHED, 3)
    # The features are forgotten, and the digest is not.
    assert found.erases is not None
    assert (found.erases.first, found.erases.second) == ((), ())
    version = plane.client.get("/v1/models/erasable/versions/3").json()
    assert (version["kind"], version["dataset"], version["dataset_name"]) == ("erase", None, "one")
    assert names(plane, "erasable") == ["one", "two"]
    (receipt,) = version["lineage"][0]["erased"]
    assert (receipt["row"], receipt["job"]) == (found.erases.row, job["id"])
    assert receipt["requested_by"]
    assert "signature" not in receipt
    assert receipt["before"] != receipt["after"]
    # A repeat is answered as before, another row is not, and the dataset stays.
    again = erase(plane, first)
    assert (again.status_code, again.json()["id"]) == (200, job["id"])
    other = erase(plane, first, {**ROW, "text": [3.0, 2.0, 1.0]})
    assert other.status_code == 202
    assert other.json()["id"] != job["id"]
    assert plane.client.get(f"/v1/datasets/{first}").status_code == 200


def test_a_failed_job_forgets_the_row_and_another_one_can_erase_it(plane: ControlPlane) -> None:
    (first,) = erasable(plane, "one")
    job = erase(plane, first).json()["id"]
    running = plane.tick_to(job, JobState.RUNNING)
    kept = plane.versions("erasable")[-1].manifest.learned
    train(plane.store, job, running.attempt, changes={"learned": kept})
    found = plane.run_to_end(job)
    assert (found.state, found.reason) == (JobState.FAILED, FailureReason.INVALID_CANDIDATE)
    assert f"erased no row from {first}" in str(found.message)
    assert found.erases is not None
    assert not found.erases.first
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    found = plane.run_to_end(job)
    assert (found.state, found.reason) == (JobState.FAILED, FailureReason.CANNOT_COMBINE)
    assert "erase it again, in a new job" in str(found.message)
    again = erase(plane, first)
    assert again.status_code == 202
    assert plane.run_to_end(again.json()["id"]).state == JobState.PUBLISHED


def test_a_receipt_that_the_job_did_not_ask_for_is_refused(plane: ControlPlane) -> None:
    (first,) = erasable(plane, "one")
    plane.run_to_end(erase(plane, first).json()["id"])
    another = {**ROW, "text": [3.0, 2.0, 1.0]}
    for field, value in (
        ("row", "0" * 32),
        ("requested_by", "another"),
        ("before", "0" * 64),
        ("after", "0" * 64),
        ("signature", "forged"),
        ("erased earlier", None),
    ):
        job = erase(plane, first, another).json()["id"]
        running = plane.tick_to(job, JobState.RUNNING)
        (line,) = train(plane.store, job, running.attempt, write=False).learned
        *earlier, receipt = line.erased
        if field == "erased earlier":
            earlier.clear()
        else:
            receipt = receipt.model_copy(update={field: value})
        changed = line.model_copy(update={"erased": (*earlier, receipt)})
        train(plane.store, job, running.attempt, changes={"learned": (changed,)})
        found = plane.run_to_end(job)
        assert (found.state, found.reason) == (JobState.FAILED, FailureReason.INVALID_CANDIDATE)
        assert field in str(found.message)


def test_a_receipt_is_signed_and_a_changed_one_fails_the_check(tmp_path: Path) -> None:
    pair = make_pair()
    with closing(ControlPlane(tmp_path, snapshot_signing_key=pair.private)) as plane:
        (first,) = erasable(plane, "one")
        plane.run_to_end(erase(plane, first).json()["id"])
        learn(plane, "two", model="erasable")

        def checked(signature: str, key: str) -> Any:
            return json.loads(jwt.PyJWS(["EdDSA"]).decode(signature, key, ["EdDSA"]))

        for number in (2, 3):
            version = plane.client.get(f"/v1/models/erasable/versions/{number}").json()
            receipt = version["lineage"][0]["erased"][0]
            (stored,) = read_version(plane.store, "erasable", number).learned[0].erased
            signature = receipt.pop("signature")
            assert stored.signature == signature
            assert checked(signature, pair.public) == {
                **receipt,
                "model": "erasable",
                "dataset": first,
            }
        assert jwt.get_unverified_header(signature)["typ"] == RECEIPT_TYPE
        header, payload, own = signature.split(".")
        changed = urlsafe_b64decode(payload + "==").replace(b'"copies":1', b'"copies":2')
        forged = ".".join([header, urlsafe_b64encode(changed).rstrip(b"=").decode(), own])
        for text, key in ((forged, pair.public), (signature, make_pair().public)):
            with pytest.raises(jwt.InvalidSignatureError):
                checked(text, key)


def test_requests_that_no_row_can_meet_are_refused(plane: ControlPlane) -> None:
    (first,) = erasable(plane, "one")
    (rounded,) = learn(plane, "two")
    for status, dataset, features, words in (
        (404, "ds-000000000000", ROW, "there is no dataset"),
        (409, rounded, ROW, "model 'scenes' is not erasable"),
        (422, first, {"image": ROW["image"], "audio": [1.0]}, "has rows of image and text"),
        (422, first, {**ROW, "text": [1.0, 2.0]}, "features of 'text' are 3 numbers"),
        (422, first, {**ROW, "text": [1.0, 2.0, 1e39]}, "in the range of float32"),
        (422, first, {"image": ROW["image"]}, ""),
    ):
        response = erase(plane, dataset, features)
        assert response.status_code == status, response.text
        assert words in response.text
    assert erase(plane, first, model="scenes").status_code == 409
    plane.create_model("trained", policy="preserve")
    (trained,) = learn(plane, "three", model="trained")
    assert "learns by preserve" in erase(plane, trained).json()["detail"]
    body = {"name": "no", "width": 8, "modalities": {"a": 4, "b": 3}}
    response = plane.client.post(
        "/v1/models", json={**body, "policy": "preserve", "erasable": True}
    )
    assert response.status_code == 422
    assert "needs the policy improve" in response.text


def test_a_row_of_the_widest_features_fits_into_a_request(plane: ControlPlane) -> None:
    (first,) = erasable(plane, "one")
    widest = [-1.2345678901234567e-05] * WIDEST_FEATURE
    response = erase(plane, first, {"image": widest, "text": widest})
    assert response.status_code == 422
    assert "features of 'image' are 4 numbers" in response.text


def test_retired_versions_that_had_the_row_lose_their_files(plane: ControlPlane) -> None:
    erasable(plane, "one")
    (second,) = learn(plane, "two", model="erasable")
    sums = plane.versions("erasable")[-1].manifest.learned[-1].moments
    assert plane.run_to_end(erase(plane, second).json()["id"]).version == 3
    learn(plane, "three", model="erasable")
    for number in (1, 2, 3):
        assert delete(plane, f"/v1/models/erasable/versions/{number}").status_code == 204
    plane.tick(3)
    sweep_for_days(plane)
    stored = {
        number: are_stored(plane, read_version(plane.store, "erasable", number).files.values())
        for number in (1, 2, 3)
    }
    # Versions 1 and 3 do not have it, and drift is measured against its heads.
    assert stored == {1: {True}, 2: {False}, 3: {True}}
    assert are_stored(plane, [sums]) == {False}
    assert any(plane.store.keys(layout.dataset_prefix(second)))
