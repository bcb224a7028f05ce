"""Loading a version from object storage: digests, shapes and self-test are checked, tensors are shared.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import threading
import weakref
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import InvalidVersion, ObjectNotFound
from cmcl.contract.modality import FileEntry, ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import (
    considerate_sha256_of,
    read_version,
    read_version_file,
    stream_blob,
)
from workers.model.artifact import check_selftest, heads_from, load_selftest
from workers.model.heads import ModalityHeads, unit_rows
from workers.model.tensor_bytes import stream

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class ServingHead:
    """Conditioning, lift, weight and bias of one modality.

    The bias stands by itself, so that no row is copied to append a 1. Both are views: a copy laid out
    as the product reads it was no faster (docs/log.md), and a swap would have to make it.
    """

    heads: ModalityHeads
    modality: str
    weight_EF: Tensor
    bias_E: Tensor

    @classmethod
    def from_heads(cls, heads: ModalityHeads, modality: str) -> "ServingHead":
        """Return the head of this modality. Raises KeyError."""
        weight_EI = heads.weights[modality]
        assert weight_EI.ndim == 2
        assert weight_EI.dtype == torch.float32
        return cls(heads, modality, weight_EI[:, :-1], weight_EI[:, -1])

    def outputs(self, raw_BF: Tensor) -> Tensor:
        """Return the outputs of the head (B × E), not normalised."""
        feature_BF = self.heads.features(self.modality, raw_BF)
        return torch.nn.functional.linear(feature_BF, self.weight_EF, self.bias_E)


@dataclass(eq=False)
class Reservation:
    """Bytes reserved for heads that are being read. `left` shrinks as their tensors are counted."""

    owner: str | None
    left: int


@dataclass(frozen=True, eq=False)
class SharedTensor:
    """A contiguous float32 tensor that several versions may hold; nothing writes to it."""

    tensor: Tensor

    @property
    def bytes(self) -> int:
        return self.tensor.nbytes


@dataclass(frozen=True, eq=False)
class SharedFile:
    """The tensors of a stored file by name, while a version refers to it."""

    tensors: Mapping[str, SharedTensor]


class TensorPool:
    """One copy of each tensor, counted in bytes while a version or a request refers to it.

    Used from several threads. Counting relies on reference counts, so a version that was evicted while a request
    uses it counts until that request is over.
    """

    def __init__(self) -> None:
        self._by_content: weakref.WeakValueDictionary[Hashable, SharedTensor] = (
            weakref.WeakValueDictionary()
        )
        self._bytes = 0
        # Finalizers run at any moment in any thread, also inside of the lock: they only append.
        self._freed: deque[int] = deque()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of all tensors that something refers to."""
        with self._lock:
            while self._freed:
                self._bytes -= self._freed.popleft()
            assert self._bytes >= 0, "more was freed than shared"
            return self._bytes

    def share(self, tensor: Tensor, reservation: Reservation) -> SharedTensor:
        """Return the tensor, or the one with the same shape and entries that is in the pool."""
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        content = (
            tuple(tensor.shape),
            blake3(tensor.flatten().numpy().view(np.uint8).data).digest(),
        )
        with self._lock:
            reservation.left -= min(reservation.left, tensor.nbytes)
            shared = self._by_content.get(content)
            if shared is None:
                shared = self._by_content[content] = SharedTensor(tensor)
                self._bytes += tensor.nbytes
                weakref.finalize(shared, self._freed.append, tensor.nbytes).atexit = False
            return shared


class HeadsSource(Protocol):
    """Gives the heads of a version, from memory or from the store."""

    @property
    def in_memory(self) -> "LoadedHeads | None":
        """The heads, if they are in memory."""
        ...

    def load(self) -> "LoadedHeads":
        """Return the heads, read from the store where they are not in memory: blocks. Raises WorkerError."""
        ...


@dataclass(frozen=True, eq=False)
class LoadedHeads:
    """Heads in memory, as long as something refers to this object. A `HeadsSource` of itself."""

    heads: ModalityHeads
    files: tuple[SharedFile, ...] = ()
    serving: Mapping[str, ServingHead] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        laid_out = {name: ServingHead.from_heads(self.heads, name) for name in self.heads.weights}
        object.__setattr__(self, "serving", laid_out)
        assert len({len(head.bias_E) for head in laid_out.values()}) <= 1, (
            "heads of different widths"
        )

    @property
    def in_memory(self) -> "LoadedHeads":
        return self

    def load(self) -> "LoadedHeads":
        return self


def truncated(embeddings_BE: Float32Array, count: int, *, normalize: bool = True) -> Float32Array:
    """Return the first numbers of each row (B x D), at unit length if the whole rows are."""
    if count == embeddings_BE.shape[1]:
        return embeddings_BE
    assert 0 < count < embeddings_BE.shape[1]
    prefix_BD = embeddings_BE[:, :count].copy()
    if normalize:
        size_B1 = np.linalg.norm(prefix_BD, axis=1, keepdims=True)
        np.divide(prefix_BD, size_B1, out=prefix_BD, where=size_B1 > 0)
    return prefix_BD


@dataclass(frozen=True)
class ServedVersion:
    """A published version. Two are equal that have the same model, number and time of creation.

    Its heads may be evicted and loaded again; `pinned` keeps them. `pairs`: what it has learned; scores across
    other pairs mean nothing. `lineage`: its ancestors and itself, oldest first. `encoders`: by modality, those of
    the features that it has learned, as far as they are known.
    """

    model: str
    number: int
    spec: ModelSpec = field(compare=False)
    source: HeadsSource = field(compare=False, repr=False)
    created_at: datetime
    pairs: frozenset[ModalityPair] = field(default=frozenset(), compare=False)
    lineage: tuple[int, ...] = field(default=(), compare=False)
    encoders: Mapping[str, EncoderIdentity] = field(default_factory=dict, compare=False)

    @property
    def heads(self) -> ModalityHeads:
        """The heads; loaded where they are not in memory, as `HeadsSource.load`."""
        return self.source.load().heads

    def pinned(self) -> "ServedVersion | None":
        """Return the version with heads that stay in memory as long as it; None where they are not loaded."""
        loaded = self.source.in_memory
        if loaded is None or loaded is self.source:
            return None if loaded is None else self
        return replace(self, source=loaded)

    @property
    def learned(self) -> frozenset[str]:
        """Modalities that are in a dataset that it has learned."""
        return frozenset(name for pair in self.pairs for name in pair.modalities)

    @property
    def not_learned(self) -> frozenset[str]:
        """The others of the model: their heads are the initial ones."""
        return frozenset(self.spec.modalities.keys() - self.learned)

    @property
    def label(self) -> str:
        """As users write it: `name@number`."""
        return f"{self.model}@{self.number}"


class StoredVersions:
    """Reads published versions. A file that is in memory is not read again: successive versions share their lifts."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.pool = TensorPool()
        # By the SHA-256 of the file.
        self._files: weakref.WeakValueDictionary[str, SharedFile] = weakref.WeakValueDictionary()

    def manifest(self, model: str, number: int) -> VersionManifest:
        """Raises ObjectNotFound where it was never published, InvalidVersion, StorageUnavailable."""
        manifest = read_version(self._store, model, number)
        if (manifest.model, manifest.version) != (model, number):
            raise InvalidVersion(
                f"the manifest of {model}@{number} is that of {manifest.model}@{manifest.version}"
            )
        for name in (*layout.HEADS_FILES, layout.SELFTEST):
            if name not in manifest.files:
                raise InvalidVersion(f"the manifest of {model}@{number} names no {name}")
        return manifest

    def in_memory(self, manifest: VersionManifest) -> LoadedHeads | None:
        """Return the heads if their files are in memory, of other versions. Raises InvalidVersion."""
        files = [self._files.get(entry.sha256) for entry in _heads_of(manifest)]
        return None if None in files else _loaded(manifest, [each for each in files if each])

    def read(self, manifest: VersionManifest, reservation: Reservation) -> LoadedHeads:
        """Read the heads; files and tensors that are in memory already are shared.

        Raises InvalidVersion or DigestMismatch where they cannot be used, StorageUnavailable.
        """
        try:
            files = [self._file(entry, reservation) for entry in _heads_of(manifest)]
        except ObjectNotFound as error:
            # The manifest is written last, so a missing file is damage.
            raise InvalidVersion(f"{manifest.model}@{manifest.version}: {error}") from error
        return _loaded(manifest, files)

    def _file(self, entry: FileEntry, reservation: Reservation) -> SharedFile:
        shared = self._files.get(entry.sha256)
        if shared is not None:
            reservation.left -= min(reservation.left, entry.bytes)
            return shared
        chunks = stream_blob(self._store, entry)
        try:
            tensors = {
                name: self.pool.share(tensor, reservation)
                for name, tensor in stream(chunks, entry.bytes)
            }
        except SafetensorError as error:
            # A damaged header is met before the digest of the whole can be compared.
            raise InvalidVersion(f"{layout.blob(entry.sha256)} cannot be read: {error}") from error
        for _ in chunks:
            pass  # The digest is checked at the end.
        return self._files.setdefault(entry.sha256, SharedFile(tensors))

    def check(self, manifest: VersionManifest, loaded: LoadedHeads) -> None:
        """Run the self-test through the heads as requests will. Raises as `read`."""
        try:
            data = read_version_file(self._store, manifest, layout.SELFTEST, considerate_sha256_of)
        except ObjectNotFound as error:
            raise InvalidVersion(f"{manifest.model}@{manifest.version}: {error}") from error
        _run_selftest(data, loaded)

    def verify(self, manifest: VersionManifest) -> None:
        """Check the digests of the heads' files in the memory of one chunk. Raises as `read`."""
        try:
            for entry in _heads_of(manifest):
                for _ in stream_blob(self._store, entry):
                    pass
        except ObjectNotFound as error:
            raise InvalidVersion(f"{manifest.model}@{manifest.version}: {error}") from error


def described(manifest: VersionManifest, source: HeadsSource) -> ServedVersion:
    return ServedVersion(
        manifest.model,
        manifest.version,
        manifest.spec,
        source,
        manifest.created_at,
        frozenset(learned.pair for learned in manifest.learned),
        tuple(learned.version for learned in manifest.learned),
        manifest.encoders,
    )


def _loaded(manifest: VersionManifest, files: Sequence[SharedFile]) -> LoadedHeads:
    tensors = {name: each.tensor for file in files for name, each in file.tensors.items()}
    assert len(tensors) == sum(len(file.tensors) for file in files), "a tensor is in two files"
    return LoadedHeads(heads_from(tensors, manifest.spec), tuple(files))


def _heads_of(manifest: VersionManifest) -> list[FileEntry]:
    return [manifest.files[name] for name in layout.HEADS_FILES]


@torch.inference_mode()
def _run_selftest(data: bytes, loaded: LoadedHeads) -> None:
    for modality, (features_BF, expected_BE) in load_selftest(data, loaded.serving).items():
        try:
            given_BE = unit_rows(loaded.serving[modality].outputs(features_BF))
            check_selftest(modality, given_BE, expected_BE)
        except RuntimeError as error:  # torch's error for widths that do not match
            raise InvalidVersion(f"the self-test does not fit the heads: {error}") from error
