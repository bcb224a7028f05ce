"""What a job starts from: the parent version, and what every earlier dataset left."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from workers.contract.dataset import Shard
from workers.contract.job import JobSpec
from workers.contract.modality import ModalityPair
from workers.contract.version import LearnedDataset, Recall, VersionManifest
from workers.model.artifact import load_heads, load_kept, load_memory, load_moments
from workers.model.heads import ModalityHeads
from workers.model.retrieval import HeldOut, measure
from workers.storage import layout
from workers.storage.port import ObjectStore
from workers.storage.versions import read_verified, read_version, read_version_file
from workers.train.certify import Earlier, weights_of
from workers.train.learn import Knowledge, before_the_first
from workers.train.rows.dataset import held_out_rows


@dataclass(frozen=True)
class Parent:
    """The version that a job starts from, and its ledger."""

    knowledge: Knowledge
    learned: tuple[LearnedDataset, ...]


def read_parent(store: ObjectStore, job: JobSpec) -> Parent:
    """Raises InvalidVersion, DigestMismatch or ObjectNotFound where the parent is damaged."""
    if job.parent is None:
        return Parent(before_the_first(job.spec), ())
    manifest = read_version(store, job.model, job.parent)
    memory = load_memory(read_version_file(store, manifest, layout.MEMORY))
    kept = load_kept(read_version_file(store, manifest, layout.KEPT))
    return Parent(Knowledge(_heads(store, manifest), memory, kept), manifest.learned)


def read_earlier(store: ObjectStore, job: JobSpec, parent: Parent) -> tuple[Earlier, ...]:
    """The moments of every earlier dataset, and the heads of the version that learned it."""
    return tuple(_earlier(store, job, learned) for learned in parent.learned)


@dataclass(frozen=True)
class Evaluation:
    """Recall on held-out rows. `before`: of the parent, on the new dataset's; None without any."""

    before: Recall | None
    now: dict[str, Recall]


def evaluate(store: ObjectStore, job: JobSpec, parent: Parent, now: ModalityHeads) -> Evaluation:
    """Recall on the held-out rows of every dataset so far that has some, this one included.

    The parent's head of a modality that is new starts from the seed and reads as it does now: the
    conditioning is no part of what is learned.
    """
    results = {
        dataset: measure(now, pair, rows) for dataset, pair, rows in _held_out(store, parent)
    }
    new = job.dataset
    rows = held_out_rows(new.evaluation_shards)
    if rows is None:
        return Evaluation(None, results)
    before = now.replaced(parent.knowledge.heads.weights)
    results[new.dataset] = measure(now, new.pair, rows)
    return Evaluation(measure(before, new.pair, rows), results)


class _HeldOutPart(BaseModel):
    """What an evaluation needs of a dataset's manifest; the rest may have been swept."""

    evaluation_shards: tuple[Shard, ...] = ()


def _held_out(store: ObjectStore, parent: Parent) -> Iterator[tuple[str, ModalityPair, HeldOut]]:
    """Held-out rows of the earlier datasets; those that were deleted on purpose have none."""
    for learned in parent.learned:
        text = store.read(layout.dataset_manifest(learned.dataset))
        rows = held_out_rows(_HeldOutPart.model_validate_json(text).evaluation_shards)
        if rows is not None:
            yield learned.dataset, learned.pair, rows


def _earlier(store: ObjectStore, job: JobSpec, learned: LearnedDataset) -> Earlier:
    key = layout.dataset_moments(learned.dataset)
    moments = load_moments(read_verified(store, key, learned.moments))
    then = _heads(store, read_version(store, job.model, learned.version))
    return Earlier(learned.dataset, learned.pair, moments, weights_of(learned.pair, then))


def _heads(store: ObjectStore, manifest: VersionManifest) -> ModalityHeads:
    return load_heads(read_version_file(store, manifest, layout.HEADS), manifest.spec)
