"""Decoded items of users, and the limits of decoding them.

Shapes: W windows, N samples of a window, T frames of a window, Y × X pixels of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from cmcl.contract.encoder import EncoderSpec

Raw = str | bytes | Sequence[float]


class DecoderMissing(RuntimeError):
    """A package that decodes this kind of file is not installed. The file may be sound."""


@dataclass(frozen=True, eq=False)
class Audio:
    """Windows of one recording, mixed to mono, at the recording's own rate."""

    samples_WN: npt.NDArray[np.float32]
    rate: int


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of windows of one recording, RGB, and the time of each."""

    frames_WTYXC: npt.NDArray[np.uint8]
    seconds_WT: npt.NDArray[np.float64]


Decoded = str | Image.Image | Audio | Video | tuple[float, ...]


@dataclass(frozen=True)
class Limits:
    """Limits of one item, and which parts of a recording are kept."""

    bytes: int
    pixels: int
    seconds: float
    window_seconds: float | None = None
    windows: int = 1
    frames: int = 8

    @classmethod
    def from_spec(cls, spec: EncoderSpec) -> Self:
        """The limits and windows of a declaration."""
        return cls(
            bytes=spec.max_item_bytes,
            pixels=spec.max_pixels,
            seconds=spec.max_seconds,
            window_seconds=spec.window_seconds,
            windows=spec.windows,
            frames=spec.frames,
        )


def window_starts(length: float, window: float, windows: int) -> list[float]:
    """Starts of evenly spaced windows, in the unit of `length`.

    Several cover the item from its start to its end, a single one is cut from its middle. An item that is no
    longer than a window is one window.
    """
    spare = length - window
    if spare <= 0:
        return [0.0]
    if windows == 1:
        return [spare / 2]
    return [spare * index / (windows - 1) for index in range(windows)]
