"""What a job starts from: the parent version, and what every earlier dataset left."""

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
from workers.model.artifact import load_heads, load_kept, load_memory, load_moments
from workers.model.heads import ModalityHeads
from workers.model.retrieval import HeldOut, measure
from workers.storage import layout
from workers.storage.patience import patiently
from workers.storage.port import ObjectStore
from workers.storage.scratch import Scratch
from workers.storage.versions import read_verified, read_version, read_version_file
from workers.train.certify import Earlier, Remembered, weights_of
from workers.train.learn import Knowledge, before_the_first
from workers.train.rows.dataset import held_out_rows

# Of small models, all earlier datasets; of large ones, some.
SHELF_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Parent:
    """The version that a job starts from, and its ledger."""

    knowledge: Knowledge
    learned: tuple[LearnedDataset, ...]


def read_parent(store: ObjectStore, job: JobSpec) -> Parent:
    """Raises StoreDamaged where the parent is not whole; StorageUnavailable after some patience."""
    if job.parent is None:
        return Parent(before_the_first(job.spec), ())
    with _needed(f"version {job.parent}, the parent"):
        manifest = patiently(partial(read_version, store, job.model, job.parent))
        heads = _heads(store, manifest)
        memory = load_memory(_file(store, manifest, layout.MEMORY))
        kept = load_kept(_file(store, manifest, layout.KEPT))
    return Parent(Knowledge(heads, memory, kept), manifest.learned)


def read_earlier(
    store: ObjectStore, job: JobSpec, parent: Parent, room: int = SHELF_BYTES
) -> tuple[Earlier, ...]:
    """Every earlier dataset: its moments, and the heads of the version that learned it.

    They are read when they are asked for; what fits into `room` bytes stays in memory. Reading raises
    StoreDamaged, and StorageUnavailable after some patience.
    """
    shelf = _Shelf(store, job, parent.knowledge.heads, room)
    return tuple(
        Earlier(learned.dataset, learned.pair, partial(shelf.read, learned))
        for learned in parent.learned
    )


@dataclass(frozen=True)
class Evaluation:
    """Recall on held-out rows. `before`: of the parent, on the new dataset's; None without any.

    `missing`: why, by earlier dataset whose held-out rows are not what they were.
    """

    before: Recall | None
    now: dict[str, Recall]
    missing: dict[str, str]


def evaluate(
    store: ObjectStore, job: JobSpec, parent: Parent, now: ModalityHeads, scratch: Scratch
) -> Evaluation:
    """Recall on the held-out rows of every dataset so far that has some, this one included.

    The parent's head of a modality that is new starts from the seed and reads as it does now: the
    conditioning is no part of what is learned. Raises InvalidDataset for the new dataset's rows alone:
    it has no part in what became of others'.
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
    before = now.replaced(parent.knowledge.heads.weights)
    results[new.dataset] = measure(now, new.pair, rows)
    return Evaluation(measure(before, new.pair, rows), results, missing)


class _HeldOutPart(BaseModel):
    """What an evaluation needs of a dataset's manifest; the rest may have been swept."""

    evaluation_shards: tuple[Shard, ...] = ()


def _held_out(store: ObjectStore, learned: LearnedDataset, scratch: Scratch) -> HeldOut | None:
    """Held-out rows of an earlier dataset; one whose rows were deleted on purpose has none."""
    text = patiently(partial(store.read, layout.dataset_manifest(learned.dataset)))
    return held_out_rows(_HeldOutPart.model_validate_json(text).evaluation_shards, scratch)


class _Shelf:
    """What is left of earlier datasets. A bound on drift asks for it some times: what fits stays."""

    def __init__(self, store: ObjectStore, job: JobSpec, parent: ModalityHeads, room: int) -> None:
        self._store, self._job, self._parent, self._room = store, job, parent, room
        self._held: dict[str, Remembered] = {}

    def read(self, learned: LearnedDataset) -> Remembered:
        """Of one dataset."""
        if learned.dataset in self._held:
            return self._held[learned.dataset]
        with _needed(f"what is left of the earlier dataset {learned.name!r} ({learned.dataset})"):
            remembered = self._read(learned)
        if remembered.nbytes <= self._room:
            self._room -= remembered.nbytes
            self._held[learned.dataset] = remembered
        return remembered

    def _read(self, learned: LearnedDataset) -> Remembered:
        key = layout.dataset_moments(learned.dataset)
        data = patiently(partial(read_verified, self._store, key, learned.moments))
        then = self._heads_of(learned.version)
        return Remembered(load_moments(data), weights_of(learned.pair, then))

    def _heads_of(self, version: int) -> ModalityHeads:
        if version == self._job.parent:
            return self._parent
        manifest = patiently(partial(read_version, self._store, self._job.model, version))
        return _heads(self._store, manifest)


@contextmanager
def _needed(what: str) -> Iterator[None]:
    """What training cannot do without, and the new dataset is not to blame for."""
    try:
        yield
    except (ObjectNotFound, DigestMismatch, InvalidVersion) as error:
        raise StoreDamaged(
            f"{what} is missing or damaged in object storage: {error}. The new dataset is not to "
            "blame: restore that object from a backup (docs/disaster.md), then retry the job"
        ) from error


def _heads(store: ObjectStore, manifest: VersionManifest) -> ModalityHeads:
    return load_heads(_file(store, manifest, layout.HEADS), manifest.spec)


def _file(store: ObjectStore, manifest: VersionManifest, name: str) -> bytes:
    return patiently(partial(read_version_file, store, manifest, name))
