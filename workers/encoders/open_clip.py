"""Models of OpenCLIP from local files, for texts and images.

`model` is a folder with `open_clip_config.json` (also written as `local-dir:FOLDER`), or the name of one of
OpenCLIP's architectures, such as ViT-B-32, with the file of its weights in `options.pretrained`.

Shapes: B items, F width of the raw feature.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import open_clip
import torch
from PIL import Image

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec, ModelFiles
from workers.encoders.identity import Setting, identity_of
from workers.encoders.media import Decoded
from workers.encoders.port import EncoderUnusable, Float32Array, FrozenEncoder, as_features
from workers.encoders.torch_model import prepare_torch

_PACKAGES = ("open_clip_torch", "timm", "torch", "torchvision")
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_LOCAL = "local-dir:"


class OpenClipEncoder(FrozenEncoder[str | torch.Tensor]):
    """One tower of a model."""

    uses: ClassVar[frozenset[str]] = frozenset({"options"})

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        if spec.takes not in ("text", "image"):
            raise EncoderUnusable(
                f"encoder {spec.name!r} is declared for {spec.takes}; kind open-clip takes text, image"
            )
        prepare_torch(spec)
        self._files, name, weights = _find(spec)
        precision = _PRECISIONS[spec.dtype]
        self._input_dtype = open_clip.get_input_dtype(precision)
        try:
            self._model, self._preprocess = open_clip.create_model_from_pretrained(
                name, pretrained=weights, precision=precision, device=spec.placed_on
            )
            self._tokenizer = open_clip.get_tokenizer(name)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise EncoderUnusable(
                f"encoder {spec.name!r}: {spec.model} cannot be loaded: {error}"
            ) from error
        self._config = open_clip.get_model_config(name)
        self._model.eval()

    def identity(self) -> EncoderIdentity:
        """The architecture counts: a name's configuration is in the package, not in a file of the model."""
        config = json.dumps(self._config, sort_keys=True, default=str).encode()
        settings: dict[str, Setting] = {"architecture": hashlib.sha256(config).hexdigest()}
        if self.spec.takes == "image":
            settings["preprocessing"] = json.dumps(
                open_clip.get_model_preprocess_cfg(self._model), sort_keys=True, default=str
            )
        return identity_of(
            self.spec, adapter=1, files=self._files, settings=settings, packages=_PACKAGES
        )

    def load(self, decoded: Decoded) -> str | torch.Tensor:
        """A text, or the pixels that the model takes."""
        if isinstance(decoded, Image.Image):
            pixels: torch.Tensor = self._preprocess(decoded)
            return pixels
        if isinstance(decoded, str):
            return decoded
        raise ValueError(f"{self.spec.title} takes texts and images")

    def features(self, items: Sequence[str | torch.Tensor]) -> Float32Array:
        """Features (B × F)."""
        with torch.inference_mode():
            rows_BF = self._encode(items)
        return as_features(self.spec, np.asarray(rows_BF.float().cpu().numpy()))

    def _encode(self, items: Sequence[Any]) -> torch.Tensor:
        rows_BF: torch.Tensor
        if self.spec.takes == "text":
            rows_BF = self._model.encode_text(self._tokenizer(list(items)).to(self.spec.placed_on))
        else:
            pixels = torch.stack(list(items)).to(self.spec.placed_on, self._input_dtype)
            rows_BF = self._model.encode_image(pixels)
        return rows_BF


def _find(spec: EncoderSpec) -> tuple[ModelFiles, str, str | None]:
    """The files, and the name and weights by which open_clip loads them. Raises EncoderUnusable."""
    if spec.download:
        raise EncoderUnusable(
            f"encoder {spec.name!r}: kind open-clip loads local files only: set download to false"
        )
    model = (spec.model or "").removeprefix(_LOCAL)
    weights = spec.options.get("pretrained")
    if set(spec.options) - {"pretrained"}:
        raise EncoderUnusable(f"encoder {spec.name!r}: kind open-clip has one option, pretrained")
    if Path(model).is_dir() and weights is None:
        return ModelFiles.in_folder(Path(model)), f"{_LOCAL}{model}", None
    if model not in open_clip.list_models():
        raise EncoderUnusable(
            f"encoder {spec.name!r}: {spec.model!r} is neither a folder on this node nor an "
            "architecture of OpenCLIP, such as ViT-B-32"
        )
    if not isinstance(weights, str) or not Path(weights).is_file():
        raise EncoderUnusable(
            f"encoder {spec.name!r}: set options.pretrained to the file of the weights of {model} on "
            f"this node, got {weights!r}"
        )
    return ModelFiles.of(model, Path(weights).parent, [Path(weights)]), model, weights
