"""Decode images that clients send, which are not trusted."""

import io
import warnings

from PIL import Image, UnidentifiedImageError

# Common formats. Others of Pillow's call programs, or are parsed by code that is little reviewed.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def read_image(data: bytes, max_pixels: int) -> Image.Image:
    """Return the first frame of the image in RGB. Raises ValueError with a message for the client."""
    try:
        with warnings.catch_warnings():
            # Pillow warns about many pixels, which are counted below, and about what it skips in a
            # damaged file, which the client need not see.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_size(image, max_pixels)
            return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"no image that can be read: permitted are {', '.join(_FORMATS)}"
        ) from error
    except (OSError, SyntaxError) as error:  # how Pillow says that a file is cut off or damaged
        raise ValueError(f"the image is damaged: {error}") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ValueError(
            f"the image has {image.width} x {image.height} pixels; permitted are {max_pixels} in all"
        )
