"""Batches of one side: filled, in flight, bounded, and the same in every run."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmcl.contract.encoder import EncoderSpec
from workers.encoders.media import Decoded
from workers.prepare.encoding import BATCH_BYTES, Encoded, SideEncoder

WORDS = EncoderSpec(name="words", kind="synthetic", takes="text", width=2, max_batch=4)
PICTURES = EncoderSpec(name="pictures", kind="synthetic", takes="image", width=2, max_batch=4)


class Recorder:
    """An encoder whose features are the length of a text or the width of an image, and 1."""

    def __init__(self) -> None:
        self.batches: list[list[Decoded]] = []
        self.in_flight = self.most_in_flight = 0
        self.change: Any = lambda features_BF: features_BF
        self.errors: dict[int, str] = {}

    def __call__(self, items: Sequence[Decoded]) -> Callable[[], Encoded]:
        """Begin a batch."""
        self.batches.append(list(items))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

        def wait() -> Encoded:
            self.in_flight -= 1
            sizes = [len(item) if isinstance(item, str) else item.width for item in items]  # type: ignore[union-attr]
            features_BF = np.array([[size, 1] for size in sizes], np.float32)
            return Encoded(self.change(features_BF), self.errors)

        return wait


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_texts_are_sorted_by_length_before_they_are_batched() -> None:
    recorder = Recorder()
    side = SideEncoder(recorder, WORDS, {})
    for number in range(10):
        side.add(key(number), "x" * (1 + number * 7 % 10))
    list(side.finish())
    lengths = [[len(str(item)) for item in batch] for batch in recorder.batches]
    assert lengths == [[10, 9, 8, 7], [6, 5, 4, 3], [2, 1]]
    feature_F = side.feature(key(3))
    assert isinstance(feature_F, np.ndarray)
    assert feature_F.tolist() == [2, 1]


@pytest.mark.parametrize("sent", [None, np.zeros(3, np.float32)])
def test_an_item_that_no_encoder_takes_costs_its_row_alone(sent: np.ndarray | None) -> None:
    recorder = Recorder()
    side = SideEncoder(recorder, WORDS, {})
    side.add(key(0), sent)
    side.add(key(0), sent)
    side.add(key(1), "word")
    list(side.finish())
    assert (side.feature(key(0)), side.rows_done) == ("the decoder sent no item for the encoder", 3)
    assert isinstance(side.feature(key(1)), np.ndarray)


def test_equal_keys_are_encoded_once() -> None:
    recorder = Recorder()
    side = SideEncoder(recorder, WORDS, {})
    for number in range(10):
        side.add(key(number % 2), "x" * (number % 2 + 1))
    list(side.finish())
    assert (len(side.new), len(recorder.batches)) == (2, 1)


def test_images_are_encoded_while_others_are_decoded() -> None:
    recorder = Recorder()
    side = SideEncoder(recorder, PICTURES, {})
    for number in range(9):
        side.add(key(number), Image.new("RGB", (number + 1, 1)))
        assert len(recorder.batches) == (number + 1) // 4
    list(side.finish())
    assert [len(batch) for batch in recorder.batches] == [4, 4, 1]


def test_at_most_two_batches_are_in_flight() -> None:
    recorder = Recorder()
    side = SideEncoder(recorder, WORDS, {})
    for number in range(40):
        side.add(key(number), "x" * (number + 1))
    list(side.finish())
    assert (recorder.most_in_flight, recorder.in_flight) == (2, 0)


def test_a_batch_of_large_images_has_fewer() -> None:
    recorder = Recorder()
    side = SideEncoder(recorder, PICTURES, {})
    wide = BATCH_BYTES // 3 // 1000 // 3
    for number in range(6):
        side.add(key(number), Image.new("RGB", (wide, 1000)))
    list(side.finish())
    assert [len(batch) for batch in recorder.batches] == [3, 3]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "has NaN or infinity"),
        (np.inf, "has NaN or infinity"),
        (0.0, "is all zeros"),
        (1e30, "has length"),
    ],
)
def test_features_that_cannot_be_used_have_a_reason(value: float, reason: str) -> None:
    recorder = Recorder()

    def spoil(features_BF: np.ndarray) -> np.ndarray:
        features_BF[1] = value
        return features_BF

    recorder.change = spoil
    side = SideEncoder(recorder, PICTURES, {})
    for number in range(4):
        side.add(key(number), Image.new("RGB", (5, 1)))
    list(side.finish())
    found = [side.feature(key(number)) for number in range(4)]
    assert reason in str(found[1])
    assert all(isinstance(found[number], np.ndarray) for number in (0, 2, 3))


def test_features_of_another_width_than_declared_are_not_used() -> None:
    recorder = Recorder()
    recorder.change = lambda features_BF: features_BF[:, :1]
    side = SideEncoder(recorder, WORDS, {})
    side.add(key(0), "a")
    list(side.finish())
    assert "1 features of width 1 for 1 items; expected width 2" in str(side.feature(key(0)))


def test_an_item_that_the_encoder_refuses_has_its_reason() -> None:
    recorder = Recorder()
    recorder.errors = {0: "the recording is too short"}
    side = SideEncoder(recorder, WORDS, {})
    side.add(key(0), "long")
    side.add(key(1), "a")
    list(side.finish())
    assert side.feature(key(0)) == "the recording is too short"
    assert isinstance(side.feature(key(1)), np.ndarray)
