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


# Generated items, whose features are the fingerprint of an encoder.

_TEXTS = (
    "a",
    "A red chair stands beside a blue table.",
    "the river floods the town",
    "Zürich, São Paulo, Ελλάδα, Київ, 東京, القاهرة 🙂",
    "3.14159 + 2.71828 = 5.85987; x[i] != None",
    "UPPER CASE, lower case, and\ttabs\nin two lines",
    "word " * 100,
    "The quick brown fox jumps over the lazy dog. " * 40,
)
_NUMBERS = (
    (0.0, 0.0),
    (48.8566, 2.3522),
    (-33.8688, 151.2093),
    (40.7128, -74.006),
    (35.6762, 139.6503),
    (-54.8019, -68.303),
    (78.2232, 15.6267),
    (1.3521, 103.8198),
)
_SIZES = ((64, 64), (96, 64), (64, 96), (224, 224), (300, 200), (200, 300), (33, 57), (400, 400))


def generated_items(spec: EncoderSpec) -> list[Decoded]:
    """Return eight items of the kind that the encoder takes, the same on every machine and in every release."""
    if spec.takes == "text":
        return list(_TEXTS)
    if spec.takes == "numbers":
        return list(_NUMBERS)
    if spec.takes == "image":
        return [Image.fromarray(_picture(index, *size)) for index, size in enumerate(_SIZES)]
    if spec.takes == "audio":
        return [_sound(spec, index) for index in range(8)]
    return [_clip(spec, index) for index in range(8)]


def _picture(index: int, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw gradients, a disc, stripes and noise in changing colours, in whole numbers."""
    y, x = np.mgrid[:height, :width]
    red = (x * 255 // width + index * 32) % 256
    green = ((x // (4 + index) + y // (4 + index)) % 2) * 255
    disc = (2 * x - width) ** 2 + (2 * y - height) ** 2 < min(width, height) ** 2 // (1 + index % 3)
    blue = np.where(disc, 230 - index * 20, y * 255 // height)
    picture = np.stack([red, green, blue], axis=-1)
    if index % 2:
        # The only generator of NumPy that is guaranteed to keep its stream.
        picture = (picture + np.random.RandomState(index).randint(0, 64, picture.shape)) % 256
    return picture.astype(np.uint8)


def _sound(spec: EncoderSpec, index: int) -> Audio:
    """Return chords and noise, as long as a window, at several rates."""
    rate = (16_000, 22_050, 44_100, 48_000)[index % 4]
    longest = spec.window_seconds or min(4.0, spec.max_seconds)
    samples = max(1, int(rate * min(longest, (0.5, 1.0, 2.0, 4.0, 1.5, 3.0, 8.0, 30.0)[index])))
    windows = spec.windows if samples == int(rate * longest) and spec.window_seconds else 1
    time_N = np.arange(samples) / rate
    noise = np.random.RandomState(index)
    rows = [
        0.3 * np.sin(2 * np.pi * 110 * (1 + index + window) * time_N)
        + 0.2 * np.sin(2 * np.pi * 233 * (1 + index) * time_N)
        + 0.05 * (index % 3) * noise.standard_normal(samples)
        for window in range(windows)
    ]
    return Audio(np.stack(rows).astype(np.float32), rate)


def _clip(spec: EncoderSpec, index: int) -> Video:
    """Return a video of a moving picture."""
    width, height = ((96, 64), (64, 64), (64, 96), (128, 96))[index % 4]
    picture = _picture(index, width, height)
    frames = [
        [
            np.roll(picture, (index + 1) * (4 * window + frame), axis=1)
            for frame in range(spec.frames)
        ]
        for window in range(spec.windows)
    ]
    seconds = np.arange(spec.windows * spec.frames, dtype=np.float64) / 4
    return Video(np.array(frames, np.uint8), seconds.reshape(spec.windows, spec.frames))
