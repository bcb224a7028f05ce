"""Bytes of users are decoded to images, or rejected with a reason."""

import contextlib
import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.encoders.conftest import Bounded
from workers.encoders.decoding import is_flat, read_image

PIXELS = 10_000


RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colours(data: bytes) -> list[tuple[int, ...]]:
    """Colours of the first row."""
    image = read_image(data, PIXELS)
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image)[0].tolist()]


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_row(depth: int, colour_type: int, width: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of one row, whose transparent colour is given."""
    head = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"tRNS", transparent)
    chunks += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_common_formats_are_read_as_rgb(kind: str) -> None:
    image = read_image(picture(kind), PIXELS)
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_any_depth_becomes_rgb(mode: str) -> None:
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


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_put_on_white(kind: str) -> None:
    pixels = [[(255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)]]
    data = saved(Image.fromarray(np.array(pixels, np.uint8)), kind, lossless=True, exact=True)
    assert colours(data) == [RED, WHITE, (204, 204, 204)]


def test_grey_with_alpha_is_put_on_white() -> None:
    pixels = [[(0, 255), (0, 0), (100, 0)]]
    data = saved(Image.fromarray(np.array(pixels, np.uint8), "LA"))
    assert colours(data) == [(0, 0, 0), WHITE, WHITE]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 51])])
def test_transparent_colours_of_a_palette_are_put_on_white(transparency: int | bytes) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 0])
    last = (0, 0, 0) if isinstance(transparency, int) else (204, 204, 204)
    assert colours(saved(image, transparency=transparency)) == [RED, WHITE, last]


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "expected"),
    [
        (1, bytes([0b01_000000]), 0, [255, 255]),
        (1, bytes([0b01_000000]), 1, [0, 255]),
        (2, bytes([0b0001_0000]), 1, [0, 255]),
        (4, bytes([0x2A]), 2, [255, 170]),
        (8, bytes([100, 200]), 100, [255, 200]),
        # Their upper halves are equal.
        (16, bytes([100, 1, 100, 2]), 0x6401, [255, 100]),
    ],
)
def test_the_transparent_grey_of_a_png_is_put_on_white(
    depth: int, row: bytes, transparent: int, expected: list[int]
) -> None:
    data = png_row(depth, 0, 2, row, struct.pack(">H", transparent))
    assert colours(data) == [(grey, grey, grey) for grey in expected]


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png_is_put_on_white(depth: int) -> None:
    size, first, second = depth // 8, (10, 20, 30), (40, 50, 60)
    row = b"".join(value.to_bytes(1, "big") * size for value in (*first, *second))
    transparent = b"".join(row[i * size : (i + 1) * size].rjust(2, b"\0") for i in range(3))
    assert colours(png_row(depth, 2, 2, row, transparent)) == [WHITE, second]


def test_a_bmp_with_alpha_is_put_on_white() -> None:
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 56, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + masks
    pixels = bytes([0, 0, 255, 255, 0, 0, 0, 0])
    start = 14 + len(head)
    data = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + pixels
    assert colours(data) == [RED, WHITE]


def test_the_rest_of_a_gif_whose_first_frame_is_smaller_is_white() -> None:
    image = Image.new("P", (1, 1), 0)
    image.putpalette([255, 0, 0, 0, 0, 0])
    data = bytearray(saved(image, "GIF"))
    data[6:8] = struct.pack("<H", 2)  # the width of the picture
    assert colours(bytes(data)) == [RED, WHITE]


def test_the_transparent_colour_of_a_gif_is_white() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 0])
    assert colours(saved(image, "GIF", transparency=1)) == [RED, WHITE]


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("WEBP", "RGBA")]
)
def test_the_orientation_of_exif_is_applied(kind: str, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 20, 20))
    image = image.convert(mode)
    pixels = np.asarray(read_image(saved(image, kind, exif=exif), PIXELS).convert("L"))
    assert pixels.shape == (40, 20)
    assert pixels[:16].max() < 50
    assert pixels[24:].min() > 200


def cmyk_profile(grid_LAB: np.ndarray) -> bytes:
    """An ICC profile of a printer: CIELAB colours at the 16 corners of CMYK, black ink changing fastest."""
    table = struct.pack(">4sIBBBx", b"mft1", 0, 4, 3, 2)
    table += struct.pack(
        ">9i", *(65536 * int(row == column) for row in range(3) for column in range(3))
    )
    table += bytes(range(256)) * 4 + grid_LAB.astype(np.uint8).tobytes() + bytes(range(256)) * 3
    text = b"desc" + struct.pack(">II", 0, 2) + b"t\0" + bytes(78)
    white = b"XYZ " + struct.pack(">I3i", 0, 63190, 65536, 54061)
    tags, body, start = b"", b"", 128 + 4 + 3 * 12
    for name, data in ((b"A2B0", table), (b"desc", text), (b"wtpt", white)):
        padded = data + bytes(-len(data) % 4)
        tags += struct.pack(">4sII", name, start + len(body), len(data))
        body += padded
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab "
    )
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", 3) + tags + body


def test_cmyk_is_converted_with_its_profile() -> None:
    # In this printer every ink is red, and paper is white.
    grid = np.tile(np.array([138, 208, 195], np.uint8), (16, 1))
    grid[0] = (255, 128, 128)
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    (red, green, blue), *_ = colours(saved(image, "JPEG", icc_profile=cmyk_profile(grid)))
    assert red > 100 + max(green, blue)
    paper = saved(Image.new("CMYK", (16, 16)), "JPEG", icc_profile=cmyk_profile(grid))
    assert min(colours(paper)[0]) > 250


@pytest.mark.parametrize("profile", [b"", b"no profile"])
def test_cmyk_without_a_sound_profile_is_converted_by_its_inks(profile: bytes) -> None:
    data = saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", icc_profile=profile)
    red, green, blue = colours(data)[0]
    assert red < 5
    assert min(green, blue) > 250


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


@pytest.mark.parametrize("filling", [b"\0", b"!\xff\0", None])
def test_a_gif_of_many_frames_or_blocks_costs_little(
    filling: bytes | None, bounded: Bounded
) -> None:
    file = io.BytesIO()
    Image.new("P", (2, 2)).save(file, "GIF")
    whole = file.getvalue()
    start = 13 + (3 << (whole[10] & 7) + 1)
    more = whole[start:-1] * 10_000 if filling is None else filling * (8_000_000 // len(filling))
    with bounded(1, 40):
        read_image(whole[:-1] + more + whole[-1:], PIXELS)


def test_a_png_of_60000_by_60000_pixels_is_refused_at_small_cost(bounded: Bounded) -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    with bounded(1, 20), pytest.raises(ValueError, match="many more pixels than the 64000000"):
        read_image(data, 64_000_000)


def test_a_truncated_jpeg_is_refused_at_small_cost(bounded: Bounded) -> None:
    data = picture("JPEG", size=(400, 300))
    with bounded(1, 20), pytest.raises(ValueError, match=r"the image is damaged: .*truncated"):
        read_image(data[:-400], 1_000_000)


def test_an_image_is_flat_if_every_pixel_has_the_same_colour() -> None:
    image = Image.new("RGB", (40, 30), (1, 2, 3))
    assert is_flat(image)
    image.putpixel((39, 29), (1, 2, 4))
    assert not is_flat(image)
