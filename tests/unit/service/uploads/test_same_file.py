"""A file is known by its bytes, however often it is sent and whatever it is called."""

from service.control.data.upload_uris import contents_of
from service.principal import EVERY_SCOPE, LOCAL, Principal
from service.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.uploads import upload_whole
from tests.unit.service.uploads.test_sending import parquet


def _post(plane: ControlPlane, *uris: str, **more: object) -> tuple[int, str]:
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
    assert "posted again meanwhile" in response.json()["detail"]


def test_the_bytes_of_others_tell_nothing(plane: ControlPlane) -> None:
    uri = upload_whole(plane, parquet())
    with plane.context.database.read() as connection:
        assert set(contents_of(connection, [uri], LOCAL)) == {uri}
        stranger = Principal("stranger", "somebody", EVERY_SCOPE)
        assert contents_of(connection, [uri], stranger) == {}
