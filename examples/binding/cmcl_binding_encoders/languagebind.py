"""LanguageBind: one model for each modality, in the space of one text encoder.

Shapes: B items, F = 768 width of the raw feature.
"""

from collections.abc import Mapping, Sequence
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
    modality_of,
    upstream,
    weights_of,
)
from workers.encoders.identity import identity_of
from workers.encoders.media import Audio, Decoded, Video
from workers.encoders.port import EncoderUnusable, Float32Array, FrozenEncoder, as_features
from workers.encoders.torch_model import prepare_torch

LICENCE = "MIT"
# Name of its model in the authors' registry, and folder of its weights.
_MODELS: Mapping[str, tuple[str, str]] = {
    "text": ("image", "Image"),
    "vision": ("image", "Image"),
    "tactile": ("image", "Image"),
    "audio": ("audio", "Audio_FT"),
    "video": ("video", "Video_FT"),
    "depth": ("depth", "Depth"),
    "thermal": ("thermal", "Thermal"),
}
_TOKENS = 77
_INSTALL = "pip install languagebind==0.1.0 in an environment of its own: it needs transformers < 5"

Item = str | Tensor


class LanguageBind(FrozenEncoder[Item]):
    """`options`: `modality`, and `accepted_licence`."""

    uses: ClassVar[frozenset[str]] = frozenset({"options"})

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self._modality = modality_of(spec)
        check_licence(spec, LICENCE, "the weights of LanguageBind are under the MIT licence.")
        if prepare_torch(spec) != torch.float32:
            raise EncoderUnusable(f"encoder {spec.name!r} has dtype {spec.dtype}; it takes float32")
        package = upstream(spec, "languagebind", _INSTALL)
        name, part = _MODELS[self._modality]
        folder = (
            weights_of(spec, "the folder with Image, Video_FT, Audio_FT, Depth, Thermal") / part
        )
        if not folder.is_dir():
            raise EncoderUnusable(f"encoder {spec.name!r}: the folder {folder} is missing")
        self._files = ModelFiles.in_folder(folder)
        self._model: Any = package.model_dict[name].from_pretrained(folder)
        self._model.to(spec.placed_on).eval()
        self._tokenizer: Any = None
        self._sound: Any = None
        if self._modality == "text":
            self._tokenizer = package.LanguageBindImageTokenizer.from_pretrained(folder)
        if self._modality == "audio":
            sounds = upstream(spec, "languagebind.audio.processing_audio", _INSTALL)
            self._sound = sounds.AudioTransform(self._model.config.vision_config)

    def identity(self) -> EncoderIdentity:
        """Return the identity. The preparation of pixels is part of this code (`adapter`)."""
        return identity_of(
            self.spec,
            adapter=1,
            files=self._files,
            settings={"modality": self._modality},
            packages=("languagebind", "torch", "torchaudio", "transformers"),
        )

    def load(self, decoded: Decoded) -> Item:
        """What the model takes."""
        if isinstance(decoded, str):
            return decoded
        if isinstance(decoded, Image.Image):
            if self._modality == "depth":
                # Three times the same colour, normalised as one.
                return colours(Image.merge("RGB", [decoded.convert("L")] * 3))
            return colours(decoded)
        if isinstance(decoded, Audio):
            # Its own code takes the whole recording and cuts three parts of it, which are channels.
            samples_1N = torch.from_numpy(decoded.samples_WN[:1].copy())
            spectrogram: Tensor = self._sound((samples_1N, decoded.rate))
            return spectrogram
        if isinstance(decoded, Video):
            (middle,) = crops(frames(decoded.frames_WTYXC[0]), 1)
            return middle
        raise ValueError("the encoder takes no lists of numbers")

    def features(self, items: Sequence[Item]) -> Float32Array:
        """Features (B × F): unit length for texts, else the length that the model has learned."""
        with torch.inference_mode():
            rows_BF = self._texts(items) if self._modality == "text" else self._others(items)
        return as_features(self.spec, rows_BF.float().cpu().numpy())

    def _texts(self, items: Sequence[Item]) -> Tensor:
        tokens = self._tokenizer(
            list(items),
            max_length=_TOKENS,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        placed = {name: tensor.to(self.spec.placed_on) for name, tensor in tokens.items()}
        return _unit(self._model.text_projection(self._model.text_model(**placed)[1]))

    def _others(self, items: Sequence[Item]) -> Tensor:
        inputs = torch.stack([item for item in items if isinstance(item, Tensor)])
        pooled = self._model.vision_model(pixel_values=inputs.to(self.spec.placed_on))[1]
        scale: Tensor = self._model.logit_scale.exp()
        return scale * _unit(self._model.visual_projection(pooled))


def _unit(rows_BF: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows_BF, dim=-1)
