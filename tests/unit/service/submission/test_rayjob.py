"""RayJobs of KubeRay: what is created, its states, its end, and the teardown of a release."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from service.core.setting_values import PodTemplates
from service.launchers.kuberay import Site, ray_job
from service.launchers.kuberay_teardown import main
from service.launchers.port import Submission
from tests.chart.schemas import CRDS, complaints_of_kuberay
from tests.fakes.kubernetes_api import (
    DEPLOYMENTS,
    PODS,
    RAYS,
    KubernetesApi,
    Refusal,
    kubernetes_api,
)

needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(), reason="KubeRay's CRDs are not part of this repository"
)
SUBMISSION = Submission(
    id="job-0123456789ab-a1",
    command=["python", "-m", "workers.train", "--store", "file:///with a space"],
    labels={"cmcl/model": "scenes", "cmcl/owner": "a@b.org"},
    queue="training",
    priority="high",
    ranks=5,
    min_ranks=3,
    gpus_per_rank=0.5,
)
QUEUED = Site(
    image="registry/worker:1",
    service_account="ranks",
    priority_classes={"high": "urgent"},
    ranks_per_pod=2,
    deadline_seconds=90.5,
    runtime_env={"env_vars": {"NCCL_DEBUG": "WARN"}},
)


def _container(group: Mapping[str, Any]) -> Any:
    (container,) = group["template"]["spec"]["containers"]
    return container


def _group(job: Mapping[str, Any]) -> Any:
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group


@needs_crds
@pytest.mark.parametrize("site", [QUEUED, Site("an-image")], ids=["queued", "plain"])
@pytest.mark.parametrize("submission", [SUBMISSION, Submission("pf-1-a1", ["true"])])
def test_kuberay_knows_every_field(site: Site, submission: Submission) -> None:
    assert complaints_of_kuberay(ray_job(submission, site, "some-uid")) == []


@needs_crds
def test_a_field_that_kuberay_lacks_is_caught() -> None:
    job = ray_job(SUBMISSION, QUEUED)
    job["spec"]["suspended"] = True
    (complaint,) = complaints_of_kuberay(job)
    assert "'suspended' was unexpected" in complaint


def test_the_command_is_one_quoted_line_under_its_id() -> None:
    spec = ray_job(SUBMISSION, QUEUED)["spec"]
    assert spec["jobId"] == SUBMISSION.id
    assert spec["entrypoint"] == "python -m workers.train --store 'file:///with a space'"
    assert spec["runtimeEnvYAML"] == '{"env_vars": {"NCCL_DEBUG": "WARN"}}'
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (91, 60)


def test_nothing_is_repeated_behind_our_back_and_the_cluster_goes() -> None:
    spec = ray_job(SUBMISSION, QUEUED)["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert "enableInTreeAutoscaling" not in spec["rayClusterSpec"]


def test_what_is_queued_waits_for_kueue_with_its_priority() -> None:
    job = ray_job(SUBMISSION, QUEUED)
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"] == {
        "cmcl/model": "scenes",
        "cmcl/owner": "a_b.org",
        "app.kubernetes.io/managed-by": "cmcl",
        "kueue.x-k8s.io/queue-name": "training",
        "kueue.x-k8s.io/priority-class": "urgent",
    }
    # Ray takes any text.
    assert job["spec"]["metadata"]["cmcl/owner"] == "a@b.org"


def test_without_a_queue_it_starts_at_once() -> None:
    job = ray_job(replace(SUBMISSION, queue=""), QUEUED)
    assert job["spec"]["suspend"] is False
    assert not any(name.startswith("kueue") for name in job["metadata"]["labels"])


def test_rayjobs_of_two_releases_are_distinguishable() -> None:
    site = Site("an-image", release="demo")
    assert ray_job(SUBMISSION, site)["metadata"]["labels"]["app.kubernetes.io/instance"] == "demo"
    assert "app.kubernetes.io/instance" not in ray_job(SUBMISSION, QUEUED)["metadata"]["labels"]


def test_a_priority_without_a_class_has_none() -> None:
    low = replace(SUBMISSION, priority="low")
    assert "kueue.x-k8s.io/priority-class" not in ray_job(low, QUEUED)["metadata"]["labels"]


@pytest.mark.parametrize(
    ("ranks", "least", "per_pod", "pods"), [(1, 1, 1, 1), (5, 3, 2, 3), (8, 8, 8, 1), (4, 1, 1, 4)]
)
def test_pods_have_room_for_all_ranks_also_of_an_elastic_attempt(
    ranks: int, least: int, per_pod: int, pods: int
) -> None:
    """KubeRay submits nothing before all of them run: fewer are no start, and promise none."""
    submission = Submission("job-1-a1", ["true"], ranks=ranks, min_ranks=least)
    group = _group(ray_job(submission, Site("an-image", ranks_per_pod=per_pod)))
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (pods, pods, pods)
    assert group["rayStartParams"]["num-cpus"] == str(per_pod)


def test_gpus_of_a_pod_are_those_of_its_ranks() -> None:
    job = ray_job(SUBMISSION, QUEUED)
    assert _container(_group(job))["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert "resources" not in _container(head)
    assert head["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "nvidia.com/gpu.shared", "amd.com/gfx"])
def test_ray_gets_the_gpus_of_any_kubernetes_resource(resource: str) -> None:
    job = ray_job(SUBMISSION, Site("an-image", ranks_per_pod=4, gpu_resource=resource))
    assert _container(_group(job))["resources"] == {"limits": {resource: 2}}
    assert _group(job)["rayStartParams"] == {"num-cpus": "4", "num-gpus": "2"}


def test_a_command_without_ranks_has_the_head_alone() -> None:
    job = ray_job(Submission("pf-1-a1", ["true"]), QUEUED)
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"] == []


def test_the_pod_template_of_a_site_overrides_the_default() -> None:
    container = {
        "name": "ray",
        "env": [{"name": "AWS_ENDPOINT_URL", "value": "https://objects"}],
        "resources": {"requests": {"cpu": "8"}, "limits": {"memory": "64Gi"}},
    }
    workers = {
        "metadata": {"labels": {"team": "vision"}},
        "spec": {"nodeSelector": {"gpu": "h100"}, "containers": [container, {"name": "proxy"}]},
    }
    before = copy.deepcopy(workers)
    site = Site("an-image", pods=PodTemplates(workers=workers))
    template = _group(ray_job(SUBMISSION, site))["template"]
    ray, proxy = template["spec"]["containers"]
    assert ray["image"] == "an-image"
    assert ray["resources"] == {
        "requests": {"cpu": "8"},
        "limits": {"nvidia.com/gpu": 1, "memory": "64Gi"},
    }
    assert ray["env"] == container["env"]
    assert proxy == {"name": "proxy"}
    assert template["metadata"] == {"labels": {"team": "vision"}}
    assert template["spec"]["nodeSelector"] == {"gpu": "h100"}
    assert template["spec"]["serviceAccountName"] == "default"
    assert workers == before


def test_a_list_without_names_replaces_the_default() -> None:
    head = {"spec": {"tolerations": [{"key": "a"}], "containers": [{"name": "ray", "args": ["x"]}]}}
    site = Site("an-image", pods=PodTemplates(head=head))
    template = ray_job(SUBMISSION, site)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert template["spec"]["tolerations"] == [{"key": "a"}]
    assert template["spec"]["containers"][0]["args"] == ["x"]


@pytest.mark.parametrize(
    ("mode", "has_one"), [("K8sJobMode", True), ("HTTPMode", False), ("SidecarMode", False)]
)
def test_the_sites_submitter_is_that_of_the_mode_which_has_one(mode: str, has_one: bool) -> None:
    pod = {"spec": {"containers": [{"name": "ray-job-submitter"}]}}
    site = Site("an-image", submission_mode=mode, pods=PodTemplates(submitter=pod))
    assert ray_job(SUBMISSION, site)["spec"].get("submitterPodTemplate") == (
        pod if has_one else None
    )


OPTIONS = ["--namespace=default", "--release=demo", "--deployment=demo-cmcl"]
RELEASE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    """An API server with two releases."""
    with kubernetes_api() as served:
        for release in ("demo", "other"):
            labels = {RELEASE: release}
            pod = f"{release}-service-pod"
            served.has(DEPLOYMENTS, f"{release}-cmcl", labels, ends=pod)
            served.has(PODS, pod, labels | {COMPONENT: "service"})
            for kind, component in (("rayservices", "serving"), ("rayclusters", "training")):
                name = f"{release}-{component}"
                served.has(f"{RAYS}/{kind}", name, labels, ends=f"{name}-head")
                served.has(PODS, f"{name}-head", labels | {COMPONENT: component})
        yield served


def _ends(api: KubernetesApi, seconds: float = 5) -> int:
    return main([*OPTIONS, f"--seconds={seconds}"], api.connect, lambda _: None)


def _names(api: KubernetesApi) -> set[str]:
    return {name for collection in api.others.values() for name in collection}


def test_nothing_of_the_release_that_runs_is_left_and_all_of_others(api: KubernetesApi) -> None:
    others = {name for name in _names(api) if name.startswith("other")}
    assert _ends(api) == 0
    assert _names(api) == others


def test_the_control_plane_has_ended_before_anything_of_ray_is_deleted(api: KubernetesApi) -> None:
    """Otherwise it would count its attempts as lost, and submit them again."""
    api.ends["demo-cmcl"] = []
    assert _ends(api, seconds=0) == 1
    deleted = [request for request in api.requests if request.startswith("DELETE")]
    assert deleted == [f"DELETE {DEPLOYMENTS}/demo-cmcl"]


def test_it_waits_for_pods_that_outlive_their_cluster(
    api: KubernetesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.ends["demo-serving"] = []
    looks = []

    def pause(_: float) -> None:
        looks.append(len(api.requests))
        api.others[PODS].pop("demo-serving-head", None)

    assert main([*OPTIONS, "--seconds=5"], api.connect, pause) == 0
    assert len(looks) == 1
    assert "waiting for pod/demo-serving-head" in capsys.readouterr().out


def test_without_kuberay_it_fails_and_says_what_is_left(
    api: KubernetesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.kuberay_runs = False
    assert _ends(api, seconds=0) == 1
    said = capsys.readouterr().err
    assert "rayservices.ray.io/demo-serving, rayclusters.ray.io/demo-training" in said
    assert "helm uninstall --no-hooks" in said


def test_a_second_try_and_a_cluster_without_kuberays_kinds_are_no_errors(
    api: KubernetesApi,
) -> None:
    assert _ends(api) == 0
    assert _ends(api) == 0
    for kind in ("rayservices", "rayclusters"):
        del api.others[f"{RAYS}/{kind}"]
    assert _ends(api) == 0


def test_a_missing_permission_is_reported(
    api: KubernetesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refusal = Refusal(403, "Forbidden", "cannot delete resource deployments")
    assert _ends(api) == 1
    assert "cannot delete resource deployments" in capsys.readouterr().err
