"""Decode a raw item in a child, and pass it to the parent as a header and bytes.

Shapes as in `workers.encoders.media`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from cmcl.contract.encoder import EncoderSpec
from workers.encoders.decoding import decode
from workers.encoders.media import Audio, Decoded, Limits, Video

Item = Decoded | np.ndarray
"""A decoded item, or for a modality without an encoder its feature: float32 of shape (width,)."""
Parts = tuple[dict[str, Any], list[bytes | memoryview]]


def decode_item(spec: EncoderSpec, raw: bytes) -> Decoded:
    """Decode one raw item. Raises ValueError with a sentence for the user."""
    if spec.takes == "numbers":
        return decode(spec.takes, np.frombuffer(raw, "<f8").tolist(), Limits.from_spec(spec))
    return decode(spec.takes, raw, Limits.from_spec(spec))


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
