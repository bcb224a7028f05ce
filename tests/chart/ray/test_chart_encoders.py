"""Encoders: one declaration for the control plane and the endpoint, and where their processes fit."""

import json
from typing import Any

import helm_python
import pytest

from cmcl.contract.encoder import EncoderSpec
from service.core.settings import Settings
from tests.chart.ray.resources import custom_resources
from tests.chart.release import BUCKET, CHART, Release, render
from workers.serve.ray_adapters import ENCODER
from workers.serve.settings import ServeArgs

TEXT = {"name": "words", "kind": "synthetic", "takes": "text", "width": 384}
IMAGE = {"name": "pictures", "kind": "synthetic", "takes": "image", "width": 512}
GIB = 1 << 30
SOUNDS = {"repository": "example.org/sounds", "tag": "1.2"}


def _args(release: Release) -> ServeArgs:
    return ServeArgs.model_validate(release.serve_args())


def test_the_schema_has_every_field_of_an_encoder() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    fields = EncoderSpec.model_fields
    encoder = schema["definitions"]["encoder"]
    assert encoder["properties"].keys() == fields.keys()
    assert set(encoder["required"]) == {name for name in fields if fields[name].is_required()}


def test_one_declaration_reaches_the_control_plane_and_the_endpoint(production: Release) -> None:
    (encoder,) = _args(production).encoders
    assert (encoder.model, encoder.replicas) == ("/opt/models/all-MiniLM-L6-v2", 2)
    assert encoder.max_item_bytes == 1 << 20
    declared = Settings(encoders=production.settings()["CMCL_ENCODERS"])
    assert declared.encoders == (encoder,)


@pytest.mark.parametrize(
    ("encoders", "pods", "gpus"),
    [
        ([TEXT], 1, None),
        ([TEXT | {"replicas": 3, "num_cpus": 2.5}], 3, None),
        ([TEXT, IMAGE | {"num_gpus": 0.5, "replicas": 2}], 3, 1),
    ],
)
def test_each_process_of_an_encoder_has_a_pod(
    encoders: list[dict[str, Any]], pods: int, gpus: int | None
) -> None:
    group = render(BUCKET | {"encoders": encoders}).groups()["encoders"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == pods
    # A new process starts beside the old one.
    assert custom_resources(group) == {ENCODER: 2}
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == (str(gpus) if gpus else None)
    assert group["rayStartParams"].get("num-gpus") == (str(gpus) if gpus else None)


def test_encoders_with_an_image_of_their_own_have_pods_with_it() -> None:
    """Each pod has the Ray resource of its image, for the process that runs and for the one that replaces it."""
    heard = TEXT | {"name": "heard", "resources": {"sounds": 0.5}, "replicas": 2}
    seen = IMAGE | {"resources": {"sounds": 1.5}, "num_gpus": 1}
    values = {"encoders": [TEXT, heard, seen], "encoderImages": {"sounds": SOUNDS}}
    groups = render(BUCKET | values).groups()
    assert custom_resources(groups["encoders"]) == {ENCODER: 2}
    assert custom_resources(groups["encoders-sounds"]) == {ENCODER: 2, "sounds": 4}
    assert (groups["encoders"]["replicas"], groups["encoders-sounds"]["replicas"]) == (1, 3)
    images = {
        name: groups[name]["template"]["spec"]["containers"][0]["image"]
        for name in ("encoders", "encoders-sounds")
    }
    assert images["encoders-sounds"] == "example.org/sounds:1.2"
    assert images["encoders"].startswith("cmcl-worker:")
    assert "num-gpus" not in groups["encoders"]["rayStartParams"]


def test_preparation_has_pods_for_units_and_for_all_processes_of_encoders() -> None:
    heard = TEXT | {"name": "heard", "resources": {"sounds": 0.5}, "actors": 2, "num_cpus": 1.5}
    seen = IMAGE | {"num_gpus": 0.5, "actors": 3}
    values = {"encoders": [heard, seen], "encoderImages": {"sounds": SOUNDS}}
    groups = render(BUCKET | values).groups()
    plain, own = groups["preparation"], groups["preparation-sounds"]
    assert (plain["rayStartParams"]["num-cpus"], plain["rayStartParams"]["num-gpus"]) == ("4", "2")
    assert (
        plain["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    )
    assert (plain["replicas"], own["replicas"]) == (1, 2)
    assert (own["rayStartParams"]["num-cpus"], custom_resources(own)) == ("2", {"sounds": 1})
    assert own["template"]["spec"]["containers"][0]["image"] == "example.org/sounds:1.2"


def test_preparation_with_a_cluster_of_its_own_has_as_many_cpus_and_gpus() -> None:
    values = {
        "encoders": [IMAGE | {"num_gpus": 1, "actors": 2}],
        "training": {"launcher": "kuberay"},
        "preparation": {"pods": 2, "cpusPerPod": 4},
    }
    settings = render(BUCKET | values).settings()
    assert settings["CMCL_PREPARE_WORKERS"] == "8"
    assert settings["CMCL_PREPARE_GPUS_PER_WORKER"] == "0.25"


def _units(gibibytes: float, **preparation: object) -> int:
    """Bytes for units in a pod of preparation with this limit of memory. It may have one process of an encoder."""
    limit = {"memory": f"{gibibytes}Gi"}
    workers = {"resources": {"requests": limit, "limits": limit}}
    values = {"encoders": [TEXT], "preparation": {"workers": workers, **preparation}}
    return int(render(BUCKET | values).groups()["preparation"]["rayStartParams"]["memory"])


def test_units_get_the_memory_of_a_pod_that_nothing_else_needs() -> None:
    """Units and encoders, Ray's object store and processes, and a waiting worker for each CPU: the whole pod."""
    for gibibytes, cpus in ((8, 4), (6.5, 2), (32, 16)):
        others = gibibytes / 8 + 0.5 + cpus * 0.375 + 1
        assert _units(gibibytes, cpusPerPod=cpus) == (gibibytes - others) * GIB
    assert _units(8, encoderMemory="2Gi") == _units(8) - GIB
    values = {"encoders": [TEXT | {"actors": 3}], "preparation": {"pods": 2}}
    group = render(BUCKET | values).groups()["preparation"]
    assert group["rayStartParams"]["memory"] == str(_units(8) - GIB)
    assert group["rayStartParams"]["object-store-memory"] == str(GIB)


@pytest.mark.parametrize(
    ("preparation", "complaint"),
    [
        ({"workers": {"resources": {"limits": {"memory": "4Gi"}}}}, "1536 MiB, and 512 MiB remain"),
        ({"fileMemory": "4Gi"}, "A unit needs 4608 MiB, and 4096 MiB remain: raise the limit"),
        ({"encoderMemory": "5Gi"}, "5Gi .preparation.encoderMemory. for each of 1 processes"),
    ],
)
def test_a_pod_without_room_for_a_unit_is_refused(
    preparation: dict[str, Any], complaint: str
) -> None:
    values = {"encoders": [TEXT], "preparation": preparation}
    with pytest.raises(helm_python.HelmError, match=complaint):
        render(BUCKET | values)


@pytest.mark.parametrize(
    ("resources", "complaint"),
    [
        ({"smells": 1}, "encoder words requests the Ray resource smells, which no pod has"),
        ({"sounds": 1, "sights": 1}, "requests several Ray resources"),
    ],
)
def test_an_encoder_that_no_pod_fits_is_refused(resources: dict[str, int], complaint: str) -> None:
    values = {
        "encoders": [TEXT | {"resources": resources}],
        "encoderImages": {"sounds": SOUNDS, "sights": SOUNDS},
    }
    with pytest.raises(helm_python.HelmError, match=complaint):
        render(BUCKET | values)


def test_pods_of_encoders_run_on_the_configured_nodes(production: Release) -> None:
    template = production.groups()["encoders"]["template"]
    assert template["spec"]["nodeSelector"] == {"example.org/gpu": "t4"}
    assert template["metadata"]["labels"]["app.kubernetes.io/component"] == "serving"
