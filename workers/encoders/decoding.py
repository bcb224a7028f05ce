"""Decode raw items of users: texts, numbers and images; recordings in `recordings.py`.

The bytes are not trusted. Sizes are checked in the header, before anything is decoded, and counted while
it is decoded, because headers can be wrong. Preparation decodes in a bounded child process.
"""

import io
import json
import math
import struct
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from cmcl.contract.encoder import EncoderSpec, Media
from workers.encoders.media import Audio, Decoded, Limits, Raw, Video
from workers.encoders.parts import Part
from workers.encoders.recordings import audio_parts, read_audio, read_video, resample, video_parts

_MOST_NUMBERS = 4096

# Version of the conversion of an image file to RGB. It decides features, so it is part of the identity of encoders of
# images.
IMAGE_DECODING = 1
# Common formats. Others of Pillow's call programs, or are parsed by code that is little reviewed.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_THUMBNAIL = (96, 96)
# With these, an MP3 has less than 9 KB whatever the sound is.
_EXCERPT_SECONDS, _EXCERPT_RATE = 3, 16_000
# Errors of Pillow for files that are cut off or damaged. Its parser of EXIF raises most of them.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)


def decode(takes: Media, raw: Raw, limits: Limits) -> Decoded:
    """Decode one item. Raises ValueError with a sentence for the user, and DecoderMissing.

    Texts and numbers may also come as UTF-8 bytes; numbers then are a JSON list.
    """
    if isinstance(raw, str | bytes):
        _check_size(raw, limits)
    if takes == "text":
        return _text(raw)
    if takes == "numbers":
        return _numbers(raw)
    if not isinstance(raw, bytes):
        raise _wrong_type(f"the bytes of a file with {takes}")
    if takes == "image":
        return read_image(raw, limits.pixels)
    return read_audio(raw, limits) if takes == "audio" else read_video(raw, limits)


def decode_item(spec: EncoderSpec, raw: bytes) -> Decoded:
    """Decode one raw item. Raises ValueError with a sentence for the user."""
    if spec.takes == "numbers":
        return decode(spec.takes, np.frombuffer(raw, "<f8").tolist(), Limits.from_spec(spec))
    return decode(spec.takes, raw, Limits.from_spec(spec))


def thumbnail(item: Decoded) -> bytes:
    """Return an image, or the middle frame of a video, as a JPEG of at most 96 pixels a side; of a sound, three seconds
    from its middle, as an MP3.
    """
    if isinstance(item, Audio):
        return _excerpt(item)
    if isinstance(item, Video):
        frames_TYXC = item.frames_WTYXC[len(item.frames_WTYXC) // 2]
        item = Image.fromarray(frames_TYXC[len(frames_TYXC) // 2])
    if not isinstance(item, Image.Image):
        return b""
    small, file = item.convert("RGB"), io.BytesIO()
    small.thumbnail(_THUMBNAIL, reducing_gap=2)
    small.save(file, "JPEG", quality=70, optimize=True)
    return file.getvalue()


def _excerpt(sound: Audio) -> bytes:
    import soundfile

    samples_N = sound.samples_WN[len(sound.samples_WN) // 2]
    before = max(0, len(samples_N) - _EXCERPT_SECONDS * sound.rate) // 2
    part_N = samples_N[before : before + _EXCERPT_SECONDS * sound.rate]
    file = io.BytesIO()
    soundfile.write(
        file,
        resample(part_N, sound.rate, _EXCERPT_RATE),
        _EXCERPT_RATE,
        format="MP3",
        compression_level=0.9,
    )
    return file.getvalue()


def decode_parts(spec: EncoderSpec, raw: bytes) -> Iterator[Part[Audio] | Part[Video]]:
    """Yield the windows that cover a recording. Raises ValueError with a sentence for the user."""
    limits = replace(Limits.from_spec(spec), windows=None)
    _check_size(raw, limits)
    yield from (audio_parts if spec.takes == "audio" else video_parts)(raw, limits)


def _wrong_type(takes: str) -> ValueError:
    """Return the error of an item of another type. Not a TypeError, which would be a bug in this code."""
    return ValueError(f"the encoder takes {takes}")


def _check_size(raw: str | bytes, limits: Limits) -> None:
    if not raw:
        raise ValueError("the item is empty")
    # A str of more characters has more bytes: it is not encoded to count them.
    size = len(raw)
    if isinstance(raw, str) and size <= limits.bytes:
        try:
            size = len(raw.encode())
        except UnicodeEncodeError as error:
            raise ValueError("the text has half of a surrogate pair") from error
    if size > limits.bytes:
        raise ValueError(
            f"the item has {size} bytes or more; permitted are {limits.bytes}"
            if isinstance(raw, str)
            else f"the item has {size} bytes; permitted are {limits.bytes}"
        )


def _text(raw: Raw) -> str:
    if isinstance(raw, bytes):
        try:
            raw = raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the text is not UTF-8: byte {error.start} is invalid") from error
    if not isinstance(raw, str):
        raise _wrong_type("texts")
    if not raw.strip():
        raise ValueError("the text is empty or only white space")
    return raw


def _numbers(raw: Raw) -> tuple[float, ...]:
    values: object = raw
    if isinstance(raw, str | bytes):
        try:
            values = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                "the item is no JSON list of numbers, such as [48.86, 2.35]"
            ) from error
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise _wrong_type("lists of numbers, such as [48.86, 2.35]")
    if not 1 <= len(values) <= _MOST_NUMBERS:
        raise ValueError(f"the item has {len(values)} numbers; permitted are 1 to {_MOST_NUMBERS}")
    return tuple(_number(index, value) for index, value in enumerate(values))


def _number(index: int, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise _wrong_type(f"lists of numbers; element {index} is a {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError(f"number {index} is too large") from error
    if not math.isfinite(number):
        raise ValueError(f"number {index} is {number}; permitted are finite numbers")
    return number


def read_image(data: bytes, max_pixels: int) -> Image.Image:
    """Return the image in RGB, as a browser shows it on a white page. Raises ValueError with a sentence for the user.

    The EXIF orientation is applied, and transparency is put on white. CMYK is converted with the profile of the file.
    Of 16 bits the upper 8 are kept. Of an animation the first frame is read.
    """
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
    _check_pixels(image, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image, data)
    except _DAMAGED as error:
        raise ValueError(f"the image is damaged: {error}") from error


def is_flat(image: Image.Image) -> bool:
    """Return whether an image has one colour."""
    # It ends at the first pixel of another one.
    return image.getcolors(1) is not None


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ValueError(
            f"the image has {image.width} x {image.height} pixels; permitted are {max_pixels} in all"
        )


def _rgb(image: Image.Image, data: bytes) -> Image.Image:
    if image.mode == "CMYK":
        return _rgb_of_cmyk(image)
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.format == "PNG":
        _scale_transparent_colour(image, depth=data[24])
    # The first frame of a GIF may cover a part of the picture; the rest is transparent.
    box = (0, 0, *image.size)
    covered = getattr(image, "dispose_extent", box) if image.format == "GIF" else box
    if not image.has_transparency_data and covered == box:
        return image.convert("RGB")
    frame = (image if covered == box else image.crop(covered)).convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(frame, covered[:2], frame)
    return page


def _rgb_of_cmyk(image: Image.Image) -> Image.Image:
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(image.info.get("icc_profile", b""))),
            ImageCms.createProfile("sRGB"),
            "CMYK",
            "RGB",
        )
    except (OSError, ImageCms.PyCMSError):
        # Without a sound profile, browsers convert by the inks alone, too.
        return image.convert("RGB")
    return transform.apply(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the upper 8 of 16 bits. Pillow would clip them at 255: a depth map would become white."""
    pixels_YX = np.asarray(image).astype(np.uint32)
    upper = Image.fromarray((pixels_YX >> 8).astype(np.uint8))
    if (colour := image.info.get("transparency")) is not None:
        upper.putalpha(Image.fromarray(np.where(pixels_YX == colour, 0, 255).astype(np.uint8)))
    return upper


def _scale_transparent_colour(image: Image.Image, depth: int) -> None:
    """Convert the colour of a PNG that is transparent to 8 bits, as Pillow did with the pixels."""
    colour = image.info.get("transparency")
    if image.mode == "L" and depth in (2, 4) and colour is not None:
        image.info["transparency"] = colour * (255 // ((1 << depth) - 1))
    if image.mode == "RGB" and depth == 16 and colour is not None:
        image.info["transparency"] = tuple(value >> 8 for value in colour)
