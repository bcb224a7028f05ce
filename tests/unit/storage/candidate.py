"""A candidate of a training job, without training: files of a few bytes and a true manifest."""

from datetime import UTC, datetime

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import LearnedDataset, VersionManifest, VersionReport
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import entry_for, write_blob, write_candidate

MOMENTS = "moments of data-1"
FILES = {
    layout.HEADS: b"all heads",
    layout.INPUTS: b"what they read",
    layout.MEMORY: b"all moments",
    layout.method_state("basis"): b"what a method keeps",
    layout.SELFTEST: b"a few rows",
    MOMENTS: b"moments of this dataset",
}


def write(store: ObjectStore, files: dict[str, bytes], attempt: int = 1) -> None:
    """Write a candidate, as an attempt does."""
    for data in files.values():
        write_blob(store, data)
    write_candidate(store, manifest_of(files, attempt))


def manifest_of(files: dict[str, bytes], attempt: int = 1) -> VersionManifest:
    """Version 1 of model `scenes`, made by `job-1` from `data-1`."""
    learned = LearnedDataset(
        dataset="data-1",
        name="first",
        pair=ModalityPair(first="image", second="text"),
        rows=10,
        version=1,
        moments=entry_for(files[MOMENTS]),
        shard_digests=(entry_for(b"shard").sha256,),
    )
    return VersionManifest(
        model="scenes",
        version=1,
        job="job-1",
        attempt=attempt,
        dataset="data-1",
        spec=ModelSpec(modalities={"image": 4, "text": 3}),
        code_version="test",
        created_at=datetime(2026, 11, 24, tzinfo=UTC),
        files={name: entry_for(data) for name, data in files.items() if name != MOMENTS},
        learned=(learned,),
        report=VersionReport(final_loss=0.5, updates=1, ranks=1),
    )
