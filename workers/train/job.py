"""The main path: how one dataset becomes a candidate version. Read it top to bottom.

Jobs that read no rows (unlearn, merge) continue in `solve_again.py`.

Every rank runs `train_dataset`. What ranks must agree on goes through `distributed`, and only rank 0
writes. A single process without a process group runs the same code.
"""

import hashlib
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import NON_RETRYABLE, ObjectNotFound
from cmcl.contract.job import JobSpec, row_digest
from cmcl.contract.version import (
    HeadCapacity,
    LearnedDataset,
    VersionReport,
    datasets_to_measure,
)
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from cmcl.storage.uris import open_store
from cmcl.storage.versions import read_candidate, write_blob
from workers.files.shards import Scratch, check_room
from workers.methods.method import Solved, TrainingContext
from workers.methods.registry import method_for
from workers.model.artifact import save_centred_moments, save_halves, save_moments
from workers.model.memory import in_order
from workers.nullspace.centred import dataset_moments
from workers.nullspace.certificate import attainable
from workers.train.agreement import agreement, comparable, halves_of
from workers.train.certify import (
    capacities,
    certificates,
    protections,
)
from workers.train.checkpoint import StoredCheckpoints, preemption_noticed
from workers.train.dataset import training_rows
from workers.train.distributed import (
    World,
    all_gather_dict,
    barrier,
    broadcast_object,
    rank_share,
    world,
)
from workers.train.evaluation import (
    MeasuredVersion,
    evaluate,
    evaluate_version,
    measure_only,
    overlaps,
)
from workers.train.learn import Task, TrainingResult, learn
from workers.train.progress import Reporter
from workers.train.rows import TrainingRows
from workers.train.run import Run
from workers.train.settings import TrainSettings
from workers.train.solve_again import solve_again
from workers.train.versions import (
    Parent,
    joined_encoders,
    read_dataset_sums,
    read_parent,
    read_past_datasets,
    solution,
    version_manifest,
    write_files,
    write_once,
)


def train_dataset(store_uri: str, job: str, attempt: int, device: torch.device) -> None:
    """Carry out one attempt: train its candidate, or measure its dataset. A complete result is left as it is.

    Raises WorkerError, and writes failure.json if another attempt would fail the same way.
    """
    store = open_store(store_uri)
    key = layout.run_spec(job, attempt)
    spec = retry_unavailable(partial(read_document, store, key, JobSpec))
    here = world()
    # If Ray restarted the ranks, the group before may have finished.
    if broadcast_object(lambda: _is_complete(store, spec), here):
        return
    settings = TrainSettings()
    seconds, scratch = settings.checkpoint_seconds, Scratch(settings.scratch_bytes)
    reporter = Reporter(store, spec, here)
    try:
        with (
            reporter,
            StoredCheckpoints(store, spec, here, seconds, preemption_noticed) as checkpoints,
        ):
            run = Run(here, device, reporter, checkpoints)
            if spec.kind == "learn":
                _train(store, spec, run, reporter, scratch)
            elif spec.kind == "evaluate":
                reporter.enter("certifying")
                if here.is_leader:
                    evaluate_version(store, spec, scratch)
            else:
                solve_again(store, spec, run, reporter, scratch)
            reporter.done()
    except NON_RETRYABLE as error:
        reporter.failed(error)
        raise


def _train(
    store: ObjectStore, spec: JobSpec, run: Run, reporter: Reporter, scratch: Scratch
) -> None:
    here = run.here
    # Raises UnknownMethod before anything is read.
    method = method_for(spec.spec)
    reporter.enter("reading")
    # Rank 0 alone solves from moments, and the others need none.
    parent = read_parent(store, spec, with_moments=here.is_leader or not method.solves)
    dataset = spec.learns
    encoders = joined_encoders(parent, dataset)
    past = read_past_datasets(store, parent, datasets_to_measure(spec, parent.learned))
    own_past = rank_share(past, here)
    if not method.solves:
        # Find damage before training, which may take hours. What does not fit the cache is read again afterwards.
        for earlier in own_past:
            earlier.read()
    check_room(dataset.evaluation_shards, scratch)
    barrier(here)
    # The disk space of training rows is freed before held-out rows are copied.
    with closing(training_rows(dataset, spec.spec, scratch=scratch)) as rows:
        digests = _row_digests(dataset.dataset, rows, here) if spec.spec.erasable else None
        task = Task(dataset.pair, rows, _seed(spec), past)
        best = partial(attainable, width=spec.spec.width)
        learned = learn(spec.spec, parent.model_state, task, run, method, best)

    reporter.enter("certifying")
    heads = learned.model_state.heads
    own = certificates(own_past, parent.model_state.heads, heads)
    evaluation = evaluate(store, spec, parent, heads, here, scratch)
    certified = all_gather_dict(own, here)
    if not here.is_leader:
        return

    halves = halves_of(learned.choice) if spec.measures_agreement else None
    same = comparable(parent.learned, dataset.pair) if halves else []
    known = ((line, read_dataset_sums(store, line)) for line in same)
    pairs = (*(line.pair for line in parent.learned), dataset.pair)
    measures = MeasuredVersion(spec.version, heads, pairs, encoders)
    report = VersionReport(
        final_loss=learned.trained.final_loss,
        updates=learned.trained.updates,
        temperature=learned.trained.temperature,
        ranks=here.size,
        protection=protections(spec.spec, learned.spaces),
        drift={dataset: each.drift for dataset, each in certified.items()},
        quality={dataset: each.quality for dataset, each in certified.items()},
        overlap=overlaps(certified, evaluation, parent.learned),
        agreement=halves and agreement(dataset.pair, learned.moments, halves, known),
        capacity={} if method.solves else _capacity(spec, parent, learned),
        shrinkage=learned.shrinkage,
        solution=solution(learned.trained, learned.model_state)
        if isinstance(learned.trained, Solved) and method.solves
        else None,
        recall_before=evaluation.before,
        evaluation=evaluation.now,
        score_errors=evaluation.score_errors,
        not_evaluated=evaluation.missing,
        evaluation_only=measure_only(store, spec.evaluation_only, measures, scratch),
        seconds={**reporter.seconds},
    )

    reporter.enter("writing")
    _write(store, spec, parent, encoders, replace(learned, digests=digests), report)


def _row_digests(dataset: str, rows: TrainingRows, here: World) -> Tensor:
    """The first eight bytes of each row's digest (int64)."""
    own = [
        int(row_digest(dataset, first.tobytes(), second.tobytes())[:16], 16)
        for chunk in rows.chunks(here)
        for first, second in zip(
            chunk.first_NI.float().numpy(), chunk.second_NJ.float().numpy(), strict=True
        )
    ]
    parts = all_gather_dict({str(here.rank): np.array(own, np.uint64).view(np.int64)}, here)
    return torch.from_numpy(np.concatenate(list(parts.values())))


def _capacity(spec: JobSpec, parent: Parent, learned: TrainingResult) -> dict[str, HeadCapacity]:
    """How full each head is for a next dataset of its latest pair."""
    pairs = [*(line.pair for line in parent.learned), spec.learns.pair]
    latest = {modality: pair for pair in pairs for modality in pair.modalities}
    known = learned.model_state
    contexts = {
        modality: TrainingContext(
            known.heads, known.memory, known.method_state, pair, spec.spec.training, spec.spec.seed
        )
        for modality, pair in latest.items()
    }
    return capacities(spec.spec, contexts)


def _is_complete(store: ObjectStore, spec: JobSpec) -> bool:
    try:
        if spec.kind == "evaluate":
            retry_unavailable(lambda: store.size(layout.run_evaluation(spec.job, spec.attempt)))
        else:
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
    encoders: dict[str, EncoderIdentity],
    learned: TrainingResult,
    report: VersionReport,
) -> None:
    dataset = spec.learns
    files = write_files(store, learned.model_state, spec, parent)
    moments = in_order(dataset.pair, learned.moments)
    first, second = sorted(dataset.pair.modalities)
    if not spec.spec.solves:
        stored = write_blob(store, save_moments(moments))
    elif parent.model_state.memory.datasets.get((first, second)):
        stored = write_blob(store, save_centred_moments(dataset_moments(moments)))
    else:
        # The pooled moments are those of this dataset.
        stored = files[layout.pooled_moments(first, second)]
    line = LearnedDataset(
        dataset=dataset.dataset,
        name=dataset.name,
        pair=dataset.pair,
        rows=learned.moments.count,
        version=spec.version,
        moments=stored,
        projections=write_blob(store, save(dict(learned.projections))),
        shard_digests=tuple(shard.sha256 for shard in dataset.shards),
        encoders={modality: identity.digest for modality, identity in dataset.encoders.items()},
        rejected_rows=dataset.rejected.rows if dataset.rejected else 0,
        recall=report.evaluation.get(dataset.dataset),
        ridges=learned.choice.by_modality(dataset.pair.modalities, spec.spec.aligned(dataset.pair))
        if learned.choice
        else {},
        significant_directions=learned.choice.significant if learned.choice else None,
        halves=halves_of(learned.choice),
        attainable=learned.attainable,
        exact_sums=write_blob(store, save_halves(learned.halves, learned.digests))
        if learned.halves is not None and learned.digests is not None
        else None,
    )
    manifest = version_manifest(spec, files, (*parent.learned, line), encoders, report)
    write_once(store, manifest)
