"""ImageBind, and UniBind, which is its architecture with other weights.

Video and tactile pictures pass the tower of vision, as in the paper. All modalities of a process share one model.

Shapes: B items, F = 1024 width of the raw feature, V rows of a pass: one for each window and crop of each item.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec, ModelFiles
from cmcl_binding_encoders.declared import (
    check_licence,
    colours,
    crops,
    frames,
    greys,
    modality_of,
    upstream,
    weights_of,
)
from workers.encoders.identity import identity_of
from workers.encoders.media import Audio, Decoded, Video
from workers.encoders.port import EncoderUnusable, Float32Array, FrozenEncoder, as_features
from workers.encoders.torch_model import in_passes, prepare_torch, windows_at

LICENCE = "CC-BY-NC-SA-4.0"
_TOWERS = {"video": "vision", "tactile": "vision"}
_RATE, _MEL_BINS, _MEL_LENGTH = 16_000, 128, 204
_MEL_MEAN, _MEL_DEVIATION = -4.268, 9.138
_CROPS = 3
# Of `imagebind_huge`.
_ARCHITECTURE = {
    "vision_embed_dim": 1280,
    "vision_num_blocks": 32,
    "vision_num_heads": 16,
    "text_embed_dim": 1024,
    "text_num_blocks": 24,
    "text_num_heads": 16,
    "out_embed_dim": 1024,
    "audio_drop_path": 0.1,
    "imu_drop_path": 0.7,
}
_INSTALL = (
    "pip install git+https://github.com/facebookresearch/ImageBind@COMMIT (not imagebind or "
    "imagebind-unofficial of PyPI)"
)

Row = str | Tensor


class ImageBind(FrozenEncoder[list[Row]]):
    """`options`: `modality`, and `accepted_licence`."""

    uses: ClassVar[frozenset[str]] = frozenset({"options"})
    weights: ClassVar[str] = "imagebind_huge.pth"
    # Parameters of the file that belong to the model begin with this, those that do not with the others.
    prefix: ClassVar[str] = ""
    ignored: ClassVar[tuple[str, ...]] = ()

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self._modality = modality_of(spec)
        check_licence(
            spec,
            LICENCE,
            "the weights of ImageBind, and those made from them, are CC BY-NC-SA 4.0: non-commercial use only.",
        )
        dtype = prepare_torch(spec)
        if dtype != torch.float32:
            raise EncoderUnusable(f"encoder {spec.name!r} has dtype {spec.dtype}; it takes float32")
        self._data = upstream(spec, "imagebind.data", _INSTALL)
        models = upstream(spec, "imagebind.models.imagebind_model", _INSTALL)
        path = weights_of(spec, f"the file {self.weights}, or of its folder")
        path = path / self.weights if path.is_dir() else path
        self._files = ModelFiles.of(self.weights, path.parent, [path])
        self._model = _model(models, str(path), spec.placed_on, self.prefix, self.ignored)

    def identity(self) -> EncoderIdentity:
        """Return the identity. The preparation of pixels and sounds is part of this code (`adapter`)."""
        settings = {"modality": self._modality, "crops": _CROPS}
        packages = ("imagebind", "torch", "torchaudio")
        return identity_of(
            self.spec, adapter=1, files=self._files, settings=settings, packages=packages
        )

    def load(self, decoded: Decoded) -> list[Row]:
        """Windows and crops of an item."""
        if isinstance(decoded, str):
            return [decoded]
        if isinstance(decoded, Image.Image):
            return [self._picture(decoded)]
        if isinstance(decoded, Audio):
            return [self._sound(torch.from_numpy(one)) for one in windows_at(decoded, _RATE, None)]
        if isinstance(decoded, Video):
            return [part for each in decoded.frames_WTYXC for part in crops(frames(each), _CROPS)]
        raise ValueError("the encoder takes no lists of numbers")

    def features(self, items: Sequence[list[Row]]) -> Float32Array:
        """Features (B × F), the mean over windows and crops."""
        rows = [row for item in items for row in item]
        parts = [self._forward(part) for part in in_passes(rows, self.spec.max_batch)]
        rows_VF = torch.cat(parts).float().cpu().numpy()
        return as_features(self.spec, rows_VF, [len(item) for item in items])

    def _forward(self, rows_V: Sequence[Row]) -> Tensor:
        device = self.spec.placed_on
        if isinstance(rows_V[0], str):
            inputs = self._data.load_and_transform_text(list(rows_V), device)
        else:
            inputs = torch.stack([row for row in rows_V if isinstance(row, Tensor)]).to(device)
            if self._modality == "video":
                # The model takes a second dimension of such inputs for clips of one item, and averages them.
                inputs = inputs[:, None]
        tower = _TOWERS.get(self._modality, self._modality)
        with torch.inference_mode():
            outputs: Tensor = self._model({tower: inputs})[tower]
        return outputs

    def _picture(self, picture: Image.Image) -> Tensor:
        if self._modality == "depth":
            return greys(picture)
        if self._modality == "thermal":
            return (greys(picture) - 0.5) / 0.5
        return colours(picture)

    def _sound(self, samples_N: Tensor) -> Tensor:
        """The spectrogram of a window, made by the authors' function."""
        mel = self._data.waveform2melspec(samples_N[None].clone(), _RATE, _MEL_BINS, _MEL_LENGTH)
        spectrogram: Tensor = (mel - _MEL_MEAN) / _MEL_DEVIATION
        return spectrogram


class UniBind(ImageBind):
    """ImageBind's model as stored in UniBind's file, without the tower of points."""

    weights: ClassVar[str] = "unibind.pt"
    prefix: ClassVar[str] = "bind."
    ignored: ClassVar[tuple[str, ...]] = ("modality_head_point", "modality_postprocessor_point")


@lru_cache(maxsize=2)
def _model(models: Any, path: str, device: str, prefix: str, ignored: tuple[str, ...]) -> Any:
    """The model with its weights, once for all modalities of a process. Raises EncoderUnusable."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in stored.items()
        if name.startswith(prefix) and not name.removeprefix(prefix).startswith(ignored or "\0")
    }
    model = models.ImageBindModel(**_ARCHITECTURE)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise EncoderUnusable(f"{path} has other weights than the model: {error}") from error
    return model.to(device).eval()
