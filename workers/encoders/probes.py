"""Generated items, whose features are the fingerprint of an encoder."""

from typing import Any

import numpy as np
from PIL import Image

from cmcl.contract.encoder import EncoderSpec
from workers.encoders.media import Audio, Decoded, Video

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
