"""Encoders in front of the heads: arguments of the application, and where their processes fit."""

import json
from typing import Any

import pytest

from tests.chart.ray.resources import custom_resources
from tests.chart.release import BUCKET, CHART, Release, render
from workers.serve.encoders.spec import EncoderSpec
from workers.serve.placement import ENCODER
from workers.serve.settings import ServeArgs

TEXT = {"modality": "text", "kind": "synthetic", "width": 384}


def _args(release: Release) -> ServeArgs:
    return ServeArgs.model_validate(release.serve_args())


def test_the_schema_has_every_field_of_an_encoder() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    fields = EncoderSpec.model_fields
    encoder = schema["definitions"]["encoder"]
    assert encoder["properties"].keys() == fields.keys()
    assert set(encoder["required"]) == {name for name in fields if fields[name].is_required()}


def test_encoders_reach_the_application_as_they_were_written(production: Release) -> None:
    (encoder,) = _args(production).encoders
    assert (encoder.model, encoder.replicas) == ("/opt/models/all-MiniLM-L6-v2", 2)
    assert encoder.max_item_bytes == 16 << 20


def test_without_encoders_there_are_no_pods_for_them(trial: Release) -> None:
    assert _args(trial).encoders == ()
    assert set(trial.groups()) == {"replicas", "ranks"}


@pytest.mark.parametrize(
    ("encoders", "pods", "gpus"),
    [
        ([TEXT], 1, None),
        ([TEXT | {"replicas": 3, "num_cpus": 2.5}], 3, None),
        ([TEXT, TEXT | {"modality": "image", "num_gpus": 0.5, "replicas": 2}], 3, 1),
    ],
)
def test_each_process_of_an_encoder_has_a_pod(
    encoders: list[dict[str, Any]], pods: int, gpus: int | None
) -> None:
    group = render(BUCKET | {"serving": {"encoders": encoders}}).groups()["encoders"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == pods
    # A new process starts beside the old one.
    assert custom_resources(group) == {ENCODER: 2}
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == (str(gpus) if gpus else None)
    assert group["rayStartParams"].get("num-gpus") == (str(gpus) if gpus else None)


def test_pods_of_encoders_run_on_the_configured_nodes(production: Release) -> None:
    template = production.groups()["encoders"]["template"]
    assert template["spec"]["nodeSelector"] == {"example.org/gpu": "t4"}
    assert template["metadata"]["labels"]["app.kubernetes.io/component"] == "serving"
