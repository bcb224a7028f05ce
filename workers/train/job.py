"""The main path: how one dataset becomes a candidate version. Read it top to bottom.

Every rank runs `train_dataset`. What ranks must agree on goes through `distributed`, and only rank 0
writes. A single process without a process group runs the same code.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version as installed_version

import torch

from cmcl.contract import DISTRIBUTION
from cmcl.contract.errors import NON_RETRYABLE, ObjectExists, ObjectNotFound
from cmcl.contract.job import JobSpec
from cmcl.contract.version import LearnedDataset, VersionManifest, VersionReport
from workers.methods.method import TrainingContext
from workers.methods.registry import method_for
from workers.model.artifact import (
    save_heads,
    save_memory,
    save_method_state,
    save_moments,
    save_selftest,
)
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.retry import retry_unavailable
from workers.storage.scratch import Scratch
from workers.storage.uris import open_store
from workers.storage.verified import check_room
from workers.storage.versions import entry_for, read_candidate, write_candidate
from workers.train.certify import (
    PastDataset,
    capacities,
    certificates,
    protections,
    rank_past_datasets,
)
from workers.train.checkpoint import StoredCheckpoints, preemption_noticed
from workers.train.data.dataset import training_rows
from workers.train.distributed import all_gather_dict, barrier, broadcast_object, world
from workers.train.learn import Task, TrainingResult, learn
from workers.train.lineage import Parent, evaluate, read_parent, read_past_datasets
from workers.train.progress import Reporter, leave_failure
from workers.train.run import Run
from workers.train.settings import TrainSettings


def train_dataset(store_uri: str, job: str, attempt: int, device: torch.device) -> None:
    """Train the candidate of one attempt; a complete candidate is left as it is.

    Raises WorkerError, and writes failure.json if another attempt would fail the same way.
    """
    store = open_store(store_uri)
    key = layout.run_spec(job, attempt)
    spec = JobSpec.model_validate_json(retry_unavailable(lambda: store.read(key)))
    here = world()
    # If Ray restarted the ranks, the group before may have finished.
    if broadcast_object(lambda: _is_complete(store, spec), here):
        return
    settings = TrainSettings()
    seconds, scratch = settings.checkpoint_seconds, Scratch(settings.scratch_bytes)
    try:
        with (
            Reporter(store, spec, here) as reporter,
            StoredCheckpoints(store, spec, here, seconds, preemption_noticed) as checkpoints,
        ):
            run = Run(here, device, reporter, checkpoints)
            _train(store, spec, run, reporter, scratch)
    except NON_RETRYABLE as error:
        leave_failure(store, spec, error)
        raise


def _train(
    store: ObjectStore, spec: JobSpec, run: Run, reporter: Reporter, scratch: Scratch
) -> None:
    here = run.here
    # Raises UnknownMethod before anything is read.
    method = method_for(spec.spec)
    reporter.enter("reading")
    parent = read_parent(store, spec)
    past = read_past_datasets(store, spec, parent)
    own_past = rank_past_datasets(past, here)
    _check_readable(own_past)
    check_room(spec.dataset.evaluation_shards, scratch)
    barrier(here)
    # The disk space of training rows is freed before held-out rows are copied.
    with closing(training_rows(spec.dataset, spec.spec, scratch=scratch)) as rows:
        task = Task(spec.dataset.pair, rows, _seed(spec), past)
        learned = learn(spec.spec, parent.model_state, task, run, method)

    reporter.enter("certifying")
    heads = learned.model_state.heads
    own = certificates(own_past, parent.model_state.heads, heads)
    barrier(here)
    certified = all_gather_dict(own, here)
    if not here.is_leader:
        return

    evaluation = evaluate(store, spec, parent, heads, scratch)
    report = VersionReport(
        final_loss=learned.trained.final_loss,
        updates=learned.trained.updates,
        temperature=learned.trained.temperature,
        ranks=here.size,
        protection=protections(spec.spec, learned.spaces),
        drift={dataset: each.drift for dataset, each in certified.items()},
        quality={dataset: each.quality for dataset, each in certified.items()},
        capacity=capacities(spec.spec, _next_contexts(spec, parent, learned)),
        shrinkage=learned.shrinkage,
        recall_before=evaluation.before,
        evaluation=evaluation.now,
        not_evaluated=evaluation.missing,
        seconds=reporter.seconds,
    )

    reporter.enter("writing")
    _write(store, spec, parent, learned, report)
    reporter.enter("done")


def _check_readable(past: Sequence[PastDataset]) -> None:
    """Find damage before training, which may take hours. Raises StoreDamaged."""
    for one in past:
        one.read()


def _next_contexts(
    spec: JobSpec, parent: Parent, learned: TrainingResult
) -> Mapping[str, TrainingContext]:
    """By modality: the context of a next dataset of its latest pair."""
    pairs = [*(line.pair for line in parent.learned), spec.dataset.pair]
    latest = {modality: pair for pair in pairs for modality in pair.modalities}
    known = learned.model_state
    return {
        modality: TrainingContext(
            known.heads, known.memory, known.method_state, pair, spec.spec.training, spec.spec.seed
        )
        for modality, pair in latest.items()
    }


def _is_complete(store: ObjectStore, spec: JobSpec) -> bool:
    try:
        retry_unavailable(lambda: read_candidate(store, spec.job, spec.attempt))
    except ObjectNotFound:
        return False
    return True


def _seed(spec: JobSpec) -> int:
    """Seed of the order of rows: different for each version, the same for each attempt."""
    digest = hashlib.blake2b(f"{spec.spec.seed}/{spec.version}".encode(), digest_size=7)
    return int.from_bytes(digest.digest(), "big")


def _write(
    store: ObjectStore,
    spec: JobSpec,
    parent: Parent,
    learned: TrainingResult,
    report: VersionReport,
) -> None:
    moments_file = save_moments(learned.moments)
    model_state = learned.model_state
    files = {
        layout.HEADS: save_heads(model_state.heads),
        layout.MEMORY: save_memory(model_state.memory),
        layout.METHOD_STATE: save_method_state(model_state.method_state),
        layout.SELFTEST: save_selftest(model_state.heads, spec.spec),
    }
    line = LearnedDataset(
        dataset=spec.dataset.dataset,
        name=spec.dataset.name,
        pair=spec.dataset.pair,
        rows=learned.moments.count,
        version=spec.version,
        moments=entry_for(moments_file),
        shard_digests=tuple(shard.sha256 for shard in spec.dataset.shards),
        recall=report.evaluation.get(spec.dataset.dataset),
    )
    manifest = VersionManifest(
        model=spec.model,
        version=spec.version,
        parent=spec.parent,
        job=spec.job,
        attempt=spec.attempt,
        dataset=spec.dataset.dataset,
        spec=spec.spec,
        code_version=installed_version(DISTRIBUTION),
        created_at=datetime.now(UTC),
        files={name: entry_for(data) for name, data in files.items()},
        learned=(*parent.learned, line),
        report=report,
    )
    try:
        write_candidate(store, manifest, {**files, layout.MOMENTS: moments_file})
    except ObjectExists:
        # Another group of ranks of this attempt was first. The control plane checks every digest before
        # it publishes, so the worst outcome is one more attempt.
        print(f"attempt {spec.attempt} of {spec.job} already has a candidate", flush=True)
