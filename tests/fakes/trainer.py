"""What a training job leaves in object storage, without any training.

It reads the attempt's spec.json and the parent's manifest from the store, as the real one does.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from cmcl.contract.job import JobSpec, Phase, Progress
from cmcl.contract.version import (
    Drift,
    LearnedDataset,
    VersionManifest,
    VersionReport,
)
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.versions import entry_for, read_version, write_candidate


def train(
    store: ObjectStore,
    job: str,
    attempt: int,
    drift: float = 0.1,
    changes: Mapping[str, object] | None = None,
    *,
    write: bool = True,
) -> VersionManifest:
    """Write a complete candidate; `changes` replace fields of its manifest."""
    spec = JobSpec.model_validate_json(store.read(layout.run_spec(job, attempt)))
    earlier = _ledger(store, spec)
    files = {name: f"{job} {attempt} {name}".encode() for name in layout.VERSION_FILES}
    moments = f"{job} {attempt} moments".encode()
    manifest = VersionManifest(
        model=spec.model,
        version=spec.version,
        parent=spec.parent,
        job=job,
        attempt=attempt,
        dataset=spec.dataset.dataset,
        spec=spec.spec,
        code_version="test",
        created_at=datetime.now(UTC),
        files={name: entry_for(data) for name, data in files.items()},
        learned=(*earlier, _line(spec, moments)),
        report=VersionReport(
            final_loss=1.0,
            updates=3,
            ranks=1,
            drift={
                line.dataset: Drift(since_learned=drift, against_parent=drift) for line in earlier
            },
        ),
    ).model_copy(update=dict(changes or {}))
    if write:
        write_candidate(store, manifest, {**files, layout.MOMENTS: moments})
    return manifest


def report_progress(
    store: ObjectStore,
    job: str,
    attempt: int,
    phase: Phase,
    updates_done: int = 0,
    figures: Mapping[str, float | str] | None = None,
) -> Progress:
    """Overwrite the attempt's progress; `figures` are the other figures of this phase."""
    progress = Progress(
        phase=phase, updates_done=updates_done, updates_total=10, at=datetime.now(UTC)
    ).model_copy(update=dict(figures or {}))
    store.put(layout.run_progress(job, attempt), progress.model_dump_json().encode())
    return progress


# All figures of a phase.
FIGURES: Mapping[str, float] = {
    "rows_done": 96,
    "rows_total": 320,
    "loss": 0.75,
    "rows_per_second": 12345.6,
    "gradient_norm": 1.5,
    "removed_share": 0.375,
    "drift": 0.03125,
    "eta_seconds": 90.5,
    "ranks": 4,
    "resumed_at": 2,
}


def leave_checkpoint(store: ObjectStore, job: str, attempt: int, updates: int) -> str:
    """What an attempt has saved after so many updates; its key."""
    data = f"{job} {attempt} after {updates}".encode()
    key = layout.run_checkpoint(job, attempt, updates, entry_for(data).sha256)
    store.put(key, data)
    return key


def _ledger(store: ObjectStore, spec: JobSpec) -> tuple[LearnedDataset, ...]:
    if spec.parent is None:
        return ()
    return read_version(store, spec.model, spec.parent).learned


def _line(spec: JobSpec, moments: bytes) -> LearnedDataset:
    return LearnedDataset(
        dataset=spec.dataset.dataset,
        name=spec.dataset.name,
        pair=spec.dataset.pair,
        rows=spec.dataset.rows,
        version=spec.version,
        moments=entry_for(moments),
        shard_digests=tuple(shard.sha256 for shard in spec.dataset.shards),
    )
