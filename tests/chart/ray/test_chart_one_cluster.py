"""One Ray cluster for training and serving, for small sites."""

import helm_python
import pytest

from tests.chart.release import Object, Release, environment_of, render, values_of
from workers.train.settings import TrainSettings


def _cluster(release: Release) -> Object:
    spec: Object = release.one("RayService", "demo-cmcl-serving")["spec"]["rayClusterConfig"]
    return spec


def test_it_is_that_of_the_rayservice(one_cluster: Release) -> None:
    assert one_cluster.of_kind("RayCluster") == []
    assert list(one_cluster.groups()) == ["replicas", "ranks", "preparation"]


def test_jobs_are_submitted_to_its_head_with_its_token(one_cluster: Release) -> None:
    assert one_cluster.settings()["CMCL_RAY_ADDRESS"] == "http://demo-cmcl-serving-head-svc:8265"
    assert _cluster(one_cluster)["authOptions"] == {"mode": "token", "secretName": "cmcl-ray"}
    token = environment_of(one_cluster.container("service"))["RAY_AUTH_TOKEN"]
    assert token == {"secretKeyRef": {"name": "cmcl-ray", "key": "auth_token"}}


def test_a_token_without_a_secret_name_is_rejected() -> None:
    with pytest.raises(helm_python.HelmRenderError, match=r"ray\.authSecret is empty"):
        render({"ray": {"oneCluster": True}})


def test_drivers_and_ranks_have_the_settings_of_training(one_cluster: Release) -> None:
    cluster = _cluster(one_cluster)
    known = {f"CMCL_{field.upper()}" for field in TrainSettings.model_fields}
    for group in (cluster["headGroupSpec"], one_cluster.groups()["ranks"]):
        (container,) = group["template"]["spec"]["containers"]
        assert known <= environment_of(container).keys()


def test_ranks_without_a_proxy_are_kept_out_of_the_service(one_cluster: Release) -> None:
    """KubeRay puts every worker of a RayService behind it that is ready."""
    (container,) = one_cluster.groups()["ranks"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": 8000}
    assert container["livenessProbe"]["httpGet"]["port"] == 52365


def test_its_ranks_can_come_from_none_as_well() -> None:
    values = values_of("one-cluster")
    values["training"]["autoscaling"] = {"enabled": True}
    release = render(values)
    assert _cluster(release)["enableInTreeAutoscaling"] is True
    assert release.groups()["ranks"]["replicas"] == 0
    head = _cluster(release)["headGroupSpec"]["template"]["spec"]
    assert "kubernetes-token" in [volume["name"] for volume in head["volumes"]]
