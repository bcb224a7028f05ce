"""Models of sentence-transformers, with the pooling of their authors.

For texts, and for images, audio and video where the model takes them.

Shapes: B items, F width of the raw feature, V rows of a pass: one for each window of each item.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from workers.encoders.identity import Setting, find_model, identity_of
from workers.encoders.media import Audio, Decoded, Video
from workers.encoders.port import EncoderUnusable, Float32Array, FrozenEncoder, as_features
from workers.encoders.torch_model import (
    check_windows,
    in_passes,
    prepare_torch,
    sampling_rate,
    token_limit,
    windows_at,
)

_PACKAGES = ("sentence-transformers", "transformers", "tokenizers", "torch")


class SentenceTransformersEncoder(FrozenEncoder[list[Any]]):
    """A model, whose items are lists of its inputs: one for each window."""

    uses: ClassVar[frozenset[str]] = frozenset({"max_tokens"})

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        dtype = prepare_torch(spec)
        self._files = find_model(spec)
        try:
            self._model = SentenceTransformer(
                str(self._files.folder),
                device=spec.placed_on,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": dtype},
            )
        except (OSError, ValueError, ImportError) as error:
            raise EncoderUnusable(
                f"encoder {spec.name!r}: {spec.model} cannot be loaded: {error}"
            ) from error
        if not self._model.supports(_modality(spec)):
            raise EncoderUnusable(
                f"encoder {spec.name!r} is declared for {spec.takes}, but {spec.model} takes "
                f"{', '.join(map(str, self._model.modalities))}"
            )
        self._reads_addresses = self._model.modalities != ["text"]
        config = getattr(self._model[0], "config", None)
        self._most_tokens = token_limit(spec, self._model.max_seq_length, config)
        if self._most_tokens is not None:
            self._model.max_seq_length = self._most_tokens
        self._rate, self._most_samples = 0, None
        if spec.takes == "audio":
            extractor = self._part("feature_extractor")
            self._rate = sampling_rate(spec, extractor)
            self._most_samples = check_windows(spec, extractor)

    def identity(self) -> EncoderIdentity:
        """Return the identity. Files have the pooling; the class of the processor decides how images are resized."""
        settings: dict[str, Setting] = {}
        if self.spec.takes == "text":
            settings["max_tokens"] = self._most_tokens
        if self.spec.takes == "image":
            settings["processor"] = type(self._part("image_processor")).__name__
        if self.spec.takes == "audio":
            settings["sampling_rate"] = self._rate
        if self.spec.takes == "video":
            settings["processor"] = type(self._part("video_processor")).__name__
        return identity_of(
            self.spec, adapter=1, files=self._files, settings=settings, packages=_PACKAGES
        )

    def load(self, decoded: Decoded) -> list[Any]:
        """Return the inputs of the model, one for each window."""
        if isinstance(decoded, str):
            # A model of several modalities would fetch a bare text that looks like the URL or path of
            # an image; a text in a dict stays a text.
            return [{"text": decoded}] if self._reads_addresses else [decoded]
        if isinstance(decoded, Image.Image):
            return [decoded]
        if isinstance(decoded, Audio):
            windows = windows_at(decoded, self._rate, self._most_samples)
            return [{"array": samples_N, "sampling_rate": self._rate} for samples_N in windows]
        if isinstance(decoded, Video):
            return [_frames(decoded, window) for window in range(len(decoded.seconds_WT))]
        raise ValueError(f"{self.spec.title} takes no lists of numbers")

    def features(self, items: Sequence[list[Any]]) -> Float32Array:
        """Features (B × F)."""
        rows = [row for item in items for row in item]
        # Recordings one by one: processors pad them to the longest, and CLAP's draws one of a batch.
        most = self.spec.max_batch if self.spec.takes in ("text", "image") else 1
        passes = [self._encode(part) for part in in_passes(rows, most)]
        return as_features(self.spec, np.concatenate(passes), [len(item) for item in items])

    def _encode(self, rows_V: Sequence[Any]) -> Float32Array:
        options: dict[str, Any] = {}
        if self.spec.takes == "video":
            options["processing_kwargs"] = {"video": {"do_sample_frames": False}}
        rows_VF = self._model.encode(
            list(rows_V),
            batch_size=len(rows_V),
            show_progress_bar=False,
            convert_to_numpy=False,
            convert_to_tensor=True,
            **options,
        )
        rows: Float32Array = rows_VF.float().cpu().numpy()
        return rows

    def _part(self, name: str) -> object:
        """Return a part of the model's processor, or the processor itself if it is only that part."""
        processor = getattr(self._model[0], "processor", None)
        return getattr(processor, name, processor)


def _modality(spec: EncoderSpec) -> Any:
    return spec.takes


def _frames(video: Video, window: int) -> dict[str, Any]:
    """Return a window with the times of its frames, so that models that use them do not assume a rate."""
    seconds_T = video.seconds_WT[window]
    count = len(seconds_T)
    step = float(np.diff(seconds_T).mean()) if count > 1 else 0.0
    metadata = {
        "fps": 1 / step if step > 0 else 1.0,
        "total_num_frames": count,
        "duration": float(seconds_T[-1] - seconds_T[0]) + step,
        "frames_indices": list(range(count)),
    }
    # T × C × Y × X, as video processors expect.
    frames = np.ascontiguousarray(video.frames_WTYXC[window].transpose(0, 3, 1, 2))
    return {"array": frames, "video_metadata": metadata}
