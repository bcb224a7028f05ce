"""From object storage to a version that can answer: digests, shapes and self-test checked.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from cmcl.contract.errors import InvalidVersion, ObjectNotFound
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import VersionManifest
from workers.model.artifact import check_selftest, heads_from, load_selftest
from workers.model.heads import ModalityHeads
from workers.model.tensor_bytes import stream
from workers.serve.compute.heads import ServingHead, unit_length
from workers.serve.versions.tensors import Reservation, SharedTensor, TensorPool
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.versions import (
    considerate_sha256_of,
    file_key,
    read_version,
    read_version_file,
    stream_verified,
)

Float32Array = NDArray[np.float32]


class HeadsSource(Protocol):
    """Where the heads of a version come from."""

    @property
    def at_hand(self) -> "LoadedHeads | None":
        """The heads, if they are in memory."""
        ...

    def load(self) -> "LoadedHeads":
        """The heads, read from the store where they are not in memory: not for an event loop.

        Raises WorkerError.
        """
        ...


@dataclass(frozen=True, eq=False)
class LoadedHeads:
    """Heads in memory, for as long as something refers to this object. A `HeadsSource` of itself."""

    heads: ModalityHeads
    tensors: tuple[SharedTensor, ...] = ()
    serving: Mapping[str, ServingHead] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        laid_out = {name: ServingHead.of(self.heads, name) for name in self.heads.weights}
        object.__setattr__(self, "serving", laid_out)

    @property
    def at_hand(self) -> "LoadedHeads":
        return self

    def load(self) -> "LoadedHeads":
        return self


@dataclass(frozen=True)
class ServedVersion:
    """A published version. Two are equal that have the same model, number and time of creation.

    Its heads may leave memory and come back; `pinned` keeps them. `pairs`: what it has learned; scores
    across other pairs mean nothing. `lineage`: the versions that it grew from and itself, oldest first.
    """

    model: str
    number: int
    spec: ModelSpec = field(compare=False)
    source: HeadsSource = field(compare=False, repr=False)
    created_at: datetime
    pairs: frozenset[ModalityPair] = field(default=frozenset(), compare=False)
    lineage: tuple[int, ...] = field(default=(), compare=False)

    @property
    def heads(self) -> ModalityHeads:
        """Loaded where they are not in memory, as `HeadsSource.load`."""
        return self.source.load().heads

    def head(self, modality: str) -> ServingHead:
        """The head of this modality, laid out for serving; loaded as `heads`. Raises KeyError."""
        return self.source.load().serving[modality]

    def pinned(self) -> "ServedVersion | None":
        """The same with heads that stay in memory as long as it does; None where they are not there."""
        loaded = self.source.at_hand
        if loaded is None or loaded is self.source:
            return None if loaded is None else self
        return replace(self, source=loaded)

    @property
    def label(self) -> str:
        """As users write it: `name@number`."""
        return f"{self.model}@{self.number}"


class StoredVersions:
    """Reads published versions. Heads that are in memory already are not read again."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.pool = TensorPool()
        self._by_file: weakref.WeakValueDictionary[Hashable, LoadedHeads] = (
            weakref.WeakValueDictionary()
        )

    def manifest(self, model: str, number: int) -> VersionManifest:
        """Raises ObjectNotFound where it was never published, InvalidVersion, StorageUnavailable."""
        manifest = read_version(self._store, model, number)
        if (manifest.model, manifest.version) != (model, number):
            raise InvalidVersion(
                f"the manifest of {model}@{number} is that of {manifest.model}@{manifest.version}"
            )
        for name in (layout.HEADS, layout.SELFTEST):
            if name not in manifest.files:
                raise InvalidVersion(f"the manifest of {model}@{number} names no {name}")
        return manifest

    def at_hand(self, manifest: VersionManifest) -> LoadedHeads | None:
        """Heads of this very file that another version or branch has in memory."""
        return self._by_file.get(_file_of(manifest))

    def read(self, manifest: VersionManifest, reservation: Reservation) -> LoadedHeads:
        """The heads, with every tensor that is in memory already held once.

        Raises InvalidVersion or DigestMismatch where they cannot be used, StorageUnavailable.
        """
        key, entry = file_key(manifest, layout.HEADS), manifest.files[layout.HEADS]
        chunks = stream_verified(self._store, key, entry)
        shared: dict[str, SharedTensor] = {}
        try:
            for name, tensor in stream(chunks, entry.bytes):
                shared[name] = self.pool.share(tensor, reservation)
            for _ in chunks:
                pass  # Only its end says that the digest is right.
        except SafetensorError as error:
            raise InvalidVersion(f"the heads cannot be read: {error}") from error
        except ObjectNotFound as error:
            # The manifest is written last, so this is damage, not "not yet".
            raise InvalidVersion(f"{manifest.model}@{manifest.version}: {error}") from error
        tensors = {name: each.tensor for name, each in shared.items()}
        loaded = LoadedHeads(heads_from(tensors, manifest.spec), tuple(shared.values()))
        return self._by_file.setdefault(_file_of(manifest), loaded)

    def check(self, manifest: VersionManifest, loaded: LoadedHeads) -> None:
        """Run the self-test through the heads as requests will. Raises as `read`."""
        try:
            data = read_version_file(self._store, manifest, layout.SELFTEST, considerate_sha256_of)
        except ObjectNotFound as error:
            raise InvalidVersion(f"{manifest.model}@{manifest.version}: {error}") from error
        _run_selftest(data, loaded)

    def verify(self, manifest: VersionManifest) -> None:
        """Check the digest of the heads' file in the memory of one chunk. Raises as `read`."""
        key, entry = file_key(manifest, layout.HEADS), manifest.files[layout.HEADS]
        try:
            for _ in stream_verified(self._store, key, entry):
                pass
        except ObjectNotFound as error:
            raise InvalidVersion(f"{manifest.model}@{manifest.version}: {error}") from error


def described(manifest: VersionManifest, source: HeadsSource) -> ServedVersion:
    """The version that a manifest is of."""
    return ServedVersion(
        manifest.model,
        manifest.version,
        manifest.spec,
        source,
        manifest.created_at,
        frozenset(learned.pair for learned in manifest.learned),
        tuple(learned.version for learned in manifest.learned),
    )


def load_version(store: ObjectStore, model: str, number: int) -> ServedVersion:
    """A published version, verified, which holds its heads itself. Raises as `StoredVersions`."""
    stored = StoredVersions(store)
    manifest = stored.manifest(model, number)
    loaded = stored.read(manifest, Reservation(None, 0))
    stored.check(manifest, loaded)
    return described(manifest, loaded)


def _file_of(manifest: VersionManifest) -> Hashable:
    """What heads are a function of: their file, and the shapes that were asked for."""
    spec = manifest.spec
    return manifest.files[layout.HEADS].sha256, spec.width, tuple(sorted(spec.modalities.items()))


@torch.inference_mode()
def _run_selftest(data: bytes, loaded: LoadedHeads) -> None:
    for modality, (features_BF, expected_BE) in load_selftest(data, loaded.serving).items():
        try:
            given_BE = unit_length(loaded.serving[modality].outputs(features_BF))
            check_selftest(modality, given_BE, expected_BE)
        except RuntimeError as error:  # torch's word for widths that do not fit together
            raise InvalidVersion(f"the self-test does not fit the heads: {error}") from error
