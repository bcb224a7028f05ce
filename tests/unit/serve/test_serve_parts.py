"""What a replica reports of the other parts of the endpoint, for the page of the control plane."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace

from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.version import PARTS
from tests.fakes.letter_encoder import LetterEncoders
from tests.unit.serve.conftest import Replica
from workers.serve.api.app import create_api
from workers.serve.encoders.port import Encoded, Raw


class SilentEncoders(LetterEncoders):
    """An encoder that does not answer."""

    async def _answer(self, raw: Sequence[Raw], expected: EncoderIdentity | None) -> Encoded:
        await asyncio.Event().wait()
        raise AssertionError


def test_an_encoder_that_is_unavailable_is_reported_and_the_replica_stays_ready(
    with_encoder: Replica,
) -> None:
    states = {"RUNNING": 2}
    parts = replace(with_encoder.parts(with_encoder.args), replica_states=lambda: states)
    with_encoder.app = create_api(parts)
    expected = {"encoders": {"letters": "ok"}, "replicas": states}
    assert with_encoder.get(PARTS).json() == expected
    assert isinstance(with_encoder.encoders, LetterEncoders)
    with_encoder.encoders.is_down = True
    with_encoder.app = create_api(parts)  # Without the report of the last second.
    assert with_encoder.get(PARTS).json()["encoders"] == {"letters": "it is down"}
    assert with_encoder.get("/readyz").status_code == 200


def test_parts_that_do_not_answer_are_reported_in_time(with_encoder: Replica) -> None:
    answered = threading.Event()

    def controller() -> dict[str, int]:
        answered.wait()
        return {"RUNNING": 1}

    with_encoder.encoders = SilentEncoders()
    parts = replace(with_encoder.parts(with_encoder.args), replica_states=controller)
    with_encoder.app = create_api(parts)
    try:
        report = with_encoder.get(PARTS).json()
    finally:
        answered.set()
    assert report == {"encoders": {"letters": "no answer within 4 s"}, "replicas": {}}
