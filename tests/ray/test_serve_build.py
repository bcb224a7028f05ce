"""The application as a RayService builds it, from a mapping of arguments; nothing is started."""

import pytest
from pydantic import ValidationError
from ray import serve

from workers.serve.app import build
from workers.serve.settings import ServeSettings


def test_arguments_of_a_ray_service_become_an_application() -> None:
    application = build({"store": "s3://bucket/cmcl", "replicas": 3})
    assert isinstance(application, serve.Application)


def test_replica_limits_apply_before_those_of_ray_and_every_wait_is_bounded() -> None:
    """Requests that Ray queues have no deadline and no quota (its replica.py, `_start_request`)."""
    application = build(ServeSettings(store="s3://bucket/cmcl", max_requests_in_flight=300))
    deployment = application._bound_deployment
    assert deployment.max_ongoing_requests >= 2 * 300
    assert 300 <= deployment.max_queued_requests <= 1000
    refusal = deployment.backpressure_config
    assert (refusal.status_code, refusal.retry_after_s) == (429, 1)


def test_a_replica_that_goes_has_the_time_that_its_requests_have() -> None:
    settings = ServeSettings(store="s3://bucket/cmcl", body_seconds=40, queue_seconds=50)
    application = build(settings)
    assert application._bound_deployment._deployment_config.graceful_shutdown_timeout_s >= 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "store"),
        ({"store": "file:///tmp/x", "replica": 2}, "replica"),
        ({"store": "file:///tmp/x", "replicas": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_arguments_are_refused_before_deploying(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        build(arguments)


def test_other_arguments_are_another_application() -> None:
    one = ServeSettings(store="s3://bucket/cmcl")
    assert one.identity == ServeSettings(store="s3://bucket/cmcl").identity
    assert one.identity != ServeSettings(store="s3://bucket/cmcl", replicas=2).identity
