"""The location encoder of GeoCLIP: latitude and longitude to 512 numbers.

Trained with the places where photographs were taken, beside CLIP's image encoder.

Shapes: B items, F = 512 width of the raw feature.
"""

from collections.abc import Sequence
from pathlib import Path

import geoclip
import torch
from geoclip.model import LocationEncoder

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec, ModelFiles
from workers.encoders.identity import identity_of
from workers.encoders.media import Decoded
from workers.encoders.port import EncoderUnusable, Float32Array, FrozenEncoder, as_features
from workers.encoders.torch_model import prepare_torch


class GeoClipLocation(FrozenEncoder[tuple[float, float]]):
    """Items are [latitude, longitude] in degrees."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        if spec.takes != "numbers":
            raise EncoderUnusable(
                f"encoder {spec.name!r} is declared for {spec.takes}; it takes numbers"
            )
        # The projection of the earth computes in float32 at any rate.
        if prepare_torch(spec) != torch.float32:
            raise EncoderUnusable(f"encoder {spec.name!r} has dtype {spec.dtype}; it takes float32")
        folder = Path(geoclip.__file__).parent / "model" / "weights"
        weights = folder / "location_encoder_weights.pth"
        self._files = ModelFiles.of("geoclip-location", folder, [weights])
        model = LocationEncoder(from_pretrained=False)
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self._model = model.to(spec.placed_on).eval()

    def identity(self) -> EncoderIdentity:
        """Return the identity. The weights contain the random frequencies of the model."""
        return identity_of(
            self.spec, adapter=1, files=self._files, settings={}, packages=("geoclip", "torch")
        )

    def load(self, decoded: Decoded) -> tuple[float, float]:
        """Return latitude and longitude. Raises ValueError if they are out of range."""
        if not isinstance(decoded, tuple) or len(decoded) != 2:
            raise ValueError("the encoder takes [latitude, longitude]")
        latitude, longitude = decoded
        if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
            raise ValueError(
                f"[{latitude:g}, {longitude:g}] is no place: permitted are latitudes of -90 to 90 and "
                "longitudes of -180 to 180"
            )
        return latitude, longitude

    def features(self, items: Sequence[tuple[float, float]]) -> Float32Array:
        """Features (B × F)."""
        with torch.inference_mode():
            rows_BF = self._model(
                torch.tensor(items, dtype=torch.float32, device=self.spec.placed_on)
            )
        return as_features(self.spec, rows_BF.cpu().numpy())
