"""Selectors of KubeRay's Services: KubeRay labels Ray's pods, and selects them by those labels."""

from tests.chart.release import Object, Release, each_release

# ray-operator/controllers/ray/common/service.go (HeadServiceLabels) and pod.go (labelPod), KubeRay 1.6:
# a Service for the head of a RayService has these and no others, whatever the pod's template says.
KUBERAYS = {
    "app.kubernetes.io/name": "kuberay",
    "app.kubernetes.io/created-by": "kuberay-operator",
    "ray.io/node-type": "head",
}


def _labelled(template: Object) -> dict[str, str]:
    """A head's labels as KubeRay makes them: those of the template win, except Ray's own."""
    own: dict[str, str] = template["metadata"]["labels"]
    return {**KUBERAYS, **own, "ray.io/node-type": "head"}


def _heads(release: Release) -> list[Object]:
    items = release.of_kind("RayCluster", "RayService")
    specs = [item["spec"].get("rayClusterConfig", item["spec"]) for item in items]
    return [spec["headGroupSpec"]["template"] for spec in specs]


@each_release()
def test_the_service_of_a_head_finds_it(release: Release) -> None:
    heads = _heads(release)
    assert heads
    for head in heads:
        assert KUBERAYS.items() <= _labelled(head).items()


@each_release()
def test_no_ray_pod_has_a_label_that_is_kuberays(release: Release) -> None:
    for where, template in release.pod_templates().items():
        if where.startswith("Ray"):
            assert not KUBERAYS.keys() & template["metadata"]["labels"].keys()


@each_release()
def test_pods_are_selected_by_labels_that_they_have(release: Release) -> None:
    """Every selector of the chart matches a pod; the pods of a RayJob come later."""
    pods = [template["metadata"]["labels"] for template in release.pod_templates().values()]
    for item in release.of_kind("Service", "PodDisruptionBudget", "Deployment"):
        selector = item["spec"]["selector"]
        labels = dict(selector.get("matchLabels", selector))
        labels.pop("ray.io/group", None)
        assert any(labels.items() <= own.items() for own in pods), item["metadata"]["name"]
    for item in release.of_kind("NetworkPolicy", "PodMonitor"):
        spec = item["spec"]
        labels = spec.get("podSelector", spec.get("selector"))["matchLabels"]
        assert all(labels.items() <= own.items() for own in pods), item["metadata"]["name"]
