"""The two Ray clusters: training behind the Jobs API, serving behind a RayService."""

import re

import pytest

from tests.chart.release import Object, Release, each_release, render
from workers.prepare.cluster import PrepareSettings
from workers.train.settings import TrainSettings


def _training(release: Release) -> Object:
    spec: Object = release.one("RayCluster", "demo-cmcl-training")["spec"]
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
