"""Bytes of users are decoded to images, or rejected with a reason."""

import contextlib
import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.unit.encoders.conftest import Bounded
from workers.encoders.media import read_image

PIXELS = 10_000


def picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_common_formats_are_read_as_rgb(kind: str) -> None:
    image = read_image(picture(kind), PIXELS)
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_any_depth_and_transparency_becomes_rgb(mode: str) -> None:
    assert read_image(picture("PNG", mode), PIXELS).mode == "RGB"


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ValueError, match="has 200 x 100 pixels; permitted are 10000 in all"):
        read_image(picture("PNG", size=(200, 100)), PIXELS)


@pytest.mark.parametrize("data", [b"", b"a text", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_a_file_that_is_no_image_is_refused_with_the_permitted_formats(data: bytes) -> None:
    with pytest.raises(ValueError, match="permitted are JPEG, PNG"):
        read_image(data, PIXELS)


def test_half_an_image_is_damaged() -> None:
    data = picture("JPEG")
    with pytest.raises(ValueError, match="the image is damaged"):
        read_image(data[: len(data) // 2], PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_every_unreadable_image_is_a_client_error(kind: str) -> None:
    draws = random.Random(0)
    whole = picture(kind)
    for _ in range(300):
        data = bytearray(whole[: draws.randrange(len(whole) // 2, len(whole) + 1)])
        for _ in range(draws.randrange(8)):
            data[draws.randrange(len(data))] = draws.randrange(256)
        # Any other error, also a warning, fails the test: it would be answered with 500.
        with contextlib.suppress(ValueError):
            assert read_image(bytes(data), PIXELS).mode == "RGB"


def test_the_orientation_of_exif_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    file = io.BytesIO()
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste("black", (0, 0, 20, 20))
    picture.save(file, "JPEG", exif=exif)
    pixels = np.asarray(read_image(file.getvalue(), PIXELS).convert("L"))
    assert pixels.shape == (40, 20)
    assert pixels[:16].max() < 50
    assert pixels[24:].min() > 200


def test_the_upper_half_of_16_bits_is_kept() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 256, 40_000, 65_535]], np.uint16)).save(file, "PNG")
    assert np.asarray(read_image(file.getvalue(), PIXELS))[0, :, 0].tolist() == [0, 1, 156, 255]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_read(kind: str) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(file.getvalue(), PIXELS).getpixel((4, 4)) == (255, 0, 0)


def test_an_animation_of_10000_frames_is_refused_at_small_cost(bounded: Bounded) -> None:
    file = io.BytesIO()
    Image.new("P", (2, 2)).save(file, "GIF")
    whole = file.getvalue()
    start = 13 + (3 << (whole[10] & 7) + 1)
    data = whole[:start] + whole[start:-1] * 10_000 + whole[-1:]
    with bounded(1, 20), pytest.raises(ValueError, match="animation of more than 1000 frames"):
        read_image(data, PIXELS)


@pytest.mark.parametrize("filling", [b"\0", b"!\xff\0"])
def test_a_gif_of_many_blocks_costs_little(filling: bytes, bounded: Bounded) -> None:
    file = io.BytesIO()
    Image.new("P", (2, 2)).save(file, "GIF")
    data = file.getvalue()[:-1] + filling * (8_000_000 // len(filling))
    with bounded(1, 40), contextlib.suppress(ValueError):
        read_image(data, PIXELS)


def test_a_png_of_60000_by_60000_pixels_is_refused_at_small_cost(bounded: Bounded) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    with bounded(1, 20), pytest.raises(ValueError, match="many more pixels than the 64000000"):
        read_image(data, 64_000_000)


def test_a_truncated_jpeg_is_refused_at_small_cost(bounded: Bounded) -> None:
    data = picture("JPEG", size=(400, 300))
    with bounded(1, 20), pytest.raises(ValueError, match=r"the image is damaged: .*truncated"):
        read_image(data[:-400], 1_000_000)
