"""The RayJob of a submission."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from service.core.setting_values import PodTemplates
from service.launchers.kuberay import Site, ray_job
from service.launchers.port import Submission
from tests.chart.schemas import CRDS, complaints_of_kuberay

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


def test_without_gpus_ray_gets_none() -> None:
    job = ray_job(Submission("job-1-a1", ["true"], ranks=2), Site("an-image"))
    assert "num-gpus" not in _group(job)["rayStartParams"]


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
