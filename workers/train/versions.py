"""Versions as jobs read and write them: the parent with the state of every past dataset, and the candidate."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as installed_version

from torch import Tensor

from cmcl.contract import DISTRIBUTION
from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import (
    DigestMismatch,
    InvalidDataset,
    InvalidVersion,
    ObjectExists,
    ObjectNotFound,
    StoreDamaged,
)
from cmcl.contract.job import JobSpec, VersionRef
from cmcl.contract.modality import FileEntry, Modality
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import LearnedDataset, Solution, VersionManifest, VersionReport
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from cmcl.storage.versions import (
    read_blob,
    read_memory_files,
    read_version,
    read_version_file,
    write_blob,
    write_candidate,
)
from workers.methods.method import MethodState, Solved
from workers.model.artifact import (
    SavedMemory,
    load_centred_moments,
    load_halves,
    load_heads,
    load_memory,
    load_method_state,
    load_moments,
    load_weights,
    save_heads,
    save_memory,
    save_method_state,
    save_selftest,
)
from workers.model.heads import ModalityHeads, with_new_modalities
from workers.model.memory import Memory, in_order
from workers.nullspace.centred import CentredMoments
from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.moments import PairMoments
from workers.train.certify import PastDataset, PastState
from workers.train.learn import ModelState, initial_state

# Memory for states of past datasets: enough for all of a small model, and for some of a large one.
CACHE_BYTES = 256 * 2**20
# Files of the memory that this process has written last, and that memory, if they have at most so many bytes: the next
# version of a model mostly starts from the one that these ranks have just written.
_KEPT_BYTES = 512 * 2**20


@dataclass
class _Kept:
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)


_kept = _Kept()


def release_kept_memory() -> None:
    """Free what is kept of the version that was written last; the next one that starts from it reads it from the store."""
    _kept.files, _kept.memory = {}, Memory()


@dataclass(frozen=True)
class Parent:
    """The version that a job starts from, and the datasets that it has learned.

    `encoders`: by modality, the encoder of its features so far. `ref`: None before the first version. `files`: by name.
    """

    model_state: ModelState
    learned: tuple[LearnedDataset, ...]
    encoders: Mapping[str, EncoderIdentity] = field(default_factory=dict)
    ref: VersionRef | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)


def read_parent(store: ObjectStore, job: JobSpec, with_moments: bool = True) -> Parent:
    """Read the parent version, without pooled moments unless they are needed.

    Raises StoreDamaged if it is incomplete; StorageUnavailable after retries.
    """
    if job.parent is None:
        return Parent(initial_state(job.spec), ())
    ref = VersionRef(model=job.model, version=job.parent)
    return read_known(store, ref, job.spec, with_moments)


def read_known(
    store: ObjectStore, ref: VersionRef, spec: ModelSpec, with_moments: bool = True
) -> Parent:
    """Read a version to start from, with the modalities of the specification. Raises as `read_parent`."""
    manifest, heads = read_version_heads(store, ref.model, ref.version)
    with _needed(f"version {ref}, from which this one starts,"):
        state = ModelState(
            with_new_modalities(heads, spec),
            read_memory(store, manifest, with_moments),
            read_method_state(store, manifest),
        )
    return Parent(state, manifest.learned, manifest.encoders, ref, manifest.files)


def read_version_heads(
    store: ObjectStore, model: str, version: int
) -> tuple[VersionManifest, ModalityHeads]:
    """Read a version without its memory. Raises as `read_parent`."""
    with _needed(f"version {version} of {model!r}"):
        manifest = retry_unavailable(partial(read_version, store, model, version))
        return manifest, retry_unavailable(partial(read_heads, store, manifest))


def joined_encoders(parent: Parent, dataset: DatasetManifest) -> dict[str, EncoderIdentity]:
    """The encoders of a version that learns the dataset: those of its parent, and new ones.

    Raises InvalidDataset if another encoder computed features of the parent: a dataset may have been
    prepared before the one that fixed it was learned.
    """
    check_encoders(dataset.encoders, parent.encoders)
    return {**dataset.encoders, **parent.encoders}


def check_encoders(
    found: Mapping[str, EncoderIdentity], expected: Mapping[str, EncoderIdentity]
) -> None:
    """Raises InvalidDataset if features of a dataset are of another encoder than those of the model."""
    for modality in found.keys() & expected.keys():
        if difference := found[modality].difference(expected[modality]):
            raise InvalidDataset(
                f"the features of {modality!r} are not of the encoder that computed the model's: {difference}"
            )


def read_past_datasets(
    store: ObjectStore,
    parent: Parent,
    lines: Iterable[LearnedDataset],
    cache_bytes: int = CACHE_BYTES,
) -> tuple[PastDataset, ...]:
    """Past datasets of a version: their moments, and the heads that their drift and loss are measured against.

    They are read when they are needed, and cached as far as `cache_bytes` allows. Reading raises
    StoreDamaged, and StorageUnavailable after retries.
    """
    cache = _PastCache(store, parent, cache_bytes)
    return tuple(
        PastDataset(learned.dataset, learned.pair, partial(cache.read, learned), learned.attainable)
        for learned in lines
    )


class _PastCache:
    """States of past datasets. A bound on drift reads them several times: what fits is kept."""

    def __init__(self, store: ObjectStore, parent: Parent, room: int) -> None:
        self._store, self._parent, self._room = store, parent, room
        self._held: dict[str, PastState] = {}

    def read(self, learned: LearnedDataset) -> PastState:
        """Return the state of one dataset."""
        if learned.dataset in self._held:
            return self._held[learned.dataset]
        with _needed(f"what is left of the earlier dataset {learned.name!r} ({learned.dataset})"):
            state = self._read(learned)
        assert self._room >= 0
        if state.nbytes <= self._room:
            self._room -= state.nbytes
            self._held[learned.dataset] = state
        return state

    def _read(self, learned: LearnedDataset) -> PastState:
        moments = retry_unavailable(partial(read_moments, self._store, learned))
        weights = self._weights_of(learned.reference or learned.version)
        first, second = (weights[modality] for modality in learned.pair.modalities)
        return PastState(PairScores(moments), PairWeights(first, second))

    def _weights_of(self, version: int) -> Mapping[Modality, Tensor]:
        ref = self._parent.ref
        assert ref is not None, "there is a past dataset, and no version that learned it"
        if version == ref.version:
            return self._parent.model_state.heads.weights
        manifest = retry_unavailable(partial(read_version, self._store, ref.model, version))
        # Not what the heads read: moments are of conditioned and lifted features.
        data = retry_unavailable(partial(read_version_file, self._store, manifest, layout.HEADS))
        return load_weights(data, manifest.spec)


@contextmanager
def _needed(what: str) -> Iterator[None]:
    """Turn storage errors into StoreDamaged: training needs the object, and the new dataset is valid."""
    try:
        yield
    except (ObjectNotFound, DigestMismatch, InvalidVersion) as error:
        raise StoreDamaged(
            f"{what} is missing or damaged in object storage: {error}. The new dataset is not to "
            "blame: restore that object from a backup (docs/disaster.md), then retry the job"
        ) from error


def read_heads(store: ObjectStore, manifest: VersionManifest) -> ModalityHeads:
    """Raises DigestMismatch, InvalidVersion, ObjectNotFound, as do the functions below."""
    read = partial(read_version_file, store, manifest)
    return load_heads(map(read, layout.HEADS_FILES), manifest.spec)


def read_memory(store: ObjectStore, manifest: VersionManifest, with_moments: bool = True) -> Memory:
    """With retries, because it has several files. Without moments, what datasets chose and their number."""
    if _kept.files and _kept.files == _memory_entries(manifest.files):
        return _kept.memory
    read = partial(read_version_file, store, manifest)
    if not with_moments:
        others = retry_unavailable(partial(read, layout.MEMORY))
        return load_memory(SavedMemory(others, {}), with_moments=False)
    files = read_memory_files(manifest, lambda name: retry_unavailable(partial(read, name)))
    return load_memory(SavedMemory(*files))


def heads_files(heads: ModalityHeads) -> dict[str, bytes]:
    """The files of heads, by name."""
    return dict(zip(layout.HEADS_FILES, save_heads(heads), strict=True))


def _memory_entries(files: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    return {
        name: entry
        for name, entry in files.items()
        if name == layout.MEMORY or layout.pair_of(name) is not None
    }


def memory_files(saved: SavedMemory) -> dict[str, bytes]:
    """The files of a memory, by name."""
    pooled = {layout.pooled_moments(*pair): data for pair, data in saved.pooled.items()}
    return {layout.MEMORY: saved.others, **pooled}


def read_method_state(store: ObjectStore, manifest: VersionManifest) -> MethodState:
    """With retries, because it has several files."""
    state: dict[str, Tensor] = {}
    for name in filter(layout.is_method_state, manifest.files):
        read = partial(read_version_file, store, manifest, name)
        state |= load_method_state(retry_unavailable(read))
    return state


def read_moments(store: ObjectStore, learned: LearnedDataset) -> PairMoments:
    """The moments of one dataset alone."""
    return in_order(learned.pair, load_moments(read_blob(store, learned.moments)))


def read_dataset_sums(store: ObjectStore, learned: LearnedDataset) -> CentredMoments:
    """What one dataset added to a memory of the closed form. Raises StoreDamaged."""
    with _needed(f"the moments of dataset {learned.name!r} ({learned.dataset})"):
        data = retry_unavailable(partial(read_blob, store, learned.moments))
        return in_order(learned.pair, load_centred_moments(data))


def read_halves(store: ObjectStore, learned: LearnedDataset) -> tuple[list[PairMoments], Tensor]:
    """The exact sums of both halves of a dataset, and digests of its rows. Raises StoreDamaged."""
    return load_halves(_read_needed(store, learned, learned.exact_sums, "exact sums"))


def read_projections(store: ObjectStore, learned: LearnedDataset) -> dict[str, Tensor]:
    """Sums of projections of both halves of a dataset, by modality. Raises StoreDamaged."""
    return load_method_state(_read_needed(store, learned, learned.projections, "projections"))


def _read_needed(
    store: ObjectStore, learned: LearnedDataset, entry: FileEntry | None, what: str
) -> bytes:
    with _needed(f"the {what} of dataset {learned.name!r} ({learned.dataset})"):
        if entry is None:
            raise ObjectNotFound("none are kept")
        return retry_unavailable(partial(read_blob, store, entry))


def write_files(
    store: ObjectStore, state: ModelState, spec: JobSpec, parent: Parent
) -> dict[str, FileEntry]:
    """Write the files of a version, except those that its parent has; return all of them by name."""
    files = {
        **heads_files(state.heads),
        **memory_files(save_memory(state.memory, parent.model_state.memory)),
        **{
            layout.method_state(name): save_method_state({name: tensor})
            for name, tensor in state.method_state.items()
        },
        layout.SELFTEST: save_selftest(state.heads, spec.spec),
    }
    known = frozenset(parent.files.values())
    pooled = {layout.pooled_moments(*pair) for pair in state.memory.datasets}
    written = {name: parent.files[name] for name in pooled - files.keys()} | {
        name: write_blob(store, data, known) for name, data in files.items()
    }
    entries = _memory_entries(written)
    if sum(entry.bytes for entry in entries.values()) <= _KEPT_BYTES:
        _kept.files, _kept.memory = entries, state.memory
    return written


def version_manifest(
    spec: JobSpec,
    files: dict[str, FileEntry],
    learned: tuple[LearnedDataset, ...],
    encoders: dict[str, EncoderIdentity],
    report: VersionReport,
) -> VersionManifest:
    """The manifest of a candidate."""
    return VersionManifest(
        model=spec.model,
        version=spec.version,
        parent=spec.parent,
        job=spec.job,
        attempt=spec.attempt,
        kind=spec.kind,
        dataset=spec.dataset.dataset if spec.dataset is not None else None,
        merged=spec.merges,
        spec=spec.spec,
        code_version=installed_version(DISTRIBUTION),
        created_at=datetime.now(UTC),
        files=files,
        learned=learned,
        encoders=encoders,
        report=report,
    )


def write_once(store: ObjectStore, manifest: VersionManifest) -> None:
    """Write the manifest of the candidate; one that is complete is left as it is."""
    try:
        write_candidate(store, manifest)
    except ObjectExists:
        # Another group of ranks of this attempt was first. What this one wrote is named by nothing.
        print(f"attempt {manifest.attempt} of {manifest.job} already has a candidate", flush=True)


def solution(solved: Solved, state: ModelState) -> Solution:
    """How the heads of a version were solved."""
    return Solution(
        ridges={name: ridges.ridge for name, ridges in state.memory.ridges.items()},
        directions=solved.directions,
        groups=solved.groups,
    )
