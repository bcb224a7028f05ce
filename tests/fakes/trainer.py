"""Writes what a training job writes to object storage, without training.

It reads the attempt's spec.json and the parent's manifest from the store, as the real one does.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from cmcl.contract.job import JobSpec, Phase, Progress
from cmcl.contract.modality import FileEntry
from cmcl.contract.version import (
    Drift,
    Erasure,
    EvaluationResult,
    LearnedDataset,
    MeasuredDataset,
    Overlap,
    Recall,
    VersionManifest,
    VersionReport,
    datasets_to_merge,
)
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.running import ProgressWriter, mark_ended
from cmcl.storage.versions import entry_for, read_version, write_blob, write_candidate
from cmcl.tracing import StageLog


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
    spec = read_document(store, layout.run_spec(job, attempt), JobSpec)
    stages = StageLog(spec.traceparent)
    stages.enter("training")
    contents = [f"{job} {attempt} {name}".encode() for name in layout.VERSION_FILES]
    moments = f"{job} {attempt} moments".encode()
    if write:
        for data in (*contents, *([moments] if spec.dataset or spec.erases else [])):
            write_blob(store, data)
    files = dict(zip(layout.VERSION_FILES, map(entry_for, contents), strict=True))
    earlier, learned, unlearned = _lineage(store, spec, entry_for(moments))
    manifest = VersionManifest(
        model=spec.model,
        version=spec.version,
        parent=spec.parent,
        job=job,
        attempt=attempt,
        kind=spec.kind,
        dataset=spec.dataset.dataset if spec.dataset else None,
        unlearned=unlearned,
        merged=spec.merges,
        spec=spec.spec,
        code_version="test",
        created_at=datetime.now(UTC),
        files=files,
        learned=learned,
        report=VersionReport(
            final_loss=1.0,
            updates=3,
            ranks=1,
            drift={
                line.dataset: Drift(since_learned=drift, against_parent=drift) for line in earlier
            },
            overlap={
                line.dataset: Overlap(rows=10, expected=0.7, measured=0.65) for line in earlier
            },
            evaluation_only=tuple(
                MeasuredDataset(**dict(each), recall=recall_of(9, 0.6))
                for each in spec.evaluation_only
            ),
        ),
    ).model_copy(update=dict(changes or {}))
    if write:
        stages.enter("writing")
        write_candidate(store, manifest)
        stages.write(store, layout.run_stages(job, attempt))
        mark_ended(store, job, attempt)
    return manifest


def evaluate(
    store: ObjectStore, job: str, attempt: int, recall: float | None = 0.5, note: str | None = None
) -> EvaluationResult:
    """Write the result of an evaluation."""
    spec = read_document(store, layout.run_spec(job, attempt), JobSpec)
    assert spec.kind == "evaluate"
    found = None if recall is None else recall_of(spec.learns.evaluation_rows, recall)
    result = EvaluationResult(version=spec.version, recall=found, note=note)
    key = layout.run_evaluation(job, attempt)
    store.put(key, result.model_dump_json().encode())
    mark_ended(store, job, attempt)
    return result


def recall_of(rows: int, at_1: float) -> Recall:
    """A recall of that many rows, of which some have equal items."""
    at_10 = min(1.0, at_1 + 0.2)
    return Recall(
        rows=rows, at_1=at_1, at_5=at_1, at_10=at_10, own_at_1=at_1 / 2, own_at_10=at_10 / 2
    )


def report_progress(
    store: ObjectStore,
    job: str,
    attempt: int,
    phase: Phase,
    updates_done: int = 0,
    figures: Mapping[str, float | str | datetime] | None = None,
) -> Progress:
    """Show progress of the attempt; `figures` are the other figures of this phase."""
    progress = Progress(
        phase=phase, updates_done=updates_done, updates_total=10, at=datetime.now(UTC)
    ).model_copy(update=dict(figures or {}))
    ProgressWriter(store, job, attempt).write(progress)
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
    """Write a checkpoint of that many updates; return its key."""
    data = f"{job} {attempt} after {updates}".encode()
    key = layout.run_checkpoint(job, attempt, updates, entry_for(data).sha256)
    store.put(key, data)
    return key


Lines = tuple[LearnedDataset, ...]


def _lineage(
    store: ObjectStore, spec: JobSpec, moments: FileEntry
) -> tuple[Lines, Lines, LearnedDataset | None]:
    """Lines that need a certificate, the new lineage, and the line that was taken out."""
    known = () if spec.parent is None else read_version(store, spec.model, spec.parent).learned
    if spec.dataset is not None:
        return known, (*known, _line(spec, moments)), None
    if spec.merges is not None:
        theirs = read_version(store, spec.merges.model, spec.merges.version).learned
        new = datasets_to_merge(known, theirs)
        update = {"version": spec.version, "reference": None}
        joined = (line.model_copy(update=update) for line in new)
        merged = (*known, *joined)
        return merged, merged, None
    if spec.erases is not None:
        lines = tuple(_erased(spec, line, moments) for line in known)
        return lines, lines, None
    rest = tuple(line for line in known if line.dataset != spec.unlearns)
    gone = next(line for line in known if line.dataset == spec.unlearns)
    later = {line.dataset for line in rest if line.version >= gone.version}
    rest = tuple(
        line.model_copy(update={"reference": spec.version}) if line.dataset in later else line
        for line in rest
    )
    return rest, rest, gone


def _erased(spec: JobSpec, line: LearnedDataset, sums: FileEntry) -> LearnedDataset:
    row = spec.erases
    if row is None or line.dataset != row.dataset:
        return line
    receipt = Erasure(
        row=row.row,
        copies=1,
        before=line.moments.sha256,
        after=sums.sha256,
        version=spec.version,
        job=spec.job,
        requested_at=row.requested_at,
        requested_by=row.requested_by,
    )
    changes = {
        "rows": line.rows - 1,
        "moments": sums,
        "exact_sums": sums,
        "reference": spec.version,
    }
    return line.model_copy(update={**changes, "erased": (*line.erased, receipt)})


def _line(spec: JobSpec, moments: FileEntry) -> LearnedDataset:
    dataset = spec.learns
    return LearnedDataset(
        dataset=dataset.dataset,
        name=dataset.name,
        pair=dataset.pair,
        rows=dataset.rows,
        version=spec.version,
        moments=moments,
        exact_sums=moments if spec.spec.erasable else None,
        shard_digests=tuple(shard.sha256 for shard in dataset.shards),
    )
