"""Models of sentence-transformers: for texts, and for images where the model takes them (CLIP).

Shapes: B items, F width of the raw feature.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from workers.serve.encoders.images import read_image
from workers.serve.encoders.port import EncoderUnusable
from workers.serve.encoders.spec import EncoderSpec
from workers.serve.versions.loading import Float32Array


class SentenceTransformersEncoder:
    """A model with the pooling and normalisation of its authors."""

    def __init__(self, spec: EncoderSpec) -> None:
        torch.set_num_threads(max(1, int(spec.num_cpus)))
        self._spec = spec
        self._model = _load(spec)
        self._reads_addresses = self._model.modalities != ["text"]
        if spec.max_tokens is not None:
            self._model.max_seq_length = spec.max_tokens
        self._check()

    def read(self, raw: str | bytes) -> str | Image.Image:
        """A text as it is, or the image in these bytes. Raises ValueError."""
        return raw if isinstance(raw, str) else read_image(raw, self._spec.max_pixels)

    def features(self, items: Sequence[str | Image.Image]) -> Float32Array:
        """Features (B × F)."""
        rows_BF = self._model.encode(
            [self._as_input(item) for item in items],
            batch_size=len(items),
            show_progress_bar=False,
        )
        return np.ascontiguousarray(rows_BF, dtype=np.float32)

    def _as_input(self, item: str | Image.Image) -> object:
        """A model of several modalities would fetch a bare text that looks like the URL or path of an
        image; a text in a dict stays a text.
        """
        if isinstance(item, str) and self._reads_addresses:
            return {"text": item}
        return item

    def _check(self) -> None:
        """One item through the model, which also warms it up. Raises EncoderUnusable."""
        wanted: Literal["text", "image"] = "text" if self._spec.raw == "text" else "image"
        if not self._model.supports(wanted):
            raise EncoderUnusable(
                f"the encoder of {self._spec.modality!r} is configured for {self._spec.raw}, but "
                f"{self._spec.model} takes {', '.join(map(str, self._model.modalities))}"
            )
        probe = "warm" if wanted == "text" else Image.new("RGB", (32, 32))
        width = self.features([probe]).shape[1]
        if width != self._spec.width:
            raise EncoderUnusable(
                f"the encoder of {self._spec.modality!r} has width {self._spec.width}, but the "
                f"features of {self._spec.model} have {width}"
            )


def _load(spec: EncoderSpec) -> SentenceTransformer:
    try:
        return SentenceTransformer(
            spec.model,
            revision=spec.revision,
            device=spec.placed_on,
            local_files_only=not spec.download,
        )
    except OSError as error:  # neither a folder nor in the cache, or the hub does not answer
        hint = "" if spec.download else ", and `download` is off"
        raise EncoderUnusable(
            f"the encoder of {spec.modality!r}: no model {spec.model!r} on this node{hint}"
        ) from error
