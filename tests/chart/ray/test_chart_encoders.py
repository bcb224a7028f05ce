"""Encoders: one declaration for the control plane and the endpoint, and where their processes fit."""

import json

from cmcl.contract.encoder import EncoderSpec
from service.core.settings import Settings
from tests.chart.release import CHART, Release
from workers.serve.settings import ServeArgs


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
