"""States of a RayJob, and the launcher's errors if Kubernetes rejects a request or is unavailable."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration, CustomObjectsApi

from service.launchers.kuberay import KubeRayLauncher, Site, connected
from service.launchers.port import (
    LauncherRejected,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
    status_of,
)
from tests.fakes.kubernetes_api import KubernetesApi, Refusal, kubernetes_api

ID = "job-1-a1"
SUBMISSION = Submission(
    ID, ["python", "-m", "workers.train"], queue="training", ranks=2, min_ranks=2
)
SITE = Site("an-image")
QUEUED, PENDING, STOPPED = LaunchState.QUEUED, LaunchState.PENDING, LaunchState.STOPPED


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with kubernetes_api() as served:
        yield served


@pytest.fixture
def launcher(api: KubernetesApi) -> KubeRayLauncher:
    """A launcher with a queue."""
    return KubeRayLauncher(SITE, api.connect)


def test_what_waits_in_its_queue_says_so(launcher: KubeRayLauncher) -> None:
    launcher.submit(SUBMISSION)
    assert status_of(launcher, ID) == LaunchStatus(QUEUED, "waiting in queue training")


@pytest.mark.parametrize(
    ("job", "deployment", "state"),
    [
        ("", "Initializing", PENDING),
        ("PENDING", "Running", PENDING),
        ("RUNNING", "Running", LaunchState.RUNNING),
        # Its pods are still there.
        ("SUCCEEDED", "Running", LaunchState.SUCCEEDED),
        ("SUCCEEDED", "Complete", LaunchState.SUCCEEDED),
        ("STOPPED", "Complete", STOPPED),
        ("", "Complete", LaunchState.FAILED),
        ("FAILED", "Failed", LaunchState.FAILED),
        # Kubernetes lost the job's pods, or it never got that far.
        ("RUNNING", "Failed", LaunchState.FAILED),
        ("", "ValidationFailed", LaunchState.FAILED),
        ("", "Retrying", PENDING),
        # A state of a later KubeRay counts as not ended.
        ("", "Dreaming", PENDING),
    ],
)
def test_two_statuses_become_one_state(
    api: KubernetesApi, launcher: KubeRayLauncher, job: str, deployment: str, state: LaunchState
) -> None:
    launcher.submit(SUBMISSION)
    api.admit(ID)
    api.become(ID, job, deployment)
    assert status_of(launcher, ID).state == state


def test_what_kueue_takes_back_waits_again(api: KubernetesApi, launcher: KubeRayLauncher) -> None:
    launcher.submit(SUBMISSION)
    api.admit(ID)
    api.jobs[ID]["spec"]["suspend"] = True
    for job, deployment in [
        ("RUNNING", "Running"),
        # The Ray job ends with its pods, and that is no end of the attempt.
        ("FAILED", "Suspending"),
        ("STOPPED", "Suspending"),
        ("", "Suspended"),
    ]:
        api.become(ID, job, deployment)
        assert status_of(launcher, ID) == LaunchStatus(QUEUED, "waiting in queue training")
    api.admit(ID)
    api.become(ID, "", "Initializing")
    assert status_of(launcher, ID) == LaunchStatus(PENDING)


def test_a_failure_has_the_message_of_kuberay(
    api: KubernetesApi, launcher: KubeRayLauncher
) -> None:
    launcher.submit(SUBMISSION)
    api.become(ID, "FAILED", "Failed", "exit code 1\n" + "noise\n" * 4000 + "out of memory")
    message = status_of(launcher, ID).message
    assert message.startswith("exit code 1\n")
    assert message.endswith("out of memory")
    assert len(message) < 5000


def test_a_stop_ends_what_runs_and_its_name_stays_taken(
    api: KubernetesApi, launcher: KubeRayLauncher
) -> None:
    launcher.submit(SUBMISSION)
    api.admit(ID)
    api.become(ID, "RUNNING", "Running")
    launcher.stop(ID)
    assert api.jobs[ID]["status"]["jobDeploymentStatus"] == "Failed"
    # Otherwise the ranks would keep working for as long as their pods are kept.
    assert api.jobs[ID]["spec"]["ttlSecondsAfterFinished"] == 0
    launcher.submit(SUBMISSION)
    assert status_of(launcher, ID) == LaunchStatus(STOPPED, "stopped on request")


def test_what_kueue_took_back_leaves_its_queue_when_it_is_stopped(
    api: KubernetesApi, launcher: KubeRayLauncher
) -> None:
    launcher.submit(SUBMISSION)
    api.admit(ID)
    api.become(ID, "RUNNING", "Running")
    api.preempt(ID)
    launcher.stop(ID)
    assert status_of(launcher, ID).state == STOPPED
    assert api.workloads[ID].queue != "training"


def test_a_job_stopped_while_suspended_requests_no_workers_when_resumed(
    api: KubernetesApi, launcher: KubeRayLauncher
) -> None:
    """KubeRay makes the cluster, and looks at the deadline a second later."""
    launcher.submit(SUBMISSION)
    assert api.workloads[ID].pods == [2]
    launcher.stop(ID)
    assert api.jobs[ID]["spec"]["rayClusterSpec"]["workerGroupSpecs"] == []
    # The rest of the cluster is as it was: without a head, KubeRay would refuse it.
    assert api.jobs[ID]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]


def test_what_is_resumed_after_its_stop_never_runs(
    api: KubernetesApi, launcher: KubeRayLauncher
) -> None:
    """Kueue may have decided before it saw the stop."""
    launcher.submit(SUBMISSION)
    launcher.stop(ID)
    api.admit(ID)
    assert api.jobs[ID]["status"]["jobDeploymentStatus"] == "Failed"
    assert status_of(launcher, ID).state == STOPPED


def test_a_success_that_came_before_the_stop_stays_one(
    api: KubernetesApi, launcher: KubeRayLauncher
) -> None:
    launcher.submit(SUBMISSION)
    api.admit(ID)
    api.become(ID, "SUCCEEDED", "Complete")
    before = api.jobs[ID]["metadata"]["resourceVersion"]
    launcher.stop(ID)
    assert status_of(launcher, ID).state == LaunchState.SUCCEEDED
    assert api.jobs[ID]["metadata"]["resourceVersion"] == before


def test_a_stop_that_was_overtaken_looks_again(
    api: KubernetesApi, launcher: KubeRayLauncher
) -> None:
    launcher.submit(SUBMISSION)
    api.overtaken = 2
    launcher.stop(ID)
    assert status_of(launcher, ID).state == STOPPED


def test_a_stop_that_is_always_overtaken_is_worth_a_retry(
    api: KubernetesApi, launcher: KubeRayLauncher
) -> None:
    launcher.submit(SUBMISSION)
    api.overtaken = 3
    with pytest.raises(LauncherUnavailable, match="job-1-a1 changed at each of 3 tries"):
        launcher.stop(ID)


def test_a_submission_stopped_in_its_queue_can_be_deleted(
    api: KubernetesApi, launcher: KubeRayLauncher
) -> None:
    launcher.submit(SUBMISSION)
    launcher.stop(ID)
    launcher.forget(ID)
    assert api.jobs == {}


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(403, "Forbidden", "exceeded quota: gpus, requested: 8, limited: 4"),
        Refusal(422, "Invalid", "spec.submissionMode: Invalid value"),
        Refusal(404, "NotFound", "the server could not find the requested resource"),
    ],
    ids=lambda refusal: refusal.reason,
)
def test_a_refusal_has_the_message_of_the_server(
    api: KubernetesApi, launcher: KubeRayLauncher, refusal: Refusal
) -> None:
    api.refusal = refusal
    with pytest.raises(LauncherRejected) as refused:
        launcher.submit(SUBMISSION)
    assert str(refused.value) == f"Kubernetes refused {ID}: {refusal}"


@pytest.mark.parametrize("code", [401, 429, 500, 503])
def test_an_outage_is_worth_a_retry(
    api: KubernetesApi, launcher: KubeRayLauncher, code: int
) -> None:
    api.refusal = Refusal(code, "Whatever", "not now (on purpose)")
    for ask in (
        lambda: launcher.submit(SUBMISSION),
        lambda: status_of(launcher, ID),
        lambda: launcher.stop(ID),
    ):
        with pytest.raises(LauncherUnavailable, match=r"not now \(on purpose\)"):
            ask()


def test_a_right_that_is_missing_is_no_end(api: KubernetesApi, launcher: KubeRayLauncher) -> None:
    api.refusal = Refusal(403, "Forbidden", "cannot get resource rayjobs")
    with pytest.raises(LauncherUnavailable, match="cannot get resource rayjobs"):
        status_of(launcher, ID)


def test_what_is_submitted_goes_with_its_release(api: KubernetesApi) -> None:
    """`helm uninstall` deletes the ConfigMap; GPUs would be held until the run's deadline otherwise."""
    api.config_maps = {"ours-pods": "uid-1", "others-pods": "uid-2"}
    ours, others = (
        KubeRayLauncher(Site("an-image", owner=name), api.connect)
        for name in ("ours-pods", "others-pods")
    )
    ours.submit(SUBMISSION)
    others.submit(Submission("job-2-a1", ["true"]))
    api.delete_config_map("ours-pods")
    assert list(api.jobs) == ["job-2-a1"]


def test_a_recreated_owner_owns_later_rayjobs(api: KubernetesApi) -> None:
    launcher = KubeRayLauncher(Site("an-image", owner="pods"), api.connect)
    for number, uid in enumerate(("uid-1", "uid-2")):
        api.config_maps["pods"] = uid
        launcher.submit(Submission(f"job-{number}-a1", ["true"]))
        (owner,) = api.jobs[f"job-{number}-a1"]["metadata"]["ownerReferences"]
        assert owner == {"apiVersion": "v1", "kind": "ConfigMap", "name": "pods", "uid": uid}


def test_nothing_is_submitted_without_its_owner_object(api: KubernetesApi) -> None:
    launcher = KubeRayLauncher(Site("an-image", owner="gone"), api.connect)
    with pytest.raises(LauncherUnavailable, match='configmaps "gone" not found'):
        launcher.submit(SUBMISSION)
    assert api.jobs == {}


def test_a_refused_connection_means_the_launcher_is_unavailable_and_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"

        def connect() -> Any:
            return CustomObjectsApi(ApiClient(Configuration(host=address)))

        with pytest.raises(LauncherUnavailable, match=r"^Kubernetes: connection refused$"):
            KubeRayLauncher(SITE, connect).submit(SUBMISSION)


def test_outside_of_a_cluster_the_kubeconfig_names_it(
    api: KubernetesApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    launcher = KubeRayLauncher(SITE, connected)
    with pytest.raises(LauncherUnavailable, match="Invalid kube-config file"):
        launcher.submit(SUBMISSION)
    api.write_kubeconfig(tmp_path)
    launcher.submit(SUBMISSION)
    assert list(api.jobs) == [ID]


def test_an_owner_whose_queue_has_no_legal_name_is_refused_with_the_remedy(
    launcher: KubeRayLauncher,
) -> None:
    with pytest.raises(LauncherRejected, match="Set the field queue of the owner in CMCL_OWNERS"):
        launcher.submit(replace(SUBMISSION, queue="of-a@b.org"))
