"""From object storage to a version that can answer: digests, shapes and self-test checked.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import torch
from numpy.typing import NDArray

from workers.contract.errors import InvalidVersion, ObjectNotFound
from workers.contract.model import ModelSpec
from workers.contract.version import VersionManifest
from workers.model.artifact import load_heads, run_selftest
from workers.model.heads import ModalityHeads
from workers.storage import layout
from workers.storage.port import ObjectStore
from workers.storage.versions import read_version, read_version_file

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class ServedVersion:
    """A verified version; immutable, so that a request can hold on to it while others swap."""

    model: str
    number: int
    spec: ModelSpec
    heads: ModalityHeads
    created_at: datetime

    @property
    def label(self) -> str:
        """As users write it: `name@number`."""
        return f"{self.model}@{self.number}"

    @torch.inference_mode()
    def embed(self, modality: str, raw_BF: Float32Array) -> Float32Array:
        """Unit embeddings (B × E)."""
        embeddings: Float32Array = self.heads.embed(modality, torch.from_numpy(raw_BF)).numpy()
        return embeddings

    @torch.inference_mode()
    def project(self, modality: str, raw_BF: Float32Array) -> Float32Array:
        """What the head itself gives (B × E), before it is brought to unit length."""
        outputs: Float32Array = self.heads.outputs(modality, torch.from_numpy(raw_BF)).numpy()
        return outputs


def load_version(store: ObjectStore, model: str, number: int) -> ServedVersion:
    """A published version, verified and warm: the self-test has run through every head.

    Raises ObjectNotFound where it was never published, InvalidVersion or DigestMismatch where it
    cannot be used, StorageUnavailable.
    """
    manifest = read_version(store, model, number)
    if (manifest.model, manifest.version) != (model, number):
        raise InvalidVersion(
            f"the manifest of {model}@{number} is that of {manifest.model}@{manifest.version}"
        )
    heads = load_heads(_file(store, manifest, layout.HEADS), manifest.spec)
    _test(_file(store, manifest, layout.SELFTEST), heads)
    return ServedVersion(model, number, manifest.spec, heads, manifest.created_at)


def _file(store: ObjectStore, manifest: VersionManifest, name: str) -> bytes:
    """The manifest is written last, so a file that is missing means damage, not "not yet"."""
    if name not in manifest.files:
        raise InvalidVersion(f"the manifest of {manifest.model}@{manifest.version} names no {name}")
    try:
        return read_version_file(store, manifest, name)
    except ObjectNotFound as error:
        raise InvalidVersion(f"{manifest.model}@{manifest.version}: {error}") from error


@torch.inference_mode()
def _test(data: bytes, heads: ModalityHeads) -> None:
    try:
        run_selftest(data, heads)
    except RuntimeError as error:  # torch's word for widths that do not fit together
        raise InvalidVersion(f"the self-test does not fit the heads: {error}") from error
