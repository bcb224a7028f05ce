"""Decoded items of users, the limits of decoding them, and how they pass between processes.

Shapes: W windows, N samples of a window, T frames of a window, Y × X pixels of a frame.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from cmcl.contract.encoder import EncoderSpec

Raw = str | bytes | Sequence[float]
# Windows of one recording that become items: those of an hour, of 0.9 s each.
MOST_PARTS = 4096


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
    """Limits of one item, and which windows of a recording are kept. `windows` None: as many as cover it."""

    bytes: int
    pixels: int
    seconds: float
    window_seconds: float | None = None
    windows: int | None = 1
    frames: int = 8

    @classmethod
    def from_spec(cls, spec: EncoderSpec) -> Self:
        """Return the limits and windows of a declaration."""
        return cls(
            bytes=spec.max_item_bytes,
            pixels=spec.max_pixels,
            seconds=spec.max_seconds,
            window_seconds=spec.window_seconds,
            windows=spec.windows,
            frames=spec.frames,
        )


def window_starts(length: float, window: float, windows: int | None) -> list[float]:
    """Starts of evenly spaced windows, in the unit of `length`; None: of the fewest without a gap between them.

    Several cover the item from its start to its end, a single one is cut from its middle. An item that is no
    longer than a window is one window. Raises ValueError for more than `MOST_PARTS`.
    """
    spare = length - window
    if spare <= 0:
        return [0.0]
    if windows is None:
        windows = math.ceil(length / window)
        if windows > MOST_PARTS:
            raise ValueError(
                f"the recording has {windows} windows; permitted are {MOST_PARTS}: send it in pieces"
            )
    if windows == 1:
        return [spare / 2]
    return [spare * index / (windows - 1) for index in range(windows)]


Item = Decoded | np.ndarray
"""A decoded item, or for a modality without an encoder its feature: float32 of shape (width,)."""
Parts = tuple[dict[str, Any], list[bytes | memoryview]]


def packed(item: Item) -> Parts:
    """Return an item as a header, which has the number of its bytes, and the bytes."""
    header: dict[str, Any]
    parts: list[bytes | memoryview]
    if isinstance(item, str):
        header, parts = {"kind": "text"}, [item.encode()]
    elif isinstance(item, Image.Image):
        header, parts = {"kind": "image", "size": item.size}, [item.convert("RGB").tobytes()]
    elif isinstance(item, Audio):
        header, parts = _arrays("audio", item.samples_WN.astype("<f4", copy=False))
        header["rate"] = item.rate
    elif isinstance(item, Video):
        times_WT = item.seconds_WT.astype("<f8", copy=False)
        header, parts = _arrays("video", item.frames_WTYXC, times_WT)
    elif isinstance(item, np.ndarray):
        header, parts = _arrays("feature", item.astype("<f4", copy=False))
    else:
        header, parts = _arrays("numbers", np.array(item, "<f8"))
    return {**header, "bytes": sum(len(part) for part in parts)}, parts


def _arrays(kind: str, *arrays: np.ndarray) -> Parts:
    shapes = [list(array.shape) for array in arrays]
    plain = [np.ascontiguousarray(array).data.cast("B") for array in arrays]
    return {"kind": kind, "shapes": shapes}, list(plain)


def unpacked(header: Mapping[str, Any], body: memoryview) -> Item:
    """Return the item of `packed`. Raises ValueError or LookupError if header and bytes do not match."""
    kind = header["kind"]
    if kind == "text":
        return str(body, "utf-8")
    if kind == "image":
        width, height = header["size"]
        return Image.frombytes("RGB", (int(width), int(height)), bytes(body))
    shapes = [tuple(int(size) for size in shape) for shape in header["shapes"]]
    if kind == "audio":
        (samples,) = shapes
        return Audio(np.frombuffer(body, "<f4").reshape(samples), int(header["rate"]))
    if kind == "video":
        frames, times = shapes
        size = int(np.prod(frames, dtype=np.int64))
        return Video(
            np.frombuffer(body[:size], np.uint8).reshape(frames),
            np.frombuffer(body[size:], "<f8").reshape(times),
        )
    values = np.frombuffer(body, "<f4" if kind == "feature" else "<f8")
    return values if kind == "feature" else tuple(values.tolist())
