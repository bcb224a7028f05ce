"""Stored versions as the questions need them. What cannot be asked is said in the user's words."""

import re
from collections.abc import Sequence

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.version import LearnedDataset, VersionManifest
from workers.methods.port import Kept
from workers.model.artifact import load_heads, load_kept, load_memory, load_moments
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.model.retrieval import HeldOut
from workers.nullspace.moments import PairMoments
from workers.storage import layout
from workers.storage.port import ObjectStore
from workers.storage.versions import read_verified, read_version, read_version_file
from workers.train.rows.dataset import held_out_rows


class Unanswerable(ValueError):
    """The question cannot be answered as it was asked: one line, in the user's words."""


def find_version(store: ObjectStore, model: str, version: int) -> VersionManifest:
    """The manifest. Raises Unanswerable with the versions that there are, InvalidVersion."""
    try:
        return read_version(store, model, version)
    except ObjectNotFound as error:
        there_are = _in_words(_versions(store, model))
        raise Unanswerable(f"model {model!r} has no version {version}: {there_are}") from error


def heads_of(store: ObjectStore, manifest: VersionManifest) -> ModalityHeads:
    """Raises DigestMismatch, InvalidVersion, ObjectNotFound; so do the others here."""
    return load_heads(read_version_file(store, manifest, layout.HEADS), manifest.spec)


def memory_of(store: ObjectStore, manifest: VersionManifest) -> Memory:
    return load_memory(read_version_file(store, manifest, layout.MEMORY))


def kept_of(store: ObjectStore, manifest: VersionManifest) -> Kept:
    return load_kept(read_version_file(store, manifest, layout.KEPT))


def moments_of(store: ObjectStore, learned: LearnedDataset) -> PairMoments:
    """The moments of one dataset alone."""
    key = layout.dataset_moments(learned.dataset)
    return load_moments(read_verified(store, key, learned.moments))


def held_out_of(store: ObjectStore, learned: LearnedDataset) -> HeldOut | None:
    """The evaluation rows of a dataset, or None where it has none."""
    manifest = store.read(layout.dataset_manifest(learned.dataset))
    return held_out_rows(DatasetManifest.model_validate_json(manifest).evaluation_shards)


def check_modality(manifest: VersionManifest, modality: str) -> None:
    """Raises Unanswerable unless the model declares it."""
    declared = manifest.spec.modalities
    if modality not in declared:
        raise Unanswerable(
            f"model {manifest.model!r} has no modality {modality!r}: it has {', '.join(declared)}"
        )


def _versions(store: ObjectStore, model: str) -> list[int]:
    one = layout.version_file(model, 1, layout.MANIFEST)
    folder = one.removesuffix(f"1/{layout.MANIFEST}")
    names = store.folders(folder)
    return sorted(int(name) for name in names if re.fullmatch(r"[0-9]+", name))


def _in_words(versions: Sequence[int]) -> str:
    if not versions:
        return "the store has no version of it"
    if versions == list(range(versions[0], versions[-1] + 1)) and len(versions) > 1:
        return f"the store has versions {versions[0]} to {versions[-1]}"
    return f"the store has {', '.join(map(str, versions))}"
