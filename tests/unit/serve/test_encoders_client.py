"""The encoders as a replica sees them: bounds, parts, and errors that name an item."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from tests.fakes.encoders import RecordedHops
from workers.serve.encoders.client import EncoderClients
from workers.serve.encoders.frozen import Encoded, Unreadable
from workers.serve.encoders.port import EncoderInfo, EncoderUnavailable, UnreadableItem
from workers.serve.encoders.spec import EncoderSpec

SPEC = EncoderSpec(
    modality="text",
    kind="synthetic",
    width=2,
    max_batch=3,
    max_queued=8,
    max_item_bytes=10,
    answer_seconds=0.1,
)


def clients(hops: RecordedHops, spec: EncoderSpec = SPEC) -> EncoderClients:
    return EncoderClients([spec], {spec.modality: hops})


def encode(hops: RecordedHops, raw: Sequence[str | bytes]) -> list[list[float]]:
    rows: list[list[float]] = asyncio.run(clients(hops).encode("text", raw)).tolist()
    return rows


def test_a_large_request_goes_in_parts_and_comes_back_in_order() -> None:
    hops = RecordedHops()
    raw = ["a", "bb", "ccc", "dddd", "e", "ff", "ggg"]
    assert encode(hops, raw) == [[len(each)] * 2 for each in raw]
    assert hops.sent == [raw[:3], raw[3:6], raw[6:]]


def test_no_items_have_no_features() -> None:
    assert asyncio.run(clients(RecordedHops()).encode("text", [])).shape == (0, 2)


def test_what_stands_in_front_of_a_modality_is_told() -> None:
    infos = clients(RecordedHops()).infos
    assert infos == {"text": EncoderInfo(name="synthetic", raw="text", width=2)}


def test_a_modality_without_an_encoder_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        asyncio.run(clients(RecordedHops()).encode("image", [b"x"]))


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


def test_a_full_encoder_is_unavailable_until_there_is_room() -> None:
    class Held(RecordedHops):
        def __init__(self) -> None:
            super().__init__()
            self.go = asyncio.Event()

        async def __call__(self, raw: Sequence[str | bytes]) -> Encoded:
            await self.go.wait()
            return await super().__call__(raw)

    async def main() -> None:
        hops = Held()
        encoders = clients(hops, SPEC.model_copy(update={"answer_seconds": 10}))
        first = asyncio.ensure_future(encoders.encode("text", ["a"] * 6))
        await asyncio.sleep(0)
        with pytest.raises(EncoderUnavailable, match=r"6 items waiting, and 3 more .* limit of 8"):
            await encoders.encode("text", ["b"] * 3)
        hops.go.set()
        await first
        assert (await encoders.encode("text", ["b"] * 3)).shape == (3, 2)

    asyncio.run(main())
