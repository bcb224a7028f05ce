"""Types of responses, which servers and clients share."""

import pytest
from pydantic import ValidationError

from cmcl.contract.api.access import ApiKey
from cmcl.contract.api.jobs import Job, JobState
from tests.fakes.responses import body, response


def test_a_server_sends_no_field_that_a_response_does_not_have() -> None:
    key = ApiKey.model_validate(body(ApiKey, secret_sha256="0" * 64))
    assert "secret" not in f"{key!r} {key.model_dump()} {key.model_dump_json()}"


def test_a_client_keeps_and_writes_fields_of_a_newer_service() -> None:
    job = response(Job, mood="good", progress={"phase": "x", "depth": 3, "at": "2026-11-24"})
    assert job.model_dump(mode="json")["progress"]["depth"] == 3
    assert '"mood":"good"' in job.model_dump_json()


def test_a_state_of_a_newer_service_is_text() -> None:
    assert response(Job, state="running").state is JobState.RUNNING
    job = response(Job, state="resting")
    assert (job.state, job.has_ended) == ("resting", False)
    with pytest.raises(ValidationError):
        response(Job, state=5)
