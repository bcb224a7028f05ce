"""Bytes of strangers become images, or a reason why not."""

import contextlib
import io
import random

import pytest
from PIL import Image

from workers.serve.encoders.images import read_image

PIXELS = 10_000


def picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_what_people_have_is_read_as_rgb(kind: str) -> None:
    image = read_image(picture(kind), PIXELS)
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_any_depth_and_transparency_becomes_rgb(mode: str) -> None:
    assert read_image(picture("PNG", mode), PIXELS).mode == "RGB"


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ValueError, match="has 200 x 100 pixels; permitted are 10000 in all"):
        read_image(picture("PNG", size=(200, 100)), PIXELS)


@pytest.mark.parametrize("data", [b"", b"a text", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused_with_what_is(data: bytes) -> None:
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
