"""The two Ray clusters: training behind the Jobs API, serving behind a RayService."""

import ast
import copy
import re

import helm_python
import pytest

from tests.chart.release import ROOT, Object, Release, render
from tests.chart.schemas import CRDS, complaints_of_kuberay
from workers.serve.settings import ServeArgs
from workers.train.settings import TrainSettings

needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(), reason="KubeRay's CRDs are not part of this repository"
)


def _training(release: Release) -> Object:
    spec: Object = release.one("RayCluster", "demo-cmcl-training")["spec"]
    return spec


def _serving(release: Release) -> Object:
    spec: Object = release.one("RayService", "demo-cmcl-serving")["spec"]
    return spec


def _serve_config(release: Release) -> Object:
    return helm_python.values_from_yaml(_serving(release)["serveConfigV2"])


@needs_crds
@pytest.mark.parametrize("kind", ["RayCluster", "RayService"])
def test_kuberay_knows_every_field(release: Release, kind: str) -> None:
    (item,) = release.of_kind(kind)
    assert complaints_of_kuberay(item) == []


@needs_crds
def test_a_field_that_kuberay_lacks_is_caught(trial: Release) -> None:
    item = copy.deepcopy(trial.one("RayCluster", "demo-cmcl-training"))
    item["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["envs"] = []
    (complaint,) = complaints_of_kuberay(item)
    assert "containers[0]" in complaint
    assert "'envs' was unexpected" in complaint


def test_pods_of_training_have_every_setting_of_training() -> None:
    values = {"checkpointSeconds": 20, "peerSeconds": 90.5, "extraEnv": {"NCCL_DEBUG": "INFO"}}
    training = _training(render({"training": values}))
    expected = {"CMCL_CHECKPOINT_SECONDS": "20", "CMCL_PEER_SECONDS": "90.5", "NCCL_DEBUG": "INFO"}
    known = {f"CMCL_{field.upper()}" for field in TrainSettings.model_fields}
    assert known <= expected.keys()
    for group in (training["headGroupSpec"], *training["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        found = {each["name"]: each.get("value") for each in container["env"]}
        assert expected.items() <= found.items()


@pytest.mark.parametrize(
    ("ranks", "per_pod", "gpus_per_rank", "pods", "gpus"),
    [(1, 1, 0, 1, None), (5, 2, 1, 3, 2), (4, 2, 0.5, 2, 1), (3, 8, 0, 1, None), (8, 8, 1, 1, 8)],
)
def test_pods_have_room_for_all_ranks(
    ranks: int, per_pod: int, gpus_per_rank: float, pods: int, gpus: int | None
) -> None:
    training = {"ranks": ranks, "ranksPerPod": per_pod, "gpusPerRank": gpus_per_rank}
    (group,) = _training(render({"training": training}))["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == pods
    assert group["rayStartParams"]["num-cpus"] == str(per_pod)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == gpus


def test_gpus_are_added_to_the_limits_of_the_user(production: Release) -> None:
    (group,) = _training(production)["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"] == {"memory": "6Gi", "nvidia.com/gpu": 2}
    assert group["template"]["spec"]["nodeSelector"] == {"example.org/gpu": "h100"}


def test_ranks_say_before_they_go_where_that_is_wanted() -> None:
    (silent,) = _training(render({}))["workerGroupSpecs"]
    assert "lifecycle" not in silent["template"]["spec"]["containers"][0]
    training = _training(render({"training": {"noticeSeconds": 40}}))
    (group,) = training["workerGroupSpecs"]
    pod = group["template"]["spec"]
    (*_, words) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert "--deadline-remaining-seconds 40 && sleep 40" in words
    assert pod["terminationGracePeriodSeconds"] > 40
    head = training["headGroupSpec"]["template"]["spec"]
    assert "lifecycle" not in head["containers"][0], "nothing outlives the head"


def test_ranks_and_replicas_stay_off_the_heads(release: Release) -> None:
    for cluster in (_training(release), _serving(release)["rayClusterConfig"]):
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_service_submits_to_the_training_head(release: Release) -> None:
    name = release.of_kind("RayCluster")[0]["metadata"]["name"]
    ports = _training(release)["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    dashboard = {port["name"]: port["containerPort"] for port in ports}["dashboard"]
    assert release.settings()["CMCL_RAY_ADDRESS"] == f"http://{name}-head-svc:{dashboard}"


@pytest.mark.parametrize(("chosen", "secret"), [("", "demo-cmcl-training"), ("ours", "ours")])
def test_service_has_the_token_of_the_cluster(chosen: str, secret: str) -> None:
    release = render({"ray": {"authSecret": chosen}})
    options = _training(release)["authOptions"]
    # Without a name KubeRay makes a Secret that is named like the cluster.
    assert options == {"mode": "token"} | ({"secretName": chosen} if chosen else {})
    environment = {item["name"]: item for item in release.container("service")["env"]}
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    token = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert token == {"name": secret, "key": "auth_token"}


def test_both_clusters_ask_for_a_token(release: Release) -> None:
    for cluster in (_training(release), _serving(release)["rayClusterConfig"]):
        assert cluster["authOptions"]["mode"] == "token"


def test_ray_objects_name_the_ray_of_the_image(release: Release) -> None:
    lock = (ROOT / "deploy" / "requirements" / "worker.lock").read_text()
    installed = re.search(r"^ray==([\d.]+)", lock, re.MULTILINE)
    assert installed is not None
    for cluster in (_training(release), _serving(release)["rayClusterConfig"]):
        assert cluster["rayVersion"] == installed[1]


def test_probes_need_no_program_in_the_image(release: Release) -> None:
    for template in release.pod_templates().values():
        container = template["spec"]["containers"][0]
        for probe in ("livenessProbe", "readinessProbe"):
            assert "httpGet" in container[probe]


def test_a_new_chart_alone_restarts_no_ray_pod(release: Release) -> None:
    for template in release.pod_templates().values():
        assert "helm.sh/chart" not in template["metadata"]["labels"]


# Ray's own models warn while they are imported.
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
def test_serve_config_is_one_that_ray_accepts(release: Release) -> None:
    from ray.serve.schema import ServeDeploySchema  # takes seconds, and only this test needs it

    deployed = ServeDeploySchema.model_validate(_serve_config(release))
    (application,) = deployed.applications
    assert (application.name, application.route_prefix) == ("embeddings", "/")


def test_serve_config_imports_what_exists(release: Release) -> None:
    (application,) = _serve_config(release)["applications"]
    module, _, attribute = application["import_path"].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert attribute in [function.name for function in functions]


def test_replicas_are_told_the_store_of_the_service(release: Release) -> None:
    (application,) = _serve_config(release)["applications"]
    arguments = ServeArgs.model_validate(application["args"])
    assert arguments.store == release.settings()["CMCL_STORE_URI"]


@pytest.mark.parametrize(("replicas", "per_pod", "pods"), [(1, 1, 1), (3, 2, 2), (4, 4, 1)])
def test_pods_have_room_for_old_and_new_replicas(replicas: int, per_pod: int, pods: int) -> None:
    release = render({"serving": {"replicas": replicas, "replicasPerPod": per_pod}})
    (group,) = _serving(release)["rayClusterConfig"]["workerGroupSpecs"]
    (application,) = _serve_config(release)["applications"]
    booked = application["args"]["replicas"] * application["args"]["num_cpus"]
    assert group["replicas"] == pods
    assert int(group["rayStartParams"]["num-cpus"]) * pods >= 2 * booked


def test_clients_reach_the_proxies_on_port_8000(release: Release) -> None:
    cluster = _serving(release)["rayClusterConfig"]
    config = _serve_config(release)
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        ports = group["template"]["spec"]["containers"][0]["ports"]
        assert {"name": "serve", "containerPort": 8000} in ports
    assert _serving(release)["excludeHeadPodFromServeSvc"] is True


@pytest.mark.parametrize("name", ["a", "cmcl", "x" * 53, "a-" * 26 + "z"])
def test_names_are_short_enough_for_kuberay(name: str) -> None:
    release = render({}, name=name)
    (cluster,) = release.of_kind("RayCluster")
    (serving,) = release.of_kind("RayService")
    # It cuts names of Secrets at 50, and appends 6 characters to that of a RayService.
    assert len(cluster["metadata"]["name"]) <= 50
    assert len(serving["metadata"]["name"]) + 6 <= 50
    for item in (cluster, serving):
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", item["metadata"]["name"])


@pytest.mark.parametrize("name", ["7days", "a.b"])
def test_a_name_that_kuberay_refuses_is_refused(name: str) -> None:
    with pytest.raises(helm_python.HelmRenderError, match="must start with a letter"):
        render({}, name=name)
