"""Where the serving cluster keeps its state: in the head's memory, or where replicas outlive their head.

KubeRay's own schema is asked about it in test_chart_schemas, with the production set.
"""

import pytest

from tests.chart.release import Object, Release, render

ADDRESS = "redis.example.org:6379"


def _cluster(release: Release) -> Object:
    spec: Object = release.one("RayService", "demo-cmcl-serving")["spec"]["rayClusterConfig"]
    return spec


def test_state_is_in_the_memory_of_the_head_by_default(trial: Release) -> None:
    assert "gcsFaultToleranceOptions" not in _cluster(trial)


def test_state_goes_to_a_redis_whose_password_is_in_a_secret(production: Release) -> None:
    assert _cluster(production)["gcsFaultToleranceOptions"] == {
        "redisAddress": "rediss://redis.example.org:6379",
        "redisPassword": {
            "valueFrom": {"secretKeyRef": {"name": "cmcl-redis", "key": "redis-password"}}
        },
    }


@pytest.mark.parametrize("secret", ["", "x"])
def test_a_redis_without_a_password_gets_none(secret: str) -> None:
    options = {"redisAddress": ADDRESS, "redisSecret": secret, "redisSecretKey": "k"}
    found = _cluster(render({"serving": {"gcsFaultTolerance": options}}))
    assert ("redisPassword" in found["gcsFaultToleranceOptions"]) is bool(secret)


def test_the_cluster_that_trains_has_none(production: Release) -> None:
    """Ray recommends it for Serve only; an attempt resumes from its checkpoint anyway."""
    training = production.one("RayCluster", "demo-cmcl-training")["spec"]
    assert "gcsFaultToleranceOptions" not in training
