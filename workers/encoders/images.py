"""Decode images, which are not trusted.

The EXIF orientation is applied. Transparency is dropped, and the pixels
below it stay. Of 16 bits the upper 8 are kept. Of an animation the first frame is read.
"""

import io
import re
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Common formats. Others of Pillow's call programs, or are parsed by code that is little reviewed.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

_MOST_FRAMES = 1000
# Of a GIF: an image, an extension, or the end.
_BLOCK = re.compile(rb"[,!;]")
_MOST_BLOCKS = 10 * _MOST_FRAMES

# Errors of Pillow for files that are cut off or damaged. Its parser of EXIF raises most of them.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)


def read_image(data: bytes, max_pixels: int) -> Image.Image:
    """Return the image in RGB. Raises ValueError with a sentence for the user."""
    try:
        with warnings.catch_warnings():
            # Pillow warns about many pixels, which are counted below, and about what it skips in a
            # damaged file, which the user need not see.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own limit is above every permitted one
        raise ValueError(
            f"the image has many more pixels than the {max_pixels} that are permitted"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"no image that can be read: permitted are {', '.join(_FORMATS)}"
        ) from error
    except _DAMAGED as error:
        raise ValueError(f"the image is damaged: {error}") from error
    _check_size(image, max_pixels)
    _check_frames(image, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(_rgb(image))
    except _DAMAGED as error:
        raise ValueError(f"the image is damaged: {error}") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ValueError(
            f"the image has {image.width} x {image.height} pixels; permitted are {max_pixels} in all"
        )


def _check_frames(image: Image.Image, data: bytes) -> None:
    frames = _gif_frames(data) if image.format == "GIF" else getattr(image, "n_frames", 1)
    if frames > _MOST_FRAMES:
        raise ValueError(
            f"the image is an animation of more than {_MOST_FRAMES} frames, of which only the first "
            "is read: send that one, or a video"
        )


def _gif_frames(data: bytes) -> int:
    """Frames of a GIF, counted to one more than is permitted. Raises ValueError.

    Pillow counts them by preparing each one, which takes seconds for a file of a few megabytes.
    """
    frames, at = 0, 13 + _colours(data, 10)
    for _ in range(_MOST_BLOCKS):
        # Other bytes between blocks are skipped, as Pillow does.
        block = _BLOCK.search(data, at)
        if block is None or block[0] == b";" or frames > _MOST_FRAMES:
            return frames
        at = block.start()
        if block[0] == b"!":  # an extension: its label, its parts
            at = _after_parts(data, at + 2)
        elif at + 10 <= len(data):  # an image: its place and size, its colours, its parts
            frames += 1
            at = _after_parts(data, at + 11 + _colours(data, at + 9))
        else:
            return frames
    raise ValueError(f"the image has more than {_MOST_BLOCKS} blocks")


def _colours(data: bytes, flags: int) -> int:
    """Bytes of the table of colours that the flags at this place announce."""
    return 3 << (data[flags] & 7) + 1 if data[flags] & 0x80 else 0


def _after_parts(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1


def _rgb(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    # Pillow would clip 16 bits at 255: a depth map would become white.
    upper = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
    converted = Image.fromarray(upper).convert("RGB")
    converted.info["exif"] = image.info.get("exif", b"")
    return converted
