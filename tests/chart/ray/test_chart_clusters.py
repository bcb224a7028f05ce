"""The two Ray clusters: training behind the Jobs API, serving behind a RayService."""

import re

import pytest

from tests.chart.release import BUCKET, TWO_CLUSTERS, Object, Release, each_release, render
from workers.prepare.cluster import PrepareSettings
from workers.train.settings import TrainSettings

ADDRESS = "redis.example.org:6379"


def _training(release: Release) -> Object:
    spec: Object = release.one("RayCluster", "demo-cmcl-training")["spec"]
    return spec


def _serving(release: Release) -> Object:
    spec: Object = release.one("RayService", "demo-cmcl-serving")["spec"]
    return spec


def test_pods_of_training_have_every_setting_of_training_and_preparation() -> None:
    values = {
        "training": {
            "checkpointSeconds": 20,
            "peerSeconds": 90.5,
            "scratchBytes": 200_000_000_000,
            "extraEnv": {"NCCL_DEBUG": "INFO"},
        },
        "preparation": {
            "fileMemory": "1.5Gi",
        },
    }
    training = _training(render(values))
    expected = {
        "CMCL_CHECKPOINT_SECONDS": "20",
        "CMCL_PEER_SECONDS": "90.5",
        "CMCL_SCRATCH_BYTES": "200000000000",
        "CMCL_PREPARE_FILE_MEMORY": "1610612736",
        "NCCL_DEBUG": "INFO",
    }
    known = {f"CMCL_{field.upper()}" for field in TrainSettings.model_fields}
    known |= {f"CMCL_PREPARE_{field.upper()}" for field in PrepareSettings.model_fields}
    assert known == {name for name in expected if name.startswith("CMCL_")}
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
    group = render(BUCKET | {"training": training}).groups()["ranks"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == pods
    assert group["rayStartParams"]["num-cpus"] == str(per_pod)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == (str(gpus) if gpus else None)
    assert group["rayStartParams"].get("num-gpus") == (str(gpus) if gpus else None)


@pytest.mark.parametrize("name", ["nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb", "amd.com/x"])
def test_ray_counts_gpus_of_any_kubernetes_resource(name: str) -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config  # takes a second

    encoder = {"name": "words", "kind": "synthetic", "takes": "text", "width": 8, "num_gpus": 1}
    training = {"gpuResource": name, "gpusPerRank": 1, "ranks": 2, "ranksPerPod": 2}
    release = render({"training": training, "encoders": [encoder]})
    for group, gpus in (("ranks", 2), ("encoders", 1)):
        spec = release.groups()[group]
        assert spec["template"]["spec"]["containers"][0]["resources"]["limits"][name] == str(gpus)
        counted = autoscaling_config._get_ray_resources_from_group_spec(spec, is_head=False)
        assert counted["GPU"] == gpus


def test_gpus_are_added_to_the_limits_of_the_user(production: Release) -> None:
    group = production.groups()["ranks"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"] == {"memory": "6Gi", "nvidia.com/gpu": "2"}
    assert group["template"]["spec"]["nodeSelector"] == {"example.org/gpu": "h100"}


def test_ranks_say_before_they_go_where_that_is_wanted() -> None:
    silent = render({}).groups()["ranks"]
    assert "lifecycle" not in silent["template"]["spec"]["containers"][0]
    release = render({"training": {"noticeSeconds": 40}})
    training, group = _training(release), release.groups()["ranks"]
    pod = group["template"]["spec"]
    (*_, words) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert "--deadline-remaining-seconds 40 && sleep 40" in words
    assert pod["terminationGracePeriodSeconds"] > 40
    head = training["headGroupSpec"]["template"]["spec"]
    assert "lifecycle" not in head["containers"][0], "nothing outlives the head"


@each_release(*TWO_CLUSTERS)
def test_ranks_and_replicas_stay_off_the_heads(release: Release) -> None:
    for cluster in (_training(release), _serving(release)["rayClusterConfig"]):
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@each_release(*TWO_CLUSTERS)
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


@each_release(*TWO_CLUSTERS)
def test_both_clusters_ask_for_a_token(release: Release) -> None:
    for cluster in (_training(release), _serving(release)["rayClusterConfig"]):
        assert cluster["authOptions"]["mode"] == "token"


@each_release()
def test_probes_need_no_program_in_the_image(release: Release) -> None:
    for where, template in release.pod_templates().items():
        container = template["spec"]["containers"][0]
        if where.startswith(("Deployment", "Ray")):
            assert "httpGet" in container["livenessProbe"]
            assert "httpGet" in container["readinessProbe"]


@each_release()
def test_a_new_chart_alone_restarts_no_ray_pod(release: Release) -> None:
    for where, template in release.pod_templates().items():
        if where.startswith("Ray"):
            assert "helm.sh/chart" not in template["metadata"]["labels"]


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


def _cluster(release: Release) -> Object:
    spec: Object = release.one("RayService", "demo-cmcl-serving")["spec"]["rayClusterConfig"]
    return spec


def test_state_goes_to_a_redis_whose_password_is_in_a_secret(production: Release) -> None:
    assert _cluster(production)["gcsFaultToleranceOptions"] == {
        "redisAddress": "rediss://redis.example.org:6379",
        "redisPassword": {
            "valueFrom": {"secretKeyRef": {"name": "cmcl-redis", "key": "redis-password"}}
        },
    }


@pytest.mark.parametrize("secret", ["", "x"])
def test_a_redis_without_a_password_gets_none(secret: str) -> None:
    options = {"redisAddress": ADDRESS, "redisSecret": secret}
    found = _cluster(render({"serving": {"gcsFaultTolerance": options}}))
    assert ("redisPassword" in found["gcsFaultToleranceOptions"]) is bool(secret)
