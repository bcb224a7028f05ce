"""A file is identified by its bytes, independently of its name and the number of uploads."""

from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import Connection

from cmcl.contract.api.jobs import JobState
from service.core.principal import EVERY_SCOPE, LOCAL, Principal
from service.database.queries import datasets
from service.datasets.intake import contents_of
from tests.fakes.control_plane import ControlPlane
from tests.fakes.uploads import upload_whole
from tests.unit.service.uploads.test_sending import parquet


def _post(plane: ControlPlane, *uris: str, **more: Any) -> tuple[int, str]:
    """Status and job."""
    body = plane.dataset_body("one", shards=[{"uri": uri} for uri in uris], **more)
    response = plane.client.post("/v1/datasets", json=body)
    return response.status_code, response.json()["job"]["id"]


def test_a_file_that_was_sent_twice_is_learned_once(plane: ControlPlane) -> None:
    first, again, other = (upload_whole(plane, parquet(name)) for name in ("a", "a", "b"))
    status, job = _post(plane, first)
    assert status == 202
    assert _post(plane, again) == (200, job)
    plane.run_to_end(job)
    assert _post(plane, again) == (200, job)
    assert _post(plane, again, other)[0] == 202


def test_a_file_is_not_trained_on_and_held_out(plane: ControlPlane) -> None:
    first, again = (upload_whole(plane, parquet()) for _ in range(2))
    body = plane.dataset_body("one", shards=[{"uri": first}], evaluation_shards=[{"uri": again}])
    response = plane.client.post("/v1/datasets", json=body)
    assert response.status_code == 422
    (problem,) = response.json()["errors"]
    assert problem["field"] == "evaluation_shards[0].uri"
    assert first in problem["message"]


def _open(plane: ControlPlane, *uris: str) -> str:
    """An open dataset with these shards, as any release may have left it."""
    body = plane.dataset_body("one", shards=[{"uri": uri} for uri in uris[:1]], sealed=False)
    dataset: str = plane.client.post("/v1/datasets", json=body).json()["dataset"]["id"]
    request = {**body, "shards": [{"uri": uri} for uri in uris]}
    with plane.context.database.write() as connection:
        datasets.set_request(connection, dataset, request)
    return f"/v1/datasets/{dataset}"


def test_only_what_is_added_is_judged(plane: ControlPlane) -> None:
    """An open dataset may have equal files from a time when addresses alone were compared."""
    first, again, third, other = (upload_whole(plane, parquet(name)) for name in "aaab")
    path = _open(plane, first, again)
    refused = plane.client.post(f"{path}/shards", json={"shards": [{"uri": other}, {"uri": third}]})
    assert refused.status_code == 422
    (problem,) = refused.json()["errors"]
    assert (problem["field"], problem["value"]) == ("shards[1].uri", third)
    added = plane.client.post(f"{path}/shards", json={"shards": [{"uri": other}]})
    assert added.status_code == 200
    assert plane.client.post(f"{path}/seal").status_code == 202


def test_what_is_posted_is_looked_up_once(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, looks = upload_whole(plane, parquet()), list[object]()

    def look(connection: Connection, uris: Iterable[str], principal: Principal) -> dict[str, str]:
        looks.append(None)
        return contents_of(connection, uris, principal)

    monkeypatch.setattr("service.datasets.intake.contents_of", look)
    assert _post(plane, uri)[0] == 202
    assert len(looks) == 1


def test_a_file_whose_job_was_cancelled_can_be_sent_and_learned(plane: ControlPlane) -> None:
    first, again = (upload_whole(plane, parquet()) for _ in range(2))
    _, given_up = _post(plane, first)
    plane.client.post(f"/v1/jobs/{given_up}/cancel")
    status, job = _post(plane, again)
    assert (status, job != given_up) == (202, True)
    assert plane.run_to_end(job).state == JobState.PUBLISHED


def test_a_failed_job_is_not_retried_beside_its_twin(plane: ControlPlane) -> None:
    bad = upload_whole(plane, b"no Parquet")
    _, failed = _post(plane, bad)
    plane.tick_to(failed, JobState.FAILED)
    again = upload_whole(plane, b"no Parquet")
    assert _post(plane, again)[0] == 202
    response = plane.client.post(f"/v1/jobs/{failed}/retry")
    assert response.status_code == 409
    assert "since been posted again" in response.json()["detail"]


def test_uploads_of_other_owners_are_not_revealed(plane: ControlPlane) -> None:
    uri = upload_whole(plane, parquet())
    with plane.context.database.read() as connection:
        assert set(contents_of(connection, [uri], LOCAL)) == {uri}
        stranger = Principal("stranger", "somebody", EVERY_SCOPE)
        assert contents_of(connection, [uri], stranger) == {}
