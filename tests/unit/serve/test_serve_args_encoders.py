"""The encoders of an endpoint's arguments: what is refused before anything starts."""

import pytest
from pydantic import ValidationError

from cmcl.contract.encoder import EncoderSpec
from workers.serve.settings import ServeSettings


def spec(**fields: object) -> EncoderSpec:
    declared = {"name": "words", "kind": "synthetic", "takes": "text", "width": 4, **fields}
    return EncoderSpec.model_validate(declared)


def test_a_name_declares_one_encoder() -> None:
    with pytest.raises(ValidationError, match="the name 'words' more than once"):
        ServeSettings(store="file:///tmp/x", encoders=(spec(), spec(width=5)))


def test_an_encoder_with_no_room_for_a_request_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_queued of encoder 'words' is 10"):
        ServeSettings(store="file:///tmp/x", encoders=(spec(max_queued=10),))


def test_another_encoder_is_another_application() -> None:
    with_it = ServeSettings(store="file:///tmp/x", encoders=(spec(),))
    assert with_it.identity != ServeSettings(store="file:///tmp/x").identity
