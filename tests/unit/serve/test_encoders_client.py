"""The encoders as a replica sees them: bounds, parts, identity, and errors that name an item."""

import asyncio
import logging
from collections.abc import Generator, Sequence
from typing import Any, Self, cast

import numpy as np
import pytest

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from tests.fakes.encoders import RecordedHops
from tests.fakes.letter_encoder import IDENTITY, LETTERS, LetterEncoders
from tests.unit.serve.conftest import Replica
from workers.encoders.port import EncoderMismatch
from workers.serve.api.app import create_api
from workers.serve.encoders.client import PASSES_AHEAD, EncoderClient
from workers.serve.encoders.deployment import Handle, encoders_behind
from workers.serve.encoders.port import (
    Encoded,
    EncoderTimeout,
    Raw,
    UnreadableItem,
)

SPEC = EncoderSpec(
    name="words",
    kind="synthetic",
    takes="text",
    width=2,
    max_batch=3,
    max_queued=8,
    max_item_bytes=10,
    answer_seconds=0.1,
)
NUMBERS = SPEC.model_copy(update={"takes": "numbers"})
IMAGES = SPEC.model_copy(update={"takes": "image"})
OTHER = IDENTITY.model_copy(update={"model": "another"})

KEY = "anna"


def client(hops: RecordedHops, spec: EncoderSpec = SPEC) -> EncoderClient:
    return EncoderClient(spec, hops, hops.parts)


def encode(
    hops: RecordedHops,
    raw: Sequence[Raw],
    spec: EncoderSpec = SPEC,
    expected: EncoderIdentity | None = None,
) -> list[list[float]]:
    encoding = client(hops, spec).encode(raw, KEY, expected)
    rows: list[list[float]] = asyncio.run(encoding).tolist()
    return rows


def test_a_large_request_is_sent_in_parts_and_returned_in_order() -> None:
    hops = RecordedHops()
    raw = ["a", "bb", "ccc", "dddd", "e", "ff", "ggg"]
    assert encode(hops, raw, expected=IDENTITY) == [[len(each)] * 2 for each in raw]
    assert hops.sent == [raw[:3], raw[3:6], raw[6:]]
    assert hops.expected == [IDENTITY] * 3


def test_an_unreadable_item_is_named_by_its_place_in_the_request() -> None:
    class SecondPartIsBad(RecordedHops):
        async def __call__(self, raw: Sequence[Raw], expected: EncoderIdentity | None) -> Encoded:
            encoded = await super().__call__(raw, expected)
            return UnreadableItem(1, "no image") if "d" in raw else encoded

    with pytest.raises(UnreadableItem, match="item 4: no image") as caught:
        encode(SecondPartIsBad(), ["a", "b", "c", "d", "e"])
    assert caught.value.index == 4


@pytest.mark.parametrize(
    ("spec", "fine", "item", "reason"),
    [
        (SPEC, "fine", "", "it is empty"),
        (SPEC, "fine", "é" * 6, "it has 12 bytes; permitted are 1 to 10"),
        (SPEC, "fine", b"bytes", "takes a text, not a file"),
        (SPEC, "fine", [1.0], "takes a text, not numbers"),
        (SPEC, "fine", "\ud800", "surrogate"),
        (NUMBERS, [1.0], [], "it is empty"),
        (NUMBERS, [1.0], "1", "takes a list of numbers, not a text"),
        (IMAGES, b"a", b"a" * 11, "it has 11 bytes; permitted are 1 to 10"),
        (IMAGES, b"a", "a", "takes an image, not a text"),
    ],
)
def test_items_that_no_encoder_could_read_are_not_sent_to_it(
    spec: EncoderSpec, fine: Raw, item: Raw, reason: str
) -> None:
    hops = RecordedHops()
    with pytest.raises(UnreadableItem, match=reason) as caught:
        encode(hops, [fine, item], spec)
    assert (caught.value.index, hops.sent) == (1, [])


def test_an_encoder_that_does_not_answer_in_time_is_unavailable() -> None:
    class Silent(RecordedHops):
        async def __call__(self, raw: Sequence[Raw], expected: EncoderIdentity | None) -> Encoded:
            await asyncio.sleep(60)
            raise AssertionError("the limit is 0.1 s")

    with pytest.raises(EncoderTimeout, match=r"'words' gave no result within 0\.1 s"):
        encode(Silent(), ["a"])
    with pytest.raises(EncoderTimeout, match=r"'words' gave no result within 0\.1 s"):
        asyncio.run(client(Silent()).check(IDENTITY))


def test_a_mismatch_is_raised_with_its_reason_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where a version of another model, which the encoder is right for, is asked in between."""
    hops = RecordedHops()
    encoder = client(hops)

    async def ask(expected: EncoderIdentity) -> None:
        hops.answer = EncoderMismatch("model is 'a', expected 'b'") if expected == OTHER else None
        await encoder.encode(["a"], KEY, expected)

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(EncoderMismatch, match="model is 'a', expected 'b'"):
                asyncio.run(ask(OTHER))
            asyncio.run(ask(IDENTITY))
    (record,) = caplog.records
    assert "encoder 'words'" in record.message
    assert "model is 'a', expected 'b'" in record.message


def test_a_check_sends_no_items() -> None:
    hops = RecordedHops()
    asyncio.run(client(hops).check(IDENTITY))
    assert (hops.sent, hops.expected) == ([[]], [IDENTITY])
    with pytest.raises(EncoderMismatch, match="width"):
        asyncio.run(client(RecordedHops(EncoderMismatch("width"))).check(IDENTITY))


class Held(RecordedHops):
    """Answers no request until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def __call__(self, raw: Sequence[Raw], expected: EncoderIdentity | None) -> Encoded:
        encoded = await super().__call__(raw, expected)
        await self.go.wait()
        return encoded


LONG_TIMEOUT = SPEC.model_copy(update={"answer_seconds": 600})


def test_keys_take_turns_at_an_encoder() -> None:
    """The running item came first; of the waiting ones that of the owner with fewer items is next."""

    async def main() -> list[list[Raw]]:
        hops = Held()
        encoder = client(hops, LONG_TIMEOUT)

        def ask(raw: list[str], key: str) -> "asyncio.Future[np.ndarray]":
            return asyncio.ensure_future(encoder.encode(raw, key, None))

        greedy = [ask(["g"] * 3, "greedy") for _ in range(8)]
        await asyncio.sleep(0)
        modest = ask(["m"], "modest")
        while len(hops.sent) < PASSES_AHEAD:
            await asyncio.sleep(0)
        assert hops.sent == [["g"] * 3] * PASSES_AHEAD
        hops.go.set()
        await asyncio.gather(modest, *greedy)
        return hops.sent

    assert ["m"] in asyncio.run(main())[PASSES_AHEAD : PASSES_AHEAD + 2]


def test_a_cancelled_wait_holds_no_slot() -> None:
    async def main() -> list[Raw]:
        hops = Held()
        encoder = client(hops, LONG_TIMEOUT)
        asked = [
            asyncio.ensure_future(encoder.encode([name] * 3, KEY, None)) for name in "abcdefgh"
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


class UnansweredResponse:
    """A response of Serve that never comes. It is its own handle."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.is_cancelled = False
        self.encode = self

    def remote(self, *_: object) -> Self:
        return self

    def __await__(self) -> Generator[Any, None, Encoded]:
        self.waits.set()
        return asyncio.get_running_loop().create_future().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


def test_the_process_is_told_that_a_wait_for_it_was_cancelled() -> None:
    async def main() -> None:
        response = UnansweredResponse()
        encoder = encoders_behind([LONG_TIMEOUT], {"words": cast("Handle", response)})["words"]
        asked = asyncio.ensure_future(encoder.encode(["a"], KEY, None))
        await response.waits.wait()
        asked.cancel()
        await asyncio.wait([asked])
        assert response.is_cancelled

    asyncio.run(main())


def test_a_full_encoder_refuses_with_a_time_to_ask_again(with_encoder: Replica) -> None:
    spec = LETTERS.model_copy(update={"max_queued": 8})
    args = with_encoder.args.model_copy(update={"encoders": (spec,)})
    parts = with_encoder.parts(args)
    with_encoder.app = create_api(parts)
    assert isinstance(with_encoder.encoders, LetterEncoders)
    with parts.admission.at_encoder("letters", "other", 6):
        full = with_encoder.embed(modality=None, input=["a"] * 3)
    assert full.status_code == 429
    assert full.headers["retry-after"] == "1"
    assert "6 items at encoder 'letters' are in use" in full.text
    assert with_encoder.encoders.asked == []
    assert with_encoder.embed(modality=None, input=["a"] * 3).status_code == 200
    assert parts.admission.encoders["letters"].total == 0
