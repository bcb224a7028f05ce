"""Stored versions for the questions, with errors in the user's terms."""

import re
from collections.abc import Sequence

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.version import LearnedDataset, VersionManifest
from workers.model.evaluation import HeldOut
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.versions import read_version
from workers.train.data.dataset import held_out_rows


class Unanswerable(ValueError):
    """The question cannot be answered. The message is one line in the user's terms."""


def find_version(store: ObjectStore, model: str, version: int) -> VersionManifest:
    """Read a manifest. Raises InvalidVersion; Unanswerable, with the versions that exist."""
    try:
        return read_version(store, model, version)
    except ObjectNotFound as error:
        existing = _listed(_versions(store, model))
        raise Unanswerable(f"model {model!r} has no version {version}: {existing}") from error


def read_held_out(store: ObjectStore, learned: LearnedDataset) -> HeldOut | None:
    """The evaluation rows of a dataset, or None if it has none."""
    manifest = store.read(layout.dataset_manifest(learned.dataset))
    return held_out_rows(DatasetManifest.model_validate_json(manifest).evaluation_shards)


def check_modality(manifest: VersionManifest, modality: str) -> None:
    """Raises Unanswerable if the model does not declare the modality."""
    declared = manifest.spec.widths
    if modality not in declared:
        raise Unanswerable(
            f"model {manifest.model!r} has no modality {modality!r}: it has {', '.join(declared)}"
        )


def _versions(store: ObjectStore, model: str) -> list[int]:
    one = layout.version_file(model, 1, layout.MANIFEST)
    folder = one.removesuffix(f"1/{layout.MANIFEST}")
    names = store.folders(folder)
    return sorted(int(name) for name in names if re.fullmatch(r"[0-9]+", name))


def _listed(versions: Sequence[int]) -> str:
    if not versions:
        return "the store has no version of it"
    if versions == list(range(versions[0], versions[-1] + 1)) and len(versions) > 1:
        return f"the store has versions {versions[0]} to {versions[-1]}"
    return f"the store has {', '.join(map(str, versions))}"
