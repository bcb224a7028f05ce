"""Additions of sites: variables, volumes, placement, mirrors, further objects."""

from typing import Any

import helm_python
import pytest

from tests.chart.release import Release, environment_of, render, values_of
from tests.chart.schemas import complaints_of_kubernetes

SECRET = {"secretKeyRef": {"name": "ours", "key": "token"}}
VOLUME = {"name": "authorities", "configMap": {"name": "ours"}}
ONCE = ("test", "uninstall")
MOUNT = {"name": "authorities", "mountPath": "/etc/ours", "readOnly": True}


@pytest.mark.parametrize("part", ["service", "training", "serving"])
def test_variables_and_volumes_reach_all_pods_of_their_part(part: str) -> None:
    extras = {
        "extraEnv": {"PLAIN": "1", "SECRET": SECRET},
        "extraVolumes": [VOLUME],
        "extraVolumeMounts": [MOUNT],
    }
    release = render({part: extras})
    seen = 0
    for template in release.pod_templates().values():
        spec = template["spec"]
        (container,) = spec["containers"]
        has_it = MOUNT in container["volumeMounts"]
        assert has_it is (VOLUME in spec["volumes"])
        assert has_it is (
            {"PLAIN": "1", "SECRET": SECRET}.items() <= environment_of(container).items()
        )
        belongs = template["metadata"]["labels"]["app.kubernetes.io/component"] == part
        assert has_it is belongs
        seen += has_it
    assert seen == {"service": 1, "training": 3, "serving": 2}[part]


@pytest.mark.parametrize(
    ("path", "component"),
    [
        (("service",), "service"),
        (("training", "head"), "training"),
        (("training", "workers"), "training"),
        (("serving", "head"), "serving"),
        (("serving", "workers"), "serving"),
    ],
)
def test_each_group_has_its_node_labels_and_priority(path: tuple[str, ...], component: str) -> None:
    term = {"weight": 1, "podAffinityTerm": {"topologyKey": "zone"}}
    place: dict[str, object] = {
        "nodeSelector": {"pool": "a"},
        "tolerations": [{"key": "pool", "operator": "Exists"}],
        "affinity": {
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}
        },
        "priorityClassName": "urgent",
        "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]},
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["db.example.org"]}],
    }
    values: dict[str, object] = {"pod": place}
    for key in reversed(path):
        values = {key: values}
    pods = render(values).pod_templates().values()
    placed = [
        template["metadata"]["labels"]["app.kubernetes.io/component"]
        for template in pods
        if place.items() <= template["spec"].items()
    ]
    # What runs once has no place of its own.
    assert sorted(placed) == sorted([component, *(ONCE if component == "service" else [])])


@pytest.mark.parametrize(
    ("path", "pods"),
    [
        (("service",), {"service", "migration", "rebuild", *ONCE}),
        (("training", "head"), {"training"}),
        (("training", "workers"), {"training"}),
        (("preparation", "workers"), {"training"}),
        (("serving", "head"), {"serving"}),
        (("serving", "workers"), {"serving"}),
        (("serving", "encoderWorkers"), {"serving"}),
    ],
)
def test_what_sites_write_on_pods_is_added(
    path: tuple[str, ...], pods: set[str], production: Release
) -> None:
    added: dict[str, Any] = {
        "labels": {"example.org/team": "vision"},
        "annotations": {"example.org/mesh": "off"},
        "runtimeClassName": "gvisor",
    }
    values = values_of("production")
    inner = values
    for key in path:
        inner = inner.setdefault(key, {})
    inner["pod"] = inner.get("pod", {}) | added
    before = production.pod_templates()
    changed = set()
    for where, template in render(values).pod_templates().items():
        labels, old = template["metadata"]["labels"], before[where]["metadata"]
        assert old["labels"].items() <= labels.items(), "selectors still find it"
        annotations = template["metadata"].get("annotations", {})
        assert set(old.get("annotations", {})) <= set(annotations)
        if template["spec"].get("runtimeClassName") == "gvisor":
            assert labels["example.org/team"] == "vision"
            assert annotations["example.org/mesh"] == "off"
            changed.add(labels["app.kubernetes.io/component"])
        else:
            assert "example.org/team" not in labels
            assert "example.org/mesh" not in annotations
    assert changed == pods


def test_labels_of_the_site_are_on_every_object_and_select_nothing() -> None:
    values = values_of("production") | {"commonLabels": {"team": "vision"}}
    values["service"]["pod"] = {"labels": {"team": "pods"}}
    for path, item in render(values).objects.items():
        if "tests/smoke.yaml" in path:
            assert item["metadata"]["labels"]["team"] == "pods"
        elif not path.startswith("extra-objects"):
            assert item["metadata"]["labels"]["team"] == "vision", path
        assert "'team'" not in str(item.get("spec", {}).get("selector", "")), path


def test_another_name_is_on_every_object_and_selects_the_control_plane() -> None:
    release = render({"fullnameOverride": "spaces"})
    names = {item["metadata"]["name"].partition("-")[0] for item in release.objects.values()}
    assert names == {"spaces"}
    deployment = release.one("Deployment", "spaces")["spec"]
    service = release.one("Service", "spaces")["spec"]
    pod = deployment["template"]["metadata"]["labels"]
    for selector in (deployment["selector"]["matchLabels"], service["selector"]):
        assert selector.items() <= pod.items()


def test_what_sites_write_reaches_the_pods_of_rayjobs() -> None:
    values = values_of("queued")
    values["training"]["workers"]["pod"] |= {"annotations": {"a": "b"}, "labels": {"c": "d"}}
    pods = helm_python.values_from_yaml(
        render(values).one("ConfigMap", "demo-cmcl-pods")["data"]["pods.yaml"]
    )
    assert pods["workers"]["metadata"]["annotations"]["a"] == "b"
    assert pods["workers"]["metadata"]["labels"]["c"] == "d"
    assert "a" not in pods["head"]["metadata"]["annotations"]


def test_a_mirror_and_digests_reach_every_image(locked_down: Release) -> None:
    images = {
        template["spec"]["containers"][0]["image"]
        for template in locked_down.pod_templates().values()
    }
    digest = f"sha256:{'0' * 63}"
    assert images == {
        f"mirror.example.org/approved/cmcl-service@{digest}1",
        f"mirror.example.org/approved/cmcl-worker@{digest}2",
    }
    for template in locked_down.pod_templates().values():
        assert template["spec"]["imagePullSecrets"] == [{"name": "mirror"}]


def test_objects_of_the_site_may_hold_templates(locked_down: Release) -> None:
    (secret,) = locked_down.of_kind("ExternalSecret")
    (data,) = secret["spec"]["data"]
    assert data["remoteRef"]["key"] == "cmcl/demo"
    # It makes a Secret that the chart reads, though not the one that is needed before Helm makes anything.
    name = secret["spec"]["target"]["name"]
    assert locked_down.settings()["CMCL_SNAPSHOT_SIGNING_KEY"]["secretKeyRef"]["name"] == name


def test_containers_of_a_site_run_before_and_beside_the_service() -> None:
    proxy = {"name": "beside", "image": "{{ .Release.Name }}/proxy:1", "restartPolicy": "Always"}
    values = {"initContainers": [proxy, {"name": "wait", "image": "busybox"}]}
    deployment = render({"service": values}).one("Deployment", "demo-cmcl")
    assert complaints_of_kubernetes(deployment) == []
    spec = deployment["spec"]["template"]["spec"]
    rendered = proxy | {"image": "demo/proxy:1"}
    assert spec["initContainers"][:-1] == [rendered, values["initContainers"][1]]
