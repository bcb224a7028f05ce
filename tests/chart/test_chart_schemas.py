"""Every object of every set of values is valid by the schema of its kind."""

import pytest

from tests.chart.operators import complaints_of_operators
from tests.chart.release import Release, each_release
from tests.chart.schemas import CRDS, complaints_of_kuberay, complaints_of_kubernetes

OF_KUBERAY = {"RayCluster", "RayService"}
OF_OPERATORS = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "HTTPRoute"}
# An object of the site.
OF_OTHERS = OF_OPERATORS | {"ExternalSecret"}

needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(), reason="KubeRay's CRDs are not part of this repository"
)


@each_release()
def test_every_field_is_in_the_schema_of_kubernetes(release: Release) -> None:
    items = [
        item for item in release.objects.values() if item["kind"] not in OF_KUBERAY | OF_OTHERS
    ]
    assert {"Deployment", "Service", "ConfigMap", "NetworkPolicy"} <= {
        item["kind"] for item in items
    }
    assert [words for item in items for words in complaints_of_kubernetes(item)] == []


@each_release()
@needs_crds
def test_kuberay_knows_every_field(release: Release) -> None:
    items = release.of_kind(*OF_KUBERAY)
    assert items
    assert [words for item in items for words in complaints_of_kuberay(item)] == []


def test_prometheus_and_the_gateway_know_every_field(releases: dict[str, Release]) -> None:
    found = [item for release in releases.values() for item in release.of_kind(*OF_OPERATORS)]
    assert {item["kind"] for item in found} == OF_OPERATORS
    assert [words for item in found for words in complaints_of_operators(item)] == []


@each_release()
def test_every_object_has_the_owner_label(release: Release) -> None:
    for path, item in release.objects.items():
        if not path.startswith("extra-objects"):
            labels = item["metadata"]["labels"]
            assert labels["app.kubernetes.io/instance"] == "demo"
            assert labels["app.kubernetes.io/component"]


@each_release()
def test_no_two_objects_have_one_name(release: Release) -> None:
    names = [(item["kind"], item["metadata"]["name"]) for item in release.objects.values()]
    assert len(names) == len(set(names))
