"""The encoders as a replica sees them: bounds, parts, and errors that name an item."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from tests.fakes.encoders import RecordedHops
from tests.fakes.letter_encoder import LetterEncoders
from tests.unit.serve.conftest import Replica
from workers.serve.api.app import create_api
from workers.serve.encoders.client import EncoderClients
from workers.serve.encoders.port import (
    Encoded,
    EncoderInfo,
    EncoderUnavailable,
    Unreadable,
    UnreadableItem,
)
from workers.serve.encoders.spec import PASSES_AHEAD, EncoderSpec

SPEC = EncoderSpec(
    modality="text",
    kind="synthetic",
    width=2,
    max_batch=3,
    max_queued=8,
    max_item_bytes=10,
    answer_seconds=0.1,
)


KEY = "somebody"


def clients(hops: RecordedHops, spec: EncoderSpec = SPEC) -> EncoderClients:
    return EncoderClients([spec], {spec.modality: hops})


def encode(hops: RecordedHops, raw: Sequence[str | bytes]) -> list[list[float]]:
    rows: list[list[float]] = asyncio.run(clients(hops).encode("text", raw, KEY)).tolist()
    return rows


def test_a_large_request_is_sent_in_parts_and_returned_in_order() -> None:
    hops = RecordedHops()
    raw = ["a", "bb", "ccc", "dddd", "e", "ff", "ggg"]
    assert encode(hops, raw) == [[len(each)] * 2 for each in raw]
    assert hops.sent == [raw[:3], raw[3:6], raw[6:]]


def test_no_items_have_no_features() -> None:
    assert asyncio.run(clients(RecordedHops()).encode("text", [], KEY)).shape == (0, 2)


def test_the_encoder_of_a_modality_is_listed() -> None:
    infos = clients(RecordedHops()).infos
    assert infos == {"text": EncoderInfo(name="synthetic", raw="text", width=2)}


def test_a_modality_without_an_encoder_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        asyncio.run(clients(RecordedHops()).encode("image", [b"x"], KEY))


def test_an_unreadable_item_is_named_by_its_place_in_the_request() -> None:
    class SecondPartIsBad(RecordedHops):
        async def __call__(self, raw: Sequence[str | bytes]) -> Encoded:
            await super().__call__(raw)
            return Unreadable(1, "no image") if "d" in raw else np.zeros((len(raw), 2), np.float32)

    with pytest.raises(UnreadableItem, match="item 4: no image") as caught:
        encode(SecondPartIsBad(), ["a", "b", "c", "d", "e"])
    assert caught.value.index == 4


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("", "it is empty"),
        ("é" * 6, "it has 12 bytes; permitted are 1 to 10"),
        (b"bytes", "takes text"),
        ("\ud800", "surrogate"),
    ],
)
def test_what_no_encoder_could_read_makes_no_hop(item: str | bytes, reason: str) -> None:
    hops = RecordedHops()
    with pytest.raises(UnreadableItem, match=reason) as caught:
        encode(hops, ["fine", item])
    assert (caught.value.index, hops.sent) == (1, [])


def test_an_encoder_that_is_down_is_unavailable() -> None:
    with pytest.raises(EncoderUnavailable, match="down"):
        encode(RecordedHops(EncoderUnavailable("down")), ["a"])


def test_an_encoder_that_does_not_answer_in_time_is_unavailable() -> None:
    class Silent(RecordedHops):
        async def __call__(self, raw: Sequence[str | bytes]) -> Encoded:
            await asyncio.sleep(60)
            raise AssertionError("nobody waits so long")

    with pytest.raises(EncoderUnavailable, match=r"'text' did not answer in 0\.1 s"):
        encode(Silent(), ["a"])


class Held(RecordedHops):
    """Answers no request until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def __call__(self, raw: Sequence[str | bytes]) -> Encoded:
        encoded = await super().__call__(raw)
        await self.go.wait()
        return encoded


PATIENT = SPEC.model_copy(update={"answer_seconds": 600})


def test_keys_take_turns_at_an_encoder() -> None:
    """What is at it came first; of what waits the modest one's is next."""

    async def main() -> list[Sequence[str | bytes]]:
        hops = Held()
        encoders = clients(hops, PATIENT)
        greedy = [
            asyncio.ensure_future(encoders.encode("text", ["g"] * 3, "greedy")) for _ in range(8)
        ]
        await asyncio.sleep(0)
        modest = asyncio.ensure_future(encoders.encode("text", ["m"], "modest"))
        while len(hops.sent) < PASSES_AHEAD:
            await asyncio.sleep(0)
        assert hops.sent == [["g"] * 3] * PASSES_AHEAD
        hops.go.set()
        await asyncio.gather(modest, *greedy)
        return hops.sent

    assert ["m"] in asyncio.run(main())[PASSES_AHEAD : PASSES_AHEAD + 2]


def test_a_cancelled_wait_holds_no_slot() -> None:
    async def main() -> list[Sequence[str | bytes]]:
        hops = Held()
        encoders = clients(hops, PATIENT)
        asked = [
            asyncio.ensure_future(encoders.encode("text", [name] * 3, KEY)) for name in "abcdefgh"
        ]
        while len(hops.sent) < PASSES_AHEAD:
            await asyncio.sleep(0)
        for each in asked[2:6]:  # Two that are at it, and two that wait.
            each.cancel()
        await asyncio.gather(*asked[2:6], return_exceptions=True)
        hops.go.set()
        await asyncio.gather(*asked[:2], *asked[6:])
        return [sent[0] for sent in hops.sent]

    assert asyncio.run(main()) == list("abcdgh")


def test_a_full_encoder_refuses_with_a_time_to_ask_again(with_encoder: Replica) -> None:
    spec = SPEC.model_copy(update={"width": 4, "max_queued": 8})
    args = with_encoder.args.model_copy(update={"encoders": (spec,)})
    parts = with_encoder.parts(args)
    with_encoder.app = create_api(parts)
    assert isinstance(with_encoder.encoders, LetterEncoders)
    with parts.admission.at_encoder("text", "other", 6):
        full = with_encoder.embed(modality=None, input=["a"] * 3)
    assert full.status_code == 429
    assert full.headers["retry-after"] == "1"
    assert "6 items at the encoder of 'text' are in use" in full.text
    assert with_encoder.encoders.asked == []
    assert with_encoder.embed(modality=None, input=["a"] * 3).status_code == 200
    assert parts.admission.encoders["text"].total == 0
