"""Read what a job starts from: the parent version and the state of every past dataset."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from pydantic import BaseModel, ValidationError

from cmcl.contract.dataset import Shard
from cmcl.contract.errors import (
    DigestMismatch,
    InvalidDataset,
    InvalidVersion,
    ObjectNotFound,
    StoreDamaged,
)
from cmcl.contract.job import JobSpec
from cmcl.contract.version import LearnedDataset, Recall, VersionManifest
from workers.methods.method import MethodState
from workers.model.artifact import load_heads, load_memory, load_method_state, load_moments
from workers.model.evaluation import HeldOut, measure
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.nullspace.moments import PairMoments
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.retry import retry_unavailable
from workers.storage.scratch import Scratch
from workers.storage.versions import read_verified, read_version, read_version_file
from workers.train.certify import PastDataset, PastState, weights_of
from workers.train.data.dataset import held_out_rows
from workers.train.learn import ModelState, initial_state

# Memory for states of past datasets: enough for all of a small model, and for some of a large one.
CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Parent:
    """The version that a job starts from, and the datasets that it has learned."""

    model_state: ModelState
    learned: tuple[LearnedDataset, ...]


def read_parent(store: ObjectStore, job: JobSpec) -> Parent:
    """Read the parent version. Raises StoreDamaged if it is incomplete; StorageUnavailable after retries."""
    if job.parent is None:
        return Parent(initial_state(job.spec), ())
    with _needed(f"version {job.parent}, the parent"):
        manifest = retry_unavailable(partial(read_version, store, job.model, job.parent))
        state = ModelState(
            retry_unavailable(partial(read_heads, store, manifest)),
            retry_unavailable(partial(read_memory, store, manifest)),
            retry_unavailable(partial(read_method_state, store, manifest)),
        )
    return Parent(state, manifest.learned)


def read_past_datasets(
    store: ObjectStore, job: JobSpec, parent: Parent, cache_bytes: int = CACHE_BYTES
) -> tuple[PastDataset, ...]:
    """Every past dataset: its moments, and the heads of the version that learned it.

    They are read when they are needed, and cached as far as `cache_bytes` allows. Reading raises
    StoreDamaged, and StorageUnavailable after retries.
    """
    cache = _PastCache(store, job, parent.model_state.heads, cache_bytes)
    return tuple(
        PastDataset(learned.dataset, learned.pair, partial(cache.read, learned))
        for learned in parent.learned
    )


@dataclass(frozen=True)
class Evaluation:
    """Recall on held-out rows.

    `before`: of the parent on the new dataset, None if it has no held-out rows. `now`: by dataset.
    `missing`: the error, by past dataset whose held-out rows cannot be read.
    """

    before: Recall | None
    now: dict[str, Recall]
    missing: dict[str, str]


def evaluate(
    store: ObjectStore, job: JobSpec, parent: Parent, now: ModalityHeads, scratch: Scratch
) -> Evaluation:
    """Recall on the held-out rows of every dataset so far that has some, the new one included.

    For a new modality the parent's head is the initial one, with today's conditioning: that is not
    part of what is trained. Raises InvalidDataset for rows of the new dataset only.
    """
    results, missing = {}, {}
    for learned in parent.learned:
        try:
            rows = _held_out(store, learned, scratch)
        except (InvalidDataset, ObjectNotFound, ValidationError) as error:
            missing[learned.dataset] = str(error)
            continue
        if rows is not None:
            results[learned.dataset] = measure(now, learned.pair, rows)
    new = job.dataset
    rows = held_out_rows(new.evaluation_shards, scratch)
    if rows is None:
        return Evaluation(None, results, missing)
    before = now.replaced(parent.model_state.heads.weights)
    results[new.dataset] = measure(now, new.pair, rows)
    return Evaluation(measure(before, new.pair, rows), results, missing)


class _HeldOutPart(BaseModel):
    """The part of a dataset's manifest that an evaluation reads; the rest may refer to deleted files."""

    evaluation_shards: tuple[Shard, ...] = ()


def _held_out(store: ObjectStore, learned: LearnedDataset, scratch: Scratch) -> HeldOut | None:
    """Held-out rows of a past dataset; None if they were deleted on purpose."""
    text = retry_unavailable(partial(store.read, layout.dataset_manifest(learned.dataset)))
    return held_out_rows(_HeldOutPart.model_validate_json(text).evaluation_shards, scratch)


class _PastCache:
    """States of past datasets. A bound on drift reads them several times: what fits is kept."""

    def __init__(self, store: ObjectStore, job: JobSpec, parent: ModalityHeads, room: int) -> None:
        self._store, self._job, self._parent, self._room = store, job, parent, room
        self._held: dict[str, PastState] = {}

    def read(self, learned: LearnedDataset) -> PastState:
        """Return the state of one dataset."""
        if learned.dataset in self._held:
            return self._held[learned.dataset]
        with _needed(f"what is left of the earlier dataset {learned.name!r} ({learned.dataset})"):
            state = self._read(learned)
        if state.nbytes <= self._room:
            self._room -= state.nbytes
            self._held[learned.dataset] = state
        return state

    def _read(self, learned: LearnedDataset) -> PastState:
        moments = retry_unavailable(partial(read_moments, self._store, learned))
        return PastState(moments, weights_of(learned.pair, self._heads_of(learned.version)))

    def _heads_of(self, version: int) -> ModalityHeads:
        if version == self._job.parent:
            return self._parent
        manifest = retry_unavailable(partial(read_version, self._store, self._job.model, version))
        return retry_unavailable(partial(read_heads, self._store, manifest))


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
    return load_heads(read_version_file(store, manifest, layout.HEADS), manifest.spec)


def read_memory(store: ObjectStore, manifest: VersionManifest) -> Memory:
    return load_memory(read_version_file(store, manifest, layout.MEMORY))


def read_method_state(store: ObjectStore, manifest: VersionManifest) -> MethodState:
    return load_method_state(read_version_file(store, manifest, layout.METHOD_STATE))


def read_moments(store: ObjectStore, learned: LearnedDataset) -> PairMoments:
    """The moments of one dataset alone."""
    key = layout.dataset_moments(learned.dataset)
    return load_moments(read_verified(store, key, learned.moments))
