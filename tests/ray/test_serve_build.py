"""The application as a RayService builds it, from a mapping of arguments; nothing is started."""

import pytest
from pydantic import ValidationError
from ray import serve

from workers.serve.app import build
from workers.serve.settings import ServeArgs


def test_arguments_of_a_ray_service_become_an_application() -> None:
    application = build({"store": "s3://bucket/cmcl", "replicas": 3})
    assert isinstance(application, serve.Application)


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
    one = ServeArgs(store="s3://bucket/cmcl")
    assert one.identity == ServeArgs(store="s3://bucket/cmcl").identity
    assert one.identity != ServeArgs(store="s3://bucket/cmcl", replicas=2).identity
