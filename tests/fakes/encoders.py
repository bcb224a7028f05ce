"""Encoders that a test can observe and block."""

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from tests.fakes.ray_actors import ProcessEnded
from workers.encoders.identity import find_model, identity_of
from workers.encoders.media import Decoded
from workers.encoders.parts import Part
from workers.encoders.port import FrozenEncoder
from workers.encoders.synthetic import SyntheticEncoder
from workers.serve.encoders.port import Encoded, EncodedParts, Raw, Wanted
from workers.serve.versions.loading import Float32Array

WEIGHTS = "weights.json"
DEADLY = "a text that ends the process"
LENGTHS = EncoderSpec(name="lengths", kind="synthetic", takes="text", width=2, max_batch=4)


class LengthEncoder(FrozenEncoder[str]):
    """A text's features are its length, twice. `bad` cannot be read, and `bug` breaks the pass.

    A pass waits until `go` is set. `wrong`: by how much its features are wrong, as a library may make them.
    """

    def __init__(self, spec: EncoderSpec = LENGTHS, wrong: float = 0) -> None:
        super().__init__(spec)
        self.passes: list[list[str]] = []
        self.go = threading.Event()
        self.go.set()
        self._wrong = wrong

    def identity(self) -> EncoderIdentity:
        return identity_of(self.spec, adapter=1, files=None, settings={}, packages=())

    def load(self, decoded: Decoded) -> str:
        assert isinstance(decoded, str)
        if decoded == "bad":
            raise ValueError("it is bad")
        return decoded

    def features(self, items: Sequence[str]) -> Float32Array:
        self.passes.append(list(items))
        assert self.go.wait(60), "the test forgot to let the encoder go on"
        if "bug" in items:
            raise RuntimeError("out of memory")
        return np.array([[len(item), len(item) * (1 + self._wrong)] for item in items], np.float32)


class SlowEncoder(SyntheticEncoder):
    """The synthetic encoder with a pause of 0.3 s in each pass."""

    def features(self, items: Sequence[bytes]) -> Float32Array:
        time.sleep(0.3)
        return super().features(items)


class DeadlyEncoder(SyntheticEncoder):
    """The synthetic encoder, whose process ends with the text DEADLY."""

    def load(self, decoded: Decoded) -> bytes:
        if decoded == DEADLY:
            raise ProcessEnded
        return super().load(decoded)


class WeightsEncoder(FrozenEncoder[Float32Array]):
    """A linear map of the letters of a text, whose weights lie in the folder that the declaration names."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self._files = find_model(spec)
        self._weights_IF = np.array(json.loads((self._files.folder / WEIGHTS).read_text()))

    def identity(self) -> EncoderIdentity:
        return identity_of(self.spec, adapter=1, files=self._files, settings={}, packages=())

    def load(self, decoded: Decoded) -> Float32Array:
        assert isinstance(decoded, str)
        return np.bincount(np.frombuffer(decoded.encode(), np.uint8), minlength=256) + np.float32(1)

    def features(self, items: Sequence[Float32Array]) -> Float32Array:
        rows_BF: Float32Array = (np.stack(items) @ self._weights_IF).astype(np.float32)
        return rows_BF


def write_weights(folder: Path, seed: int, width: int) -> None:
    """Write the model of a `WeightsEncoder`, in place of the one that is there."""
    folder.mkdir(exist_ok=True)
    weights_IF = np.random.default_rng(seed).normal(size=(256, width))
    (folder / WEIGHTS).write_text(json.dumps(weights_IF.tolist()))


class RecordedHops:
    """A simulated process of an encoder: records what was sent, and returns `answer`."""

    def __init__(self, answer: Encoded | None = None) -> None:
        self.sent: list[list[Raw]] = []
        self.expected: list[EncoderIdentity | None] = []
        self.answer = answer

    async def __call__(self, raw: Sequence[Raw], expected: EncoderIdentity | None) -> Encoded:
        self.sent.append(list(raw))
        self.expected.append(expected)
        if self.answer is not None:
            return self.answer
        return np.array([[len(item)] * 2 for item in raw], np.float32).reshape(-1, 2)

    async def parts(self, file: bytes, expected: EncoderIdentity | None, _: Wanted) -> EncodedParts:
        """One part of a second."""
        encoded = await self([file], expected)
        return [Part(encoded[0], 0.0, 1.0)] if isinstance(encoded, np.ndarray) else encoded
