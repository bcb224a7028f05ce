"""Texts and numbers of users, and the windows of recordings."""

from typing import Any

import numpy as np
import pytest

from cmcl.contract.encoder import EncoderSpec, Media
from workers.encoders.decoding import decode
from workers.encoders.media import Limits, Raw, window_starts

LIMITS = Limits(bytes=40, pixels=1000, seconds=1)


@pytest.mark.parametrize("raw", ["a red chair", b"a red chair"])
def test_a_text_is_a_string_or_its_utf8(raw: Raw) -> None:
    assert decode("text", raw, LIMITS) == "a red chair"


@pytest.mark.parametrize("raw", [[48.86, 2.35], (48.86, 2.35), "[48.86, 2.35]", b"[48.86, 2.35]"])
def test_numbers_are_a_list_or_its_json(raw: Raw) -> None:
    assert decode("numbers", raw, LIMITS) == (48.86, 2.35)


def test_numbers_of_numpy_are_numbers() -> None:
    raw: Any = np.array([1, 2], np.int32)
    assert decode("numbers", raw, LIMITS) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("takes", "raw", "reason"),
    [
        ("text", "", "is empty"),
        ("text", " \n\t", "is empty or only white space"),
        ("text", "x" * 41, "41 bytes or more; permitted are 40"),
        ("text", "ü" * 21, "42 bytes or more; permitted are 40"),
        ("text", b"x" * 41, "41 bytes; permitted are 40"),
        ("text", b"red\xe9", "not UTF-8: byte 3"),
        ("text", "\ud800", "half of a surrogate pair"),
        ("text", [1.0], "takes texts"),
        ("numbers", "48.86, 2.35", "no JSON list of numbers"),
        ("numbers", '{"a": 1}', "takes lists of numbers"),
        ("numbers", "[" * 40, "no JSON list of numbers"),
        ("numbers", [], "has 0 numbers"),
        ("numbers", [0.0] * 5000, "has 5000 numbers; permitted are 1 to 4096"),
        ("numbers", [1.0, float("nan")], "number 1 is nan"),
        ("numbers", "[1e999]", "number 0 is inf"),
        ("numbers", [True], "element 0 is a bool"),
        ("numbers", [10**400], "number 0 is too large"),
        ("numbers", ["1"], "element 0 is a str"),
        ("image", "a text", "takes the bytes of a file with image"),
        ("audio", [1.0], "takes the bytes of a file with audio"),
        ("video", b"x" * 41, "41 bytes; permitted are 40"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(
    takes: Media, raw: Raw, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(takes, raw, LIMITS)


def test_limits_are_those_of_the_declaration() -> None:
    spec = EncoderSpec(
        name="x", kind="synthetic", takes="video", width=1, max_item_bytes=5, max_pixels=6,
        max_seconds=7, window_seconds=2, windows=3, frames=4,
    )  # fmt: skip
    assert Limits.from_spec(spec) == Limits(5, 6, 7, window_seconds=2, windows=3, frames=4)


@pytest.mark.parametrize(
    ("length", "window", "windows", "starts"),
    [
        (10, 2, 1, [4]),
        (10, 2, 2, [0, 8]),
        (10, 2, 3, [0, 4, 8]),
        (10, 6, 3, [0, 2, 4]),
        (2, 2, 3, [0]),
        (1, 2, 3, [0]),
        (10, 2, None, [0, 2, 4, 6, 8]),
        (10, 4, None, [0, 3, 6]),
        (2, 2, None, [0]),
    ],
)
def test_windows_are_evenly_spaced(
    length: float, window: float, windows: int | None, starts: list[float]
) -> None:
    assert window_starts(length, window, windows) == starts


def test_a_recording_of_too_many_windows_is_refused_before_any_is_cut() -> None:
    with pytest.raises(ValueError, match="has 4097 windows; permitted are 4096"):
        window_starts(8193, 2, None)
