"""With the launcher kuberay: attempts are RayJobs, made by the service from what the chart gives it."""

from pathlib import Path

import pytest

from service.app import create_app
from service.core.setting_values import PodTemplates, read_pod_templates
from service.core.settings import Settings
from service.launchers.kuberay import Site, ray_job
from service.launchers.port import Submission
from tests.chart.release import Object, Release, is_uninstall_hook, render, values_of
from tests.chart.restricted import violations, with_wait
from tests.chart.schemas import CRDS, complaints_of_kuberay
from tests.fakes.kubernetes_api import kubernetes_api

SUBMISSION = Submission(
    "job-1-a1", ["true"], queue="training", priority="high", ranks=8, min_ranks=4, gpus_per_rank=1
)


def _pods(release: Release, folder: Path) -> PodTemplates:
    """The pods' settings, as the service reads them."""
    path = folder / "pods.yaml"
    path.write_text(release.one("ConfigMap", "demo-cmcl-pods")["data"]["pods.yaml"])
    return read_pod_templates(path)


def _settings(release: Release, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The pod's settings, with the file at another path."""
    _pods(release, folder)
    for name, value in release.settings().items():
        if isinstance(value, str):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("CMCL_KUBERAY_POD_TEMPLATE", str(folder / "pods.yaml"))
    monkeypatch.setenv("CMCL_DATABASE_URL", f"sqlite:///{folder}/cmcl.db")
    monkeypatch.setenv("CMCL_STORE_URI", (folder / "store").as_uri())
    return Settings()


def _job(release: Release, folder: Path) -> Object:
    site = Site("registry/worker:1", pods=_pods(release, folder), ranks_per_pod=2)
    return ray_job(SUBMISSION, site)


def test_rayjob_permissions_of_the_service_are_exactly_those_it_uses(queued: Release) -> None:
    jobs, owner = queued.one("Role", "demo-cmcl")["rules"]
    assert owner == {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [queued.settings()["CMCL_KUBERAY_OWNER"]],
        "verbs": ["get"],
    }
    assert jobs == {
        "apiGroups": ["ray.io"],
        "resources": ["rayjobs"],
        "verbs": ["create", "delete", "get", "list", "patch"],
    }
    binding = queued.one("RoleBinding", "demo-cmcl")
    account = queued.one("Deployment", "demo-cmcl")["spec"]["template"]["spec"][
        "serviceAccountName"
    ]
    assert binding["roleRef"]["name"] == "demo-cmcl"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "test"}]


def test_logs_of_pods_are_read_only_where_submitters_print_them() -> None:
    values = values_of("queued")
    values["training"]["rayJobs"]["submissionMode"] = "K8sJobMode"
    assert render(values).one("Role", "demo-cmcl")["rules"][2:] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    ]


def test_only_the_service_holds_a_token_and_only_for_that(
    queued: Release, trial: Release, production: Release
) -> None:
    held = {
        where: template["spec"]["automountServiceAccountToken"]
        for where, template in queued.pod_templates(at_the_end=False).items()
    }
    assert [where for where, token in held.items() if token] == [
        "Deployment demo-cmcl spec/template"
    ]
    for release in (trial, production):
        roles = release.of_kind("Role", "RoleBinding")
        assert [item for item in roles if not is_uninstall_hook(item)] == []
        assert not any("job-pods" in path for path in release.objects)


def test_the_service_reads_the_pods_where_they_are_mounted(queued: Release) -> None:
    spec = queued.one("Deployment", "demo-cmcl")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "pods"]
    config_map = queued.one("ConfigMap", volumes["pods"]["configMap"]["name"])
    (file,) = config_map["data"]
    assert queued.settings()["CMCL_KUBERAY_POD_TEMPLATE"] == f"{mount['mountPath']}/{file}"


def test_other_pods_restart_the_service(queued: Release) -> None:
    values = values_of("queued")
    values["training"]["workers"]["pod"]["nodeSelector"] = {"example.org/gpu": "b200"}
    changed = render(values)
    before, after = (
        release.one("Deployment", "demo-cmcl")["spec"]["template"]["metadata"]["annotations"]
        for release in (queued, changed)
    )
    assert before["checksum/pods"] != after["checksum/pods"]
    assert before["checksum/settings"] == after["checksum/settings"]


def test_the_service_starts_with_what_it_is_given(
    queued: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(queued, tmp_path, monkeypatch)
    assert (settings.ranks, settings.min_ranks, settings.kuberay_ranks_per_pod) == (8, 4, 2)
    assert settings.kuberay_queue == "training"
    assert settings.kuberay_priority_classes == {"low": "idle", "high": "urgent"}
    assert settings.runtime_env == {"env_vars": {"NCCL_DEBUG": "WARN"}}


def test_an_attempt_arrives_at_kubernetes_as_the_values_say(
    queued: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(queued, tmp_path, monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    app = create_app(settings)
    with kubernetes_api() as api:
        api.config_maps["demo-cmcl-pods"] = "its-uid"
        api.write_kubeconfig(tmp_path)
        app.state.context.launcher.submit(SUBMISSION)
    app.state.context.close()
    job = api.jobs[SUBMISSION.id]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "urgent"
    # It is deleted with the release, and differs from those of another one.
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["name"], owner["uid"]) == ("demo-cmcl-pods", "its-uid")
    assert job["metadata"]["labels"]["app.kubernetes.io/instance"] == "demo"
    assert job["spec"]["runtimeEnvYAML"] == '{"env_vars": {"NCCL_DEBUG": "WARN"}}'
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["image"] == "cmcl-worker:0.1.0"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2", "memory": "6Gi"}


@pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's CRDs are not part of this repository")
def test_every_field_of_an_attempt_is_in_the_schema_of_kuberay(
    queued: Release, tmp_path: Path
) -> None:
    assert complaints_of_kuberay(_job(queued, tmp_path)) == []


def test_the_pods_of_an_attempt_are_those_of_the_cluster(queued: Release, tmp_path: Path) -> None:
    values = values_of("queued")
    values["training"]["launcher"] = "ray"
    cluster = render(values).one("RayCluster", "demo-cmcl-training")["spec"]
    attempt = _job(queued, tmp_path)["spec"]["rayClusterSpec"]
    (of_cluster, _), (of_attempt,) = cluster["workerGroupSpecs"], attempt["workerGroupSpecs"]
    assert attempt["headGroupSpec"] == cluster["headGroupSpec"]
    assert of_attempt["template"] == of_cluster["template"]
    assert of_attempt["rayStartParams"] == of_cluster["rayStartParams"]
    for number in ("replicas", "minReplicas", "maxReplicas"):
        assert of_attempt[number] == of_cluster[number]
    assert attempt["authOptions"] == cluster["authOptions"]


def test_the_pods_of_an_attempt_are_admitted_as_restricted(queued: Release, tmp_path: Path) -> None:
    pods = _pods(queued, tmp_path)
    for template in (pods.head, pods.workers):
        assert violations(with_wait(dict(template["spec"]))) == []
    assert pods.submitter == {}, "KubeRay itself asks the head"


def test_the_pod_of_the_submitter_is_restricted_too(tmp_path: Path) -> None:
    values = values_of("queued")
    values["training"]["rayJobs"]["submissionMode"] = "K8sJobMode"
    pods = _pods(render(values), tmp_path)
    site = Site("registry/worker:1", pods=pods, submission_mode="K8sJobMode")
    submitter = ray_job(SUBMISSION, site)["spec"]["submitterPodTemplate"]
    assert violations(submitter["spec"]) == []
    # A Job of Kubernetes requires it, and NetworkPolicies select the pod by its labels.
    assert submitter["spec"]["restartPolicy"] == "Never"
    assert submitter["metadata"]["labels"] == pods.head["metadata"]["labels"]
