"""Changes that recreate pods: those that KubeRay does not detect, and those of a Secret."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chart.release import BUCKET, Object, Release, render, values_of

TOLERATIONS = [{"key": "pool", "operator": "Exists"}]
AUTOSCALED = {"enabled": True, "minPods": 1, "maxPods": 4}


def _clusters(release: Release) -> dict[str, Object]:
    """The spec of every Ray cluster, by the kind of its owner."""
    return {
        item["kind"]: item["spec"].get("rayClusterConfig", item["spec"])
        for item in release.of_kind("RayCluster", "RayService")
    }


def _as_kuberay_compares(cluster: Object) -> Object:
    """KubeRay 1.7, GenerateHashWithoutReplicasAndWorkersToDelete: what it leaves out of the hash."""
    cluster = copy.deepcopy(cluster)
    for group in cluster["workerGroupSpecs"]:
        for name in ("replicas", "minReplicas", "maxReplicas"):
            del group[name]
    for template in _templates(cluster):
        template["spec"].pop("tolerations", None)
    return cluster


def _templates(cluster: Object) -> Iterator[Object]:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def _recreated(before: Release, after: Release) -> set[str]:
    """The kinds whose pods KubeRay recreates when the second release replaces the first."""
    old, new = _clusters(before), _clusters(after)
    return {
        kind
        for kind, cluster in new.items()
        if _as_kuberay_compares(cluster) != _as_kuberay_compares(old[kind])
    }


@pytest.mark.parametrize(
    ("changes", "recreated"),
    [
        ({"serving": {"replicas": 2}}, {"RayService"}),
        ({"serving": {"workers": {"pod": {"tolerations": TOLERATIONS}}}}, {"RayService"}),
        ({"training": {"head": {"pod": {"tolerations": TOLERATIONS}}}}, {"RayCluster"}),
        ({"secretsRevision": "2"}, {"RayCluster", "RayService"}),
        # KubeRay itself scales a standalone cluster.
        ({"training": {"ranks": 4}}, set()),
        ({"training": {"autoscaling": AUTOSCALED | {"enabled": False}}}, set()),
        ({"service": {"maxAttempts": 5}}, set()),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_new_pods_come_for_what_kuberay_would_not_see(changes: Object, recreated: set[str]) -> None:
    assert _recreated(render(BUCKET), render(BUCKET | changes)) == recreated


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ranks": 2}, {"ranks": 4}),
        ({"autoscaling": AUTOSCALED}, {"autoscaling": AUTOSCALED | {"maxPods": 6}}),
        ({"autoscaling": AUTOSCALED}, {"autoscaling": AUTOSCALED | {"minPods": 2}}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_ranks_inside_a_rayservice_are_counted_as_well(before: Object, after: Object) -> None:
    one, two = (
        render(values_of("one-cluster") | {"training": {"ranksPerPod": 2, **training}})
        for training in (before, after)
    )
    assert _recreated(one, two) == {"RayService"}


def test_the_same_values_make_the_same_pods(releases: dict[str, Release]) -> None:
    recreated = {name: _recreated(each, render(values_of(name))) for name, each in releases.items()}
    assert {name: kinds for name, kinds in recreated.items() if kinds} == {}


def test_another_revision_of_the_secrets_restarts_all_that_stays() -> None:
    def marks(values: dict[str, Any]) -> dict[str, Any]:
        pods = render(values).pod_templates()
        found = {where: each["metadata"].get("annotations", {}) for where, each in pods.items()}
        return {where: each.get("cmcl/secrets") for where, each in found.items()}

    assert {*marks({}).values()} == {None}
    changed = marks({"secretsRevision": "2026-11-27"})
    stays = {where for where in changed if where.startswith(("Deployment", "Ray"))}
    assert len(stays) == 6
    assert {changed[where] for where in stays} == {"2026-11-27"}
