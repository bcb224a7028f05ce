"""Several replicas of the control plane: number, placement, rollout."""

import helm_python
import pytest

from tests.chart.release import BUCKET, Object, Release, render, values_of

POSTGRES = BUCKET | {"database": {"existingSecret": "x"}}


def _deployment(release: Release) -> Object:
    spec: Object = release.one("Deployment", "demo-cmcl")["spec"]
    return spec


def test_an_update_never_takes_an_answering_replica_first(gpu: Release) -> None:
    assert _deployment(gpu)["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    pod = _deployment(gpu)["template"]["spec"]
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    # Ten seconds are uvicorn's, for answers that are under way.
    assert pod["terminationGracePeriodSeconds"] > sleep + 10


def test_a_budget_is_made_where_there_are_several(
    trial: Release, one_cluster: Release, gpu: Release, production: Release
) -> None:
    def budgets(release: Release) -> list[str]:
        return [item["metadata"]["name"] for item in release.of_kind("PodDisruptionBudget")]

    assert budgets(trial) == []
    assert "demo-cmcl" not in budgets(one_cluster), "which has one replica"
    for release in (gpu, production):
        budget = release.one("PodDisruptionBudget", "demo-cmcl")["spec"]
        assert budget["selector"]["matchLabels"] == _deployment(release)["selector"]["matchLabels"]
        assert budget["maxUnavailable"] == 1


def test_an_autoscaler_alone_decides_about_replicas(production: Release) -> None:
    assert "replicas" not in _deployment(production)
    scaler = production.one("HorizontalPodAutoscaler", "demo-cmcl")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "demo-cmcl"
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 6)
    assert "cpu" in production.container("service")["resources"]["requests"]
    (metric,) = scaler["metrics"]
    assert metric["resource"]["name"] == "cpu"
    assert scaler["behavior"] == {"scaleDown": {"stabilizationWindowSeconds": 600}}


def test_metrics_of_users_replace_that_of_the_cpu() -> None:
    metric = {
        "type": "Pods",
        "pods": {"metric": {"name": "cmcl_service_http_requests_in_progress"}},
    }
    values = {"service": {"autoscaling": {"maxReplicas": 6, "metrics": [metric]}}}
    scaler = render(POSTGRES | values).one("HorizontalPodAutoscaler", "demo-cmcl")["spec"]
    assert scaler["metrics"] == [metric]


def test_fields_of_the_deployment_can_be_set(production: Release) -> None:
    assert _deployment(production)["revisionHistoryLimit"] == 3
    assert _deployment(production)["strategy"]["type"] == "RollingUpdate"
    recreated = {"service": {"deployment": {"strategy": {"type": "Recreate"}}}}
    assert _deployment(render(POSTGRES | recreated))["strategy"] == {"type": "Recreate"}
    assert _deployment(render(recreated))["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"service": {"autoscaling": {"maxReplicas": 6}}}, "SQLite permits one replica"),
        (
            {"service": {"deployment": {"strategy": {"type": "RollingUpdate"}}}},
            "the strategy must be Recreate",
        ),
        (
            POSTGRES | {"service": {"autoscaling": {"minReplicas": 5, "maxReplicas": 4}}},
            r"minReplicas is 5; it must be at most maxReplicas, which is 4",
        ),
    ],
)
def test_what_could_not_work_is_refused(values: Object, complaint: str) -> None:
    with pytest.raises(helm_python.HelmRenderError, match=complaint):
        render(values)


def test_replicas_prefer_other_zones_and_nodes(gpu: Release, locked_down: Release) -> None:
    constraints = _deployment(gpu)["template"]["spec"]["topologySpreadConstraints"]
    assert {item["whenUnsatisfiable"] for item in constraints} == {"ScheduleAnyway"}
    labels = _deployment(gpu)["template"]["metadata"]["labels"]
    for item in constraints:
        selected = item["labelSelector"]["matchLabels"]
        assert selected.items() <= labels.items()
        assert selected["app.kubernetes.io/component"] == "service"
    assert len(constraints) == 2
    chosen = values_of("locked-down")["service"]["pod"]["topologySpreadConstraints"]
    assert _deployment(locked_down)["template"]["spec"]["topologySpreadConstraints"] == chosen
