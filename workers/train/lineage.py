"""What a job starts from, and what it finds out about the datasets that came before."""

from dataclasses import dataclass

from workers.contract.dataset import DatasetManifest
from workers.contract.job import JobSpec
from workers.contract.version import Drift, LearnedDataset, Recall, VersionManifest
from workers.model.artifact import load_heads, load_memory, load_moments
from workers.model.heads import ModalityHeads, initial_heads
from workers.model.memory import Memory
from workers.model.retrieval import recall
from workers.nullspace.certificate import PairWeights, relative_drift
from workers.storage import layout
from workers.storage.port import ObjectStore
from workers.storage.versions import read_verified, read_version, read_version_file
from workers.train.data import held_out_rows


@dataclass(frozen=True)
class Parent:
    """The version that a job starts from; before the first dataset, the heads of the seed."""

    heads: ModalityHeads
    memory: Memory
    learned: tuple[LearnedDataset, ...]


def read_parent(store: ObjectStore, job: JobSpec) -> Parent:
    """Raises InvalidVersion, DigestMismatch or ObjectNotFound where the parent is damaged."""
    if job.parent is None:
        return Parent(initial_heads(job.spec), Memory(), ())
    manifest = read_version(store, job.model, job.parent)
    memory = load_memory(read_version_file(store, manifest, layout.MEMORY))
    return Parent(_heads(store, manifest), memory, manifest.learned)


def certify(
    store: ObjectStore, job: JobSpec, parent: Parent, now: ModalityHeads
) -> dict[str, Drift]:
    """Drift of every earlier dataset, since the version that learned it and since the parent."""
    return {
        learned.dataset: _drift(store, job, learned, parent.heads, now)
        for learned in parent.learned
    }


def evaluate(
    store: ObjectStore, job: JobSpec, parent: Parent, now: ModalityHeads
) -> dict[str, Recall]:
    """Recall on the held-out rows of every dataset so far that has some, this one included."""
    earlier = [
        DatasetManifest.model_validate_json(store.read(layout.dataset_manifest(learned.dataset)))
        for learned in parent.learned
    ]
    results: dict[str, Recall] = {}
    for dataset in [*earlier, job.dataset]:
        rows = held_out_rows(dataset)
        if rows is not None:
            first_NE = now.embed(dataset.pair.first, rows.first_NI)
            second_NE = now.embed(dataset.pair.second, rows.second_NJ)
            results[dataset.dataset] = recall(first_NE, second_NE, rows)
    return results


def _drift(
    store: ObjectStore,
    job: JobSpec,
    learned: LearnedDataset,
    parent: ModalityHeads,
    now: ModalityHeads,
) -> Drift:
    key = layout.dataset_moments(learned.dataset)
    moments = load_moments(read_verified(store, key, learned.moments))
    then = _heads(store, read_version(store, job.model, learned.version))

    def weights(heads: ModalityHeads) -> PairWeights:
        return PairWeights(heads.weights[learned.pair.first], heads.weights[learned.pair.second])

    return Drift(
        since_learned=relative_drift(moments, weights(then), weights(now)),
        against_parent=relative_drift(moments, weights(parent), weights(now)),
    )


def _heads(store: ObjectStore, manifest: VersionManifest) -> ModalityHeads:
    return load_heads(read_version_file(store, manifest, layout.HEADS), manifest.spec)
