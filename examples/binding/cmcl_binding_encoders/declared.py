"""What a declaration says: the modality, the licence, and where the weights are.

Shapes: C = 3 colours, Y × X = 224 × 224 pixels, T frames.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmcl.contract.encoder import EncoderSpec
from workers.encoders.port import EncoderUnusable

# What the decoder of each modality gives.
MEDIA: Mapping[str, str] = {
    "text": "text",
    "vision": "image",
    "audio": "audio",
    "video": "video",
    "depth": "image",
    "thermal": "image",
    "tactile": "image",
}
_SIDE = 224
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def modality_of(spec: EncoderSpec) -> str:
    """The modality in `options`. Raises EncoderUnusable if it does not fit what the encoder takes."""
    modality = spec.options.get("modality")
    if not isinstance(modality, str) or modality not in MEDIA:
        raise EncoderUnusable(
            f"encoder {spec.name!r} has options.modality {modality!r}; permitted are {', '.join(MEDIA)}"
        )
    if MEDIA[modality] != spec.takes:
        raise EncoderUnusable(
            f"encoder {spec.name!r} is declared for {spec.takes}; {modality} takes {MEDIA[modality]}"
        )
    return modality


def check_licence(spec: EncoderSpec, licence: str, sentence: str) -> None:
    """Raises EncoderUnusable unless the declaration accepts the licence of the weights."""
    if spec.options.get("accepted_licence") != licence:
        raise EncoderUnusable(
            f"encoder {spec.name!r}: {sentence} If your use is permitted, set options.accepted_licence to "
            f"{licence!r} (benchmarks.paper: --accept-licence {spec.kind})"
        )


def weights_of(spec: EncoderSpec, what: str) -> Path:
    """The path of the weights. Raises EncoderUnusable."""
    path = Path(spec.model or "")
    if spec.model is None or not path.exists():
        raise EncoderUnusable(
            f"encoder {spec.name!r} has model {spec.model!r}, which does not exist: it is the path of {what}; "
            "examples/binding/README.md says where to get it"
        )
    return path


def upstream(spec: EncoderSpec, module: str, install: str) -> Any:
    """A module of the authors' code. Raises EncoderUnusable with how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise EncoderUnusable(
            f"encoder {spec.name!r} needs {module} of its authors, which cannot be imported ({error}): {install}"
        ) from error


def cropped(picture: Image.Image) -> Image.Image:
    """The shorter side at 224 pixels, then the middle."""
    scale = _SIDE / min(picture.size)
    size = [max(_SIDE, round(side * scale)) for side in picture.size]
    resized = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, top = ((side - _SIDE) // 2 for side in resized.size)
    return resized.crop((left, top, left + _SIDE, top + _SIDE))


def colours(picture: Image.Image) -> Tensor:
    """Normalised pixels (C × Y × X) of a picture, as CLIP takes them."""
    pixels_YXC = np.asarray(cropped(picture.convert("RGB")), np.float32) / 255
    return _normalised(torch.from_numpy(pixels_YXC.transpose(2, 0, 1)))


def greys(picture: Image.Image) -> Tensor:
    """Brightness from 0 to 1 (1 × Y × X)."""
    pixels_YX = np.asarray(cropped(picture.convert("L")), np.float32) / 255
    return torch.from_numpy(pixels_YX[None].copy())


def frames(frames_TYXC: np.ndarray) -> Tensor:
    """Normalised pixels of frames (C × T × Y × X'), the shorter side at 224."""
    pixels_TCYX = torch.from_numpy(frames_TYXC).permute(0, 3, 1, 2).float() / 255
    height, width = pixels_TCYX.shape[2:]
    scale = _SIDE / min(height, width)
    size = (max(_SIDE, int(height * scale)), max(_SIDE, int(width * scale)))
    resized_TCYX = torch.nn.functional.interpolate(
        pixels_TCYX, size=size, mode="bilinear", align_corners=False
    )
    return _normalised(resized_TCYX.transpose(0, 1))


def crops(clip_CTYX: Tensor, count: int) -> list[Tensor]:
    """`count` evenly spaced square parts (C × T × Y × X): 1 is the middle, 3 both ends as well."""
    height, width = clip_CTYX.shape[2:]
    spare = max(height, width) - _SIDE
    places = [spare / 2] if count == 1 else [spare * place / (count - 1) for place in range(count)]
    found = []
    for start in map(round, places):
        top, left = (start, 0) if height > width else (0, start)
        found.append(clip_CTYX[:, :, top : top + _SIDE, left : left + _SIDE])
    return found


def _normalised(pixels_CX: Tensor) -> Tensor:
    shape = (3, *[1] * (pixels_CX.ndim - 1))
    mean, deviation = (torch.tensor(each).reshape(shape) for each in (_MEAN, _DEVIATION))
    return (pixels_CX - mean) / deviation
